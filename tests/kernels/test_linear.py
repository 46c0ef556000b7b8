"""Packed projections equal the plain ones, and a row's result does not depend on who is with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from tandem import kernels
from tandem.kernels import Int8Linear, Linear
from tandem.kernels.cpu import ops as cpu_ops
from tandem.kernels.linear import quantize

DTYPES = [torch.float32, torch.bfloat16]


def packed(dtype: torch.dtype, inputs: int, outputs: int, bias: bool) -> tuple[Linear, torch.Tensor]:
    """And what it is to compute, for inputs x, in float64."""
    torch.manual_seed(0)
    weight, added = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
    linear = Linear(weight.clone(), added.clone() if bias else None)
    linear.pack()
    return linear, torch.cat(
        [weight, added.unsqueeze(1) if bias else torch.zeros(outputs, 1)], dim=1
    ).double()


@pytest.fixture(params=["compiled", "PyTorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of products. Without a compiler there is one only."""
    if request.param == "PyTorch":
        monkeypatch.setattr(cpu_ops, "COMPILED", False)
    elif not cpu_ops.COMPILED:
        pytest.skip("Tandem was installed without a compiler")
    return request.param  # type: ignore[no-any-return]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 5), (64, 96), (33, 200)])
def test_equals_the_product(dtype: torch.dtype, bias: bool, inputs: int, outputs: int) -> None:
    linear, expected = packed(dtype, inputs, outputs, bias)
    for rows in (0, 1, 2, 3, 4, 5, 6, 40, 300):
        x = torch.randn(rows, inputs).to(dtype)
        out = linear(x)
        assert out.dtype == dtype
        wanted = F.linear(x.double(), expected[:, :-1], expected[:, -1])
        tolerance = {torch.float32: 1e-4, torch.bfloat16: 2**-7}[dtype]
        torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance * inputs**0.5)


def test_takes_rows_that_are_part_of_a_wider_tensor() -> None:
    linear, expected = packed(torch.float32, 24, 16, False)
    x = torch.randn(5, 48)[:, 24:]
    torch.testing.assert_close(linear(x), F.linear(x, expected[:, :-1].float()))


def test_the_weight_is_let_go() -> None:
    weight = torch.randn(16, 24)
    linear = Linear(weight)
    linear.pack()
    weight.zero_()
    assert linear(torch.ones(1, 24)).abs().sum() > 0
    with pytest.raises(AssertionError, match="packed"):
        linear.pack()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (7, 5), (64, 96), (33, 200), (512, 129), (2048, 64), (5, 1000)]
)
def test_int8_is_the_exact_product_of_the_quantized(bias: bool, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    weight, added = torch.randn(outputs, inputs), torch.randn(outputs)
    weight[outputs // 2] = 0.0
    linear = Int8Linear(weight.clone(), added if bias else None)
    linear.pack()
    values, scales = quantize(weight)
    for rows in (0, 1, 2, 3, 4, 5, 6, 7, 13, 40, 96, 203):
        x = torch.randn(rows, inputs) * 10 ** torch.randn(rows, 1)
        x[rows // 2 :][:1] = 0.0
        x_values, x_scales = quantize(x)
        sums = x_values.double() @ values.double().T
        wanted = sums * (x_scales.unsqueeze(1) * scales).double() + (added if bias else 0.0)
        torch.testing.assert_close(linear(x).double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", [Linear, Int8Linear])
def test_a_row_does_not_depend_on_the_others(kind: type[Linear]) -> None:
    torch.manual_seed(0)
    linear = kind(torch.randn(100, 60), torch.randn(100))
    linear.pack()
    x = torch.randn(50, 120)[:, 60:]
    together = linear(x)
    for count in (1, 2, 5, 6, 7):
        assert torch.equal(linear(x[:count]), together[:count])
    assert torch.equal(linear(x[3:4].contiguous()), together[3:4])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", [Linear, Int8Linear])
@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_a_feed_forward_is_its_parts(kind: type[Linear], activation: str, gated: bool) -> None:
    """Whatever the pieces are, and where rows lie apart."""
    torch.manual_seed(0)
    up = kind(torch.randn(2 * 70 if gated else 70, 33), torch.randn(2 * 70 if gated else 70))
    down = kind(torch.randn(19, 70))
    up.pack()
    down.pack()
    for rows in (0, 1, 5, 6, 7, 50, 97, 600):
        x = torch.randn(rows, 40)[:, 7:]
        parts = down(kernels.activate(up(x), activation, gated=gated))
        whole = kernels.feed_forward(x, up, down, activation, gated=gated)
        torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", [Linear, Int8Linear])
def test_a_feed_forward_is_added_to_what_it_reads(kind: type[Linear]) -> None:
    torch.manual_seed(0)
    up, down = kind(torch.randn(50, 24), torch.randn(50)), kind(torch.randn(24, 50), torch.randn(24))
    up.pack()
    down.pack()
    weight, bias = torch.randn(24), torch.randn(24)
    for rows in (0, 1, 6, 100):
        x = torch.randn(rows, 24)
        parts = x + down(kernels.activate(up(kernels.layer_norm(x, weight, bias, 1e-5)), "gelu"))
        kernels.add_feed_forward(x, weight, bias, 1e-5, up, down, "gelu")
        torch.testing.assert_close(x, parts, rtol=1e-6, atol=1e-6)


def test_quantized_is_near() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 64)
    values, scales = quantize(x)
    assert values.dtype == torch.int8
    assert values.abs().amax(1).tolist() == [127] * 20
    # Half a step.
    assert ((values * scales.unsqueeze(1) - x).abs() <= scales.unsqueeze(1) * 0.5001).all()
