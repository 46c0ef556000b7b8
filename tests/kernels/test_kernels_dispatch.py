"""Every op is on every backend, under one name, with the same parameters."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

from tandem import kernels
from tandem.kernels import dispatch, reference
from tandem.kernels.cpu import ops as cpu_ops
from tandem.kernels.dispatch import Reference, backend

OTHERS = {
    "relative_bias_table", "windowed_bias_table", "compilations", "note_compilation", "splitting",
    "feed_forward", "add_feed_forward",  # of `Linear`s
}  # fmt: skip
OPS = sorted({name for name in kernels.__all__ if name.islower()} - OTHERS)

FLOAT, HALF, INT = (torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.int64))
DOUBLE = FLOAT.double()


def _parameters(function: object) -> list[tuple[str, object, object]]:
    assert inspect.isfunction(function)
    return [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_the_same_parameters_everywhere(name: str) -> None:
    expected = _parameters(getattr(kernels, name))
    assert _parameters(getattr(reference, name)) == expected
    for cpu in dispatch._CPU.values():
        assert _parameters(getattr(cpu, name)) == expected


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_the_same_parameters_on_cuda(name: str) -> None:
    pytest.importorskip("triton")
    # Importing the launchers must not put a module in the place of an op either.
    assert _parameters(getattr(dispatch._triton(), name)) == _parameters(getattr(kernels, name))


def test_every_backend_has_every_op() -> None:
    assert {name for name in vars(Reference) if not name.startswith("_")} == set(OPS)
    assert set().union(*cpu_ops.DTYPES.values()) <= set(OPS)


def test_triton_has_ops_only() -> None:
    pytest.importorskip("triton")
    from tandem.kernels.triton import ops as triton_ops

    assert set(triton_ops.__all__) <= set(OPS)
    # What it lacks is PyTorch's.
    assert dispatch._triton().rotary is reference.rotary
    assert dispatch._triton().rms_norm is triton_ops.rms_norm


def test_the_tensors_choose_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_ops, "COMPILED", True)
    assert backend(FLOAT).activate is cpu_ops.activate
    assert backend(FLOAT, FLOAT).rms_norm is backend(HALF, HALF).rms_norm is cpu_ops.rms_norm
    assert backend(HALF).activate is reference.activate
    assert backend(HALF, pages=FLOAT).write_kv is cpu_ops.write_kv
    assert backend(INT).gather_rows is cpu_ops.gather_rows
    for tensors in ((DOUBLE,), (HALF, FLOAT), (HALF, HALF, FLOAT), (FLOAT.to("meta"),)):
        assert backend(*tensors) is Reference
    assert backend(FLOAT, pages=HALF).write_kv is cpu_ops.write_kv
    assert backend(FLOAT, pages=DOUBLE) is Reference
    monkeypatch.setattr(cpu_ops, "COMPILED", False)
    assert backend(FLOAT) is backend(INT) is Reference


def test_the_cpu_path_needs_no_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None  # makes its import fail
import torch
from tandem import kernels
kernels.rms_norm(torch.ones(1, 4), torch.ones(4), 1e-6)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_cpu_path_needs_no_extension() -> None:
    code = """
import sys
sys.modules["tandem.kernels.cpu._cpu"] = None  # makes its import fail
import torch
from tandem import kernels
assert not kernels.cpu.ops.COMPILED
kernels.rms_norm(torch.ones(1, 4), torch.ones(4), 1e-6)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
