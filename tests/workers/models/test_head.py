"""Logits, against the formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from filled_stacks import MODEL, PLACE, fill, norm

from tandem.workers.models.head import Head
from tandem.workers.models.layers import Vocabulary


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_head() -> None:
    """BERT's: projection, activation, norm, then logits with a bias."""
    spec = replace(MODEL, output_transform="gelu", output_bias=True, logit_scale=0.5)
    embedding = Vocabulary("decoder.embedding", 11, 6, PLACE)
    head = Head(spec, embedding, False, PLACE)
    weights, x = fill(head), torch.randn(5, 6)
    head.prepare()
    inner = F.gelu(F.linear(x, weights["decoder.transform"], weights["decoder.transform.bias"]))
    inner = norm(inner, weights, "decoder.transform_norm") * 0.5
    logits = head(x)
    assert logits is not None
    expected = F.linear(inner, weights["decoder.output"], weights["decoder.output.bias"])
    torch.testing.assert_close(logits, expected)


def test_a_bias_of_zeros_is_not_added() -> None:
    head = Head(replace(MODEL, output_bias=True), Vocabulary("embedding", 11, 6, PLACE), True, PLACE)
    assert [slot.name for slot in head.slots()] == ["decoder.output.bias"]
    head.prepare()
    assert head.bias is None
