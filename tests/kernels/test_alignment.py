"""Word times' ops, held to transformers' functions, which are openai-whisper's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from tandem import kernels
from tandem.kernels import Scores, alignment
from tandem.kernels.alignment import median_filter
from tandem.kernels.cpu import ops as cpu_ops

BACKENDS = [alignment, *([cpu_ops] if cpu_ops.COMPILED else [])]
WARPS = [backend.time_warp for backend in BACKENDS]


@pytest.mark.parametrize("width", [1, 3, 5, 7, 9, 13])
def test_the_median_of_neighbours(width: int) -> None:
    torch.manual_seed(width)
    for columns in (1, 2, 3, 4, 7, 8, 50):
        x = torch.randn(2, 5, columns)
        x[..., ::3] = 0.5  # equal ones
        assert torch.equal(median_filter(x, width), _median_filter(x.unsqueeze(0), width)[0])


def jumps(x: torch.Tensor) -> list[int]:
    """`_extract_token_timestamps`, from the matrix on."""
    rows, columns = _dynamic_time_warping(-x.double().numpy())
    starts = np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)
    found: list[int] = columns[starts].tolist()
    return found


@pytest.mark.parametrize("warp", WARPS)
def test_paths(warp: Any) -> None:
    rng = random.Random(1)
    torch.manual_seed(1)
    for number in range(60):
        shape = rng.randint(1, 25), rng.randint(1, 40)
        x = torch.randn(shape) if number % 2 else torch.randint(-1, 2, shape).float()  # with ties
        assert warp(x).tolist() == jumps(x), (number, shape)
    wide = torch.randn(6, 90)[:, 20:50]
    assert warp(wide).tolist() == jumps(wide)
    assert warp(torch.zeros(4, 0)).tolist() == [0] * 4
    assert warp(torch.zeros(0, 7)).tolist() == []


def test_a_path_of_a_full_window() -> None:
    torch.manual_seed(2)
    x = torch.randn(448, 1500)
    found = kernels.time_warp(x)
    assert torch.equal(found, alignment.time_warp(x))
    assert found.diff().min() >= 0


@pytest.mark.parametrize("ops", BACKENDS)
@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("width", [1, 3, 7, 9, 21])
@pytest.mark.parametrize(
    ("rows", "columns", "softcap"), [(9, 50, None), (3, 4, None), (7, 21, 5.0), (2, 1, None), (40, 17, None)]
)
def test_scores(ops: Any, rows: int, columns: int, softcap: float | None, cropped: bool, width: int) -> None:
    torch.manual_seed(rows)
    q, k = torch.randn(5, rows, 8), torch.randn(5, 50, 8)
    logits = q.double() @ k.double().transpose(1, 2) * 0.4
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    weights = logits[..., :columns].softmax(-1) if cropped else logits.softmax(-1)[..., :columns]
    standard = (weights - weights.mean(1, keepdim=True)) / weights.std(1, keepdim=True, correction=0)
    expected = _median_filter(standard.unsqueeze(0), width)[0].sum(0).float()
    found = ops.alignment_scores(q, k, Scores(0.4, None, softcap), columns, width, cropped=cropped)
    if columns > 1 or not cropped:
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    else:  # all tokens attend alike
        assert not found.any()


@pytest.mark.parametrize("ops", BACKENDS)
def test_one_token_and_tokens_that_attend_alike(ops: Any) -> None:
    q, k = torch.randn(2, 1, 8), torch.randn(2, 12, 8)
    for tokens in (q, q.expand(2, 3, 8)):
        found = ops.alignment_scores(tokens, k, Scores(1.0), 12, 7, cropped=False)
        assert torch.equal(found, torch.zeros_like(found))


def test_keys_of_half_precision() -> None:
    """As they lie in a CPU's pages."""
    torch.manual_seed(3)
    q, k = torch.randn(6, 45, 64), torch.randn(6, 1500, 64).bfloat16()
    found = kernels.alignment_scores(q, k, Scores(0.125), 700, 7, cropped=False)
    expected = alignment.alignment_scores(q, k, Scores(0.125), 700, 7, cropped=False)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
