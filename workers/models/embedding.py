"""Token ids, media and positions to what the first layer reads."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tandem import kernels
from tandem.workers.models.fronts import make_front
from tandem.workers.models.layers import Placement, Vocabulary, WeightSlot, stack_norm, weights_of
from tandem.workers.models.positions import sinusoidal, sinusoidal_tensor2tensor
from tandem.workers.models.spec import StackSpec


class Embedding:
    """Token embeddings, a stack's position vectors and token type, and the norm of their sum."""

    def __init__(self, side: str, stack: StackSpec, place: Placement) -> None:
        self.spec, self.side = stack, side
        self.tokens: Vocabulary | None = None  # None: no position holds a token
        if stack.vocab_size is not None:
            self.tokens = Vocabulary(f"{side}.embedding", stack.vocab_size, stack.d_model, place)
        self._own: torch.Tensor | None = None  # [d_model]
        if stack.own_vector is not None:
            self._own = place.empty(stack.d_model)
        self.front = make_front(f"{side}.front", stack, place)
        self.norm = stack_norm(f"{side}.embedding_norm", stack, place) if stack.embedding_norm else None
        self.positions: torch.Tensor | None = None  # [positions, d_model], from position 0 on
        self._rows: torch.Tensor | None = None  # the whole table, with the rows before position 0
        self._types: torch.Tensor | None = None  # [token types, d_model], until `prepare`
        if (table := stack.positions) is not None:
            assert stack.max_positions is not None, "a table of positions has an end"
            count = stack.max_positions + table.offset
            self._rows = place.empty(count, stack.d_model)
            if table.kind == "sinusoidal":
                self._rows.copy_(sinusoidal(count, stack.d_model))
            elif table.kind == "sinusoidal_tensor2tensor":
                self._rows.copy_(sinusoidal_tensor2tensor(count, stack.d_model))
            self.positions = self._rows[table.offset :]
        if stack.token_types:
            self._types = place.empty(stack.token_types, stack.d_model)

    def slots(self) -> Iterator[WeightSlot]:
        yield from weights_of(self.tokens, self.front, self.norm)
        if self._own is not None:
            yield WeightSlot(f"{self.side}.own_vector", self._own, tuple(self._own.shape))
        table = self.spec.positions
        if self._rows is not None and table is not None and table.stored:
            computed = table.kind != "learned"
            yield WeightSlot(f"{self.side}.positions", self._rows, tuple(self._rows.shape), filled=computed)
        if self._types is not None:
            yield WeightSlot(f"{self.side}.token_types", self._types, tuple(self._types.shape))

    def prepare(self) -> None:
        """All weights are loaded. Every token is of the first type, whose vector becomes part of the
        position vectors."""
        if self._types is not None:
            assert self.positions is not None
            self.positions += self._types[0]
            self._types = None

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [N] → each token's scaled vector, [N, d_model]."""
        assert self.tokens is not None, "this stack embeds no tokens"
        x = kernels.scale(self.tokens.embed(token_ids), self.spec.embedding_scale)
        if self._own is not None and self.spec.own_vector is not None:
            x = torch.where(token_ids.eq(self.spec.own_vector).unsqueeze(1), self._own, x)
        return x

    def embed_media(
        self, token_ids: torch.Tensor, media: torch.Tensor, vectors: torch.Tensor
    ) -> torch.Tensor:
        """int64 [N] → a vector for each position, [N, d_model]: at the positions `media`, int64 [M] in order,
        the front's, `vectors` [M, d_model], elsewhere the token's."""
        if self.tokens is None:
            return vectors
        # The placeholder is no token, so it is not looked up.
        return self.embed(token_ids.index_fill(0, media, 0)).index_copy(0, media, vectors)

    def add_positions(self, x: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Vectors [N, d_model] at positions int64 [N] → what the first layer reads, [N, d_model].

        `positions` may be None where the stack has no position vectors.
        """
        if self.norm is not None and self.spec.embedding_norm == "tokens":
            x = self.norm(x)
        if self.positions is not None:
            assert positions is not None
            x = kernels.embed(positions, self.positions, onto=x)
        if self.norm is not None and self.spec.embedding_norm == "sum":
            x = self.norm(x)
        return x
