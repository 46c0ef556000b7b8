"""Feed-forward, against the formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from filled_stacks import PLACE, STACK, fill

from tandem.kernels import ACTIVATIONS
from tandem.workers.models.spec import Activation
from tandem.workers.models.sublayers import FeedForward


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
