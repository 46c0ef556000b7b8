"""Triton's kernels run on a CUDA device or under Triton's interpreter on the CPU.

The interpreter is chosen when triton is first imported, by TRITON_INTERPRET=1. Another test may have imported
it already, so without CUDA triton/test_interpreter.py runs triton/test_ops.py in a process of its own.
"""

from __future__ import annotations

import os

import pytest
import torch

IN_PROCESS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = [] if IN_PROCESS else ["triton/test_ops.py"]


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
