"""The ops of images, plain and compiled, against PyTorch's convolution and attention."""

from __future__ import annotations

import random

import pytest
import torch
from kernel_cases import assert_close
from torch.nn.functional import conv2d

from tandem import kernels
from tandem.kernels import Scores
from tandem.kernels.cpu import ops as cpu_ops


@pytest.fixture(autouse=True, params=["plain", "compiled"])
def _ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs on both."""
    if request.param == "plain":
        monkeypatch.setattr(cpu_ops, "COMPILED", False)
    elif not cpu_ops.COMPILED:
        pytest.skip("there was no compiler when Tandem was installed")


@pytest.mark.parametrize("channels", [1, 7, 16, 48, 83])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (2, 1), (9, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_depthwise_convolution(channels: int, height: int, width: int, dtype: torch.dtype) -> None:
    """In strips of any height, and nothing else is written."""
    torch.manual_seed(channels)
    x = torch.randn(2, height, width, channels).to(dtype)
    weight, bias = torch.randn(channels, 1, 3, 3).to(dtype), torch.randn(channels).to(dtype)
    made = conv2d(x.float().permute(0, 3, 1, 2), weight.float(), bias.float(), padding=1, groups=channels)
    expected = x.float() + made.permute(0, 2, 3, 1)
    ours = weight.reshape(channels, 9).t().contiguous()
    for first in range(height):
        for rows in range(1, height - first + 1):
            out = torch.full_like(x, 7.0)
            strip = out[:, first : first + rows]
            assert kernels.add_depthwise(x, first, ours, bias, strip) is strip
            assert_close(
                strip.float(), expected[:, first : first + rows], 0.05 if dtype.itemsize == 2 else 1e-5
            )
            assert (out[:, :first] == 7).all()
            assert (out[:, first + rows :] == 7).all()


def test_rows_outside_the_image_are_refused() -> None:
    if not cpu_ops.COMPILED:
        pytest.skip("the extension checks")
    x, weight, bias = torch.ones(1, 4, 2, 8), torch.ones(9, 8), torch.ones(8)
    for first in (-1, 3):
        with pytest.raises(TypeError, match="first and the rows of out must be rows of x"):
            kernels.add_depthwise(x, first, weight, bias, torch.empty(1, 2, 2, 8))
    with pytest.raises(TypeError, match="weight must be"):
        kernels.add_depthwise(x, 0, torch.ones(8, 9), bias, torch.empty(1, 2, 2, 8))
    for out in (x, x[:, 2:]):
        with pytest.raises(TypeError, match="out must not share memory with x"):
            kernels.add_depthwise(x, 0, weight, bias, out)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("integers", [False, True])
def test_grouped_attention(seed: int, integers: bool) -> None:
    """Queries, keys and values that one projection made, side by side."""
    rng = random.Random(seed)
    groups, rows, heads, dim = (
        rng.randint(1, 9),
        rng.randint(1, 150),
        rng.randint(1, 4),
        8 * rng.randint(1, 9),
    )
    torch.manual_seed(seed)
    q, k, v = torch.randn(groups, rows, 3, heads, dim).unbind(2)
    made = kernels.grouped_attention(q, k, v, Scores(0.2, integers=integers))
    assert made.shape == q.shape
    weights = torch.einsum("gnhd,gmhd->ghnm", q, k).mul(0.2).softmax(-1)
    assert_close(made, torch.einsum("ghnm,gmhd->gnhd", weights, v), 5e-3 if integers else 1e-5)
