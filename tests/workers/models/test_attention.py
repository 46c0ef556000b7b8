"""The projections of cross-attention's keys and values, against the formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from filled_stacks import MODEL, PLACE, STACK, fill

from tandem.workers.models.attention import CrossKV


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_cross_kv_bridges_widths() -> None:
    names = ["a", "b"]
    cross = CrossKV(names, replace(STACK, d_model=4), replace(MODEL, enc_to_dec_proj=True), PLACE)
    weights, hidden = fill(cross), torch.randn(5, 4)
    bridged = F.linear(hidden, weights["enc_to_dec_proj"], weights["enc_to_dec_proj.bias"])
    kv = cross(hidden)
    assert kv.shape == (5, 2, 2, 2, 3)
    for layer, name in enumerate(names):
        for which, part in enumerate("kv"):
            expected = F.linear(bridged, weights[f"{name}.{part}"], weights[f"{name}.{part}.bias"])
            torch.testing.assert_close(kv[:, layer, which].flatten(1), expected)
