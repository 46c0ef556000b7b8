"""Token embeddings, positions and norm, against the formula written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from filled_stacks import PLACE, STACK, fill, norm

from tandem.workers.models.embedding import Embedding
from tandem.workers.models.positions import sinusoidal
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


def test_computed_positions_may_be_stored_or_not() -> None:
    stack = replace(STACK, max_positions=5, positions=PositionTable("sinusoidal"))
    embedding, table = Embedding("decoder", stack, PLACE), sinusoidal(5, 6)
    _, positions = embedding.slots()
    assert (positions.name, positions.filled) == ("decoder.positions", True)
    assert torch.equal(positions.into, table)
    stack = replace(stack, positions=PositionTable("sinusoidal", stored=False))
    embedding = Embedding("decoder", stack, PLACE)
    assert [slot.name for slot in embedding.slots()] == ["decoder.embedding"]
    assert embedding.positions is not None
    assert torch.equal(embedding.positions, table)


def test_a_token_may_have_a_vector_of_its_own() -> None:
    embedding = Embedding("decoder", replace(STACK, embedding_scale=2.5, own_vector=4), PLACE)
    weights = fill(embedding)
    x = embedding.embed(torch.tensor([4, 10, 4]))
    own = weights["decoder.own_vector"]
    assert torch.equal(x, torch.stack([own, weights["decoder.embedding"][10] * 2.5, own]))
