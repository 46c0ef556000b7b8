"""A recorded program computes what its ops compute one by one, and leaves nothing out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tandem import kernels
from tandem.kernels import CPUProgram, Linear, NotRecordable
from tandem.kernels.cpu import ops as cpu_ops

pytestmark = pytest.mark.skipif(not cpu_ops.AVX512, reason="the C++ extension, or AVX-512, is not there")

MOST = 9


@pytest.fixture
def forward() -> Callable[[Tensor], Tensor]:
    """Three layers with a residual that outlives the results in between."""
    torch.manual_seed(0)
    table, weight, bias = torch.randn(20, 16), torch.randn(16), torch.randn(16)
    layers = []
    for _ in range(3):
        linear = Linear(torch.randn(32, 16) / 4, torch.randn(32))
        linear.pack()
        layers.append(linear)

    def compute(rows: Tensor) -> Tensor:
        x = residual = kernels.embed(rows[0], table, kernels.embed(rows[1], table))
        for linear in layers:
            x, residual = kernels.add_layer_norm(x, residual, weight, bias, 1e-6)
            x = kernels.activate(linear(x), "gelu_new", gated=True)
            x = kernels.rms_norm(kernels.scale(x, 0.5), weight, 1e-6)
        return kernels.add_rms_norm(x, residual, weight, 1e-6)[1]

    return compute


def test_any_number_of_rows(forward: Callable[[Tensor], Tensor]) -> None:
    program = CPUProgram(forward, 2, MOST)
    rng = np.random.default_rng(0)
    for count in (1, MOST, 3, 0, 2, MOST):
        rows = rng.integers(0, 20, (2, count))
        out = program(rows)
        assert out is not None
        assert torch.equal(out, forward(torch.from_numpy(rows)))


def test_two_programs_share_nothing(forward: Callable[[Tensor], Tensor]) -> None:
    one, other = CPUProgram(forward, 2, MOST), CPUProgram(forward, 2, 3)
    rows = np.arange(6).reshape(2, 3)
    first = one(rows)
    other(rows + 5)
    assert first is not None
    assert torch.equal(first, forward(torch.from_numpy(rows)))


def test_recording_computes_nothing() -> None:
    pages = torch.zeros(2, 1, 4, 16)
    k = torch.ones(MOST, 1, 16)
    slots = torch.arange(MOST) % 8

    def write(_: Tensor) -> None:
        kernels.write_kv(k, k, pages, pages, slots)

    program = CPUProgram(write, 1, MOST)
    assert not pages.any()
    assert program(np.zeros((1, 2), dtype=np.int64)) is None
    assert pages.sum() == 2 * 16


def test_an_operator_of_pytorch_is_refused_by_name() -> None:
    with pytest.raises(NotRecordable, match=r"aten\.sin"):
        CPUProgram(torch.sin, 1, MOST)
    # And recording is over.
    assert torch.equal(kernels.scale(torch.ones(2, 3), 2.0), torch.full((2, 3), 2.0))


def test_ops_of_other_numbers_of_rows_are_refused() -> None:
    x = torch.ones(MOST + 1, 4)
    with pytest.raises(NotRecordable, match=f"of {MOST} rows has an op of {MOST + 1}"):
        CPUProgram(lambda _: kernels.scale(x, 2.0), 1, MOST)


def test_more_rows_than_recorded_are_refused(forward: Callable[[Tensor], Tensor]) -> None:
    program = CPUProgram(forward, 2, 3)
    with pytest.raises(ValueError, match="broadcast"):
        program(np.zeros((2, 4), dtype=np.int64))


def test_without_the_extension_nothing_is_recorded(
    forward: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_ops, "COMPILED", False)
    with pytest.raises(NotRecordable, match="not there"):
        CPUProgram(forward, 2, MOST)
