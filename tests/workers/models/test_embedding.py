"""Token embeddings, positions and norm, against the formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from filled_stacks import PLACE, STACK, fill, norm

from tandem.workers.models.embedding import Embedding
from tandem.workers.models.spec import EmbeddingNorm, PositionTable


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("place", ["sum", "tokens", None])
def test_embedding(place: EmbeddingNorm) -> None:
    """Scale, positions from their offset on, the first token type, and a norm in either place."""
    stack = replace(
        STACK, embedding_scale=2.5, embedding_norm=place, token_types=2, max_positions=5,
        positions=PositionTable("learned", offset=3),
    )  # fmt: skip
    embedding = Embedding("encoder", stack, PLACE)
    weights = fill(embedding)
    assert weights["encoder.positions"].shape == (8, 6)
    embedding.prepare()
    ids, rows = torch.tensor([4, 10, 4]), torch.tensor([0, 4, 1])
    x = weights["encoder.embedding"][ids] * 2.5
    if place == "tokens":
        x = norm(x, weights, "encoder.embedding_norm")
    x = x + weights["encoder.positions"][rows + 3] + weights["encoder.token_types"][0]
    if place == "sum":
        x = norm(x, weights, "encoder.embedding_norm")
    torch.testing.assert_close(embedding.add_positions(embedding.embed(ids), rows), x)


def test_computed_positions_are_not_weights() -> None:
    stack = replace(STACK, max_positions=5, positions=PositionTable("sinusoidal"))
    assert [slot.name for slot in Embedding("decoder", stack, PLACE).slots()] == ["decoder.embedding"]
