from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from tandem import kernels
from tandem.kernels import decode_rows, reference

# PyTorch's own kernels serve these on GPUs.
PLAIN = {
    "activate", "argmax", "embed", "layer_norm", "merge_attention", "rotary", "scale", "soft_capped",
}  # fmt: skip
TABLES = {"relative_bias_table", "windowed_bias_table"}
OPS = sorted({name for name in kernels.__all__ if name.islower()} - TABLES - PLAIN)


def _parameters(function: object) -> list[str]:
    assert inspect.isfunction(function)
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_the_same_parameters_everywhere(name: str) -> None:
    pytest.importorskip("triton")
    from tandem.kernels.triton import ops as triton_ops

    # Importing the launchers must not have put a module in the place of a function either.
    expected = _parameters(getattr(kernels, name))
    twin = getattr(decode_rows if name in ("match_prompt_tokens", "gather_rows") else reference, name)
    assert _parameters(twin) == expected
    assert _parameters(getattr(triton_ops, name)) == expected
    assert set(OPS) == set(triton_ops.__all__)


def test_the_cpu_path_needs_no_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None  # makes its import fail
import torch
from tandem import kernels
kernels.rms_norm(torch.ones(1, 4), torch.ones(4), 1e-6)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
