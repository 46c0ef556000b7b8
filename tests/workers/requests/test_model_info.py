"""What tells one model from another before its weights are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tandem.workers.requests import model_info
from tandem.workers.requests.model_info import revision_of


@pytest.mark.parametrize("samples", [256, 16])  # all of this small file, and 16 places in it
def test_the_revision_is_that_of_the_contents(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    monkeypatch.setattr(model_info, "_SAMPLES", samples)
    monkeypatch.setattr(model_info, "_SAMPLE_BYTES", 1024)
    original = checkpoint("t5")
    copy = shutil.copytree(original, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert revision_of(copy) == revision_of(original)
    weights = copy / "model.safetensors"
    contents = bytearray(weights.read_bytes())
    assert len(contents) > 16 * 1024
    tail = len(contents) // 2
    contents[tail:] = bytes(byte ^ 1 for byte in contents[tail:])  # trained further: all shapes as before
    weights.write_bytes(contents)
    assert revision_of(copy) != revision_of(original)
