"""The parts of a step add up to the step, and the watched functions are put back."""

from __future__ import annotations

import pytest
import roofline

from tandem import kernels
from tandem.kernels import Linear
from tandem.quickstart import PATH as QUICKSTART

OPS = {
    "self q, k, v", "self output", "cross q", "cross output", "feed-forward", "activation", "logits", "norms",
    "self-attention", "cross-attention", "K/V write", "embedding", "sampling", "host: scheduling",
    "host: packing", "host: detokenizing", "rest",
}  # fmt: skip


def test_ops_add_up_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "OUTPUTS", 8)
    monkeypatch.setattr(roofline, "PRODUCT", 128)
    before = Linear.__call__, kernels.write_kv
    figures = roofline.measure(QUICKSTART, "float32", 2)
    assert (Linear.__call__, kernels.write_kv) == before
    ops = figures["ops"]
    assert ops.keys() == OPS
    assert sum(op["share"] for op in ops.values()) == pytest.approx(1)
    assert all(op["seconds"] > 0 for op in ops.values())
    # Weights of 2 layers with d_model 256, d_ff 768 and attention 256 wide, a vocabulary of 4000; 2 rows.
    assert ops["feed-forward"]["operations"] == 2 * 2 * 2 * (2 * 256 * 768)
    assert ops["self q, k, v"]["operations"] == 2 * 2 * 2 * (3 * 256 * 256)
    assert ops["logits"]["bytes"] == pytest.approx(4 * (256 * 4000 + 2 * (256 + 4000)))
    assert ops["cross-attention"]["bytes"] == pytest.approx(2 * (2 * 2 * 64 * 256 * 4 + 2 * 2 * 256 * 4))
