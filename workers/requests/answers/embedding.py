"""Hidden states as an answer: a request for them, checked, and their pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from tandem.errors import InvalidRequest
from tandem.outputs import EmbeddingOutput
from tandem.params import Pooling
from tandem.workers.request import EncodeRequest

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PreparedEmbedding:
    """A valid request for the hidden states of prompts."""

    request_id: str
    pooling: Pooling
    requests: list[EncodeRequest]  # one for each prompt
    media_tokens: int  # positions that the prompts' media take

    @property
    def encoder_tokens(self) -> int:
        return sum(len(request.encoder.token_ids) for request in self.requests)


def check_pooling(pooling: object) -> None:
    """Raises InvalidRequest for what is no pooling."""
    if pooling not in get_args(Pooling):
        raise InvalidRequest(
            f"must be one of {', '.join(get_args(Pooling))}, got {pooling!r}", field="pooling"
        )


def embedding_output(request_id: str, states: torch.Tensor, pooling: Pooling) -> EmbeddingOutput:
    """The answer for one prompt. states: [tokens, d_model] on the CPU, float32 or bfloat16, of all its
    positions and no padding; not written to, and not kept."""
    return EmbeddingOutput(request_id, len(states), _pooled(states, pooling))


def _pooled(states: torch.Tensor, pooling: Pooling) -> NDArray[np.float32]:
    if pooling == "first":
        states = states[0]
    values: NDArray[np.float32] = states.float().numpy()
    return values.mean(axis=0) if pooling == "mean" else values.copy()
