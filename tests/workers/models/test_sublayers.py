"""Feed-forward, against the formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from filled_stacks import PLACE, STACK, fill

from tandem.kernels import ACTIVATIONS
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
def test_an_encoders_many_rows_are_computed_in_pieces(rows: int) -> None:
    feed_forward = FeedForward("ff", replace(STACK, activation="gelu", gated=True), PLACE)
    fill(feed_forward)
    x = torch.randn(rows, 6)
    counts: list[int] = []
    down = feed_forward.down

    def counted(piece: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        counts.append(len(piece))
        return down(piece, out)

    whole = feed_forward(x)
    feed_forward.down = counted  # type: ignore[assignment]
    step = EncoderPass(torch.tensor([0, rows], dtype=torch.int32), rows, None, {})
    torch.testing.assert_close(feed_forward(x, step), whole)
    assert sum(counts) == rows
    assert len(counts) == {511: 1, 512: 2, 777: 3}[rows]
