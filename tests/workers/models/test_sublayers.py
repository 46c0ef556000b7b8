"""Feed-forward, against the formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from filled_stacks import PLACE, STACK, fill

from tandem.kernels import ACTIVATIONS, Linear
from tandem.workers.models.spec import Activation
from tandem.workers.models.sublayers import EncoderPass, FeedForward


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_feed_forward(activation: Activation, gated: bool) -> None:
    feed_forward = FeedForward("ff", replace(STACK, activation=activation, gated=gated), PLACE)
    weights, x = fill(feed_forward), torch.randn(5, 6)
    act = ACTIVATIONS[activation]
    inner = F.linear(x, weights["ff.up"], weights["ff.up.bias"])
    inner = act(F.linear(x, weights["ff.gate"], weights["ff.gate.bias"])) * inner if gated else act(inner)
    torch.testing.assert_close(
        feed_forward(x), F.linear(inner, weights["ff.down"], weights["ff.down.bias"]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("rows", [511, 512, 777])
def test_an_encoders_many_rows_are_computed_in_pieces(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    feed_forward = FeedForward("ff", replace(STACK, activation="gelu", gated=True), PLACE)
    fill(feed_forward)
    x = torch.randn(rows, 6)
    counts: list[int] = []
    product = Linear.__call__

    def counted(linear: Linear, piece: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if linear is feed_forward.down.linear:
            counts.append(len(piece))
        return product(linear, piece, out)

    whole = feed_forward(x)
    monkeypatch.setattr(Linear, "__call__", counted)
    step = EncoderPass(torch.tensor([0, rows], dtype=torch.int32), rows, None, {})
    torch.testing.assert_close(feed_forward(x, step), whole)
    assert sum(counts) == rows
    assert len(counts) == {511: 1, 512: 2, 777: 3}[rows]
