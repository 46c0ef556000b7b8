"""Finished answers, and the deltas they grow from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
Parsed = dict[str, Any] | list[Any] | str  # plain values, as JSON has them
# Makes values of an answer's ids, given with what the decoder started from.
Parse = Callable[[Sequence[int]], Parsed | None]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities of a token, generated or the prompt's, under the model's own distribution
    (before temperature, penalties and truncation)."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]  # likeliest token ids first; as many as were asked for
    rank: int | None = None  # a prompt token's place among all tokens, 1 where it is the likeliest


@dataclass(slots=True)
class CompletionOutput:
    """One sample of one prompt, or one of the best beams, best first."""

    index: int  # 0 … n-1, or num_return_sequences-1
    text: str
    token_ids: list[int]  # generated ids, EOS included, decoder prompt not
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop id or stop text that ended it, None for EOS
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float | None = None  # sum over token_ids, where logprobs were asked for
    score: float | None = None  # a beam's: the sum of its tokens' scores over length ** length_penalty
    # What the finished text holds, where the prompt asks for a task, such as one for boxes.
    parsed: Parsed | None = None


@dataclass(slots=True)
class RequestOutput:
    """The answer to one prompt."""

    request_id: str
    encoder_prompt: str | None
    encoder_prompt_token_ids: list[int]
    prompt: str | None  # the decoder prompt as given
    prompt_token_ids: list[int]  # what the decoder started from, start token included
    outputs: list[CompletionOutput] = field(default_factory=list)
    # One for each of prompt_token_ids, given all before it, where they were asked for; None for the first.
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    encoder_tokens: int = 0  # length of the encoder input, in positions: tokens, and what its media take
    media_tokens: int = 0  # positions of its media among them, their padding included

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)


@dataclass(frozen=True, slots=True)
class TargetScore:
    """How likely a target is: natural-log probabilities, each given all tokens before it, under the model's
    own distribution."""

    token_ids: list[int]  # EOS included, where the tokenizer adds one
    logprobs: list[float]  # one for each
    cumulative_logprob: float  # their sum

    @property
    def loss(self) -> float:
        """transformers' loss: minus the mean of the log-probabilities."""
        return -self.cumulative_logprob / len(self.token_ids)


@dataclass(frozen=True, slots=True)
class ScoreOutput:
    """The targets of one prompt, scored."""

    request_id: str
    encoder_prompt: str | None
    encoder_prompt_token_ids: list[int]
    prompt: str | None  # the decoder prompt as given
    prompt_token_ids: list[int]  # what stands before the targets, start token included
    scores: list[TargetScore]  # in the targets' order
    encoder_tokens: int = 0  # see `RequestOutput`
    media_tokens: int = 0  # see `RequestOutput`


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """The encoder's hidden states for one prompt, after its last layer and norm: transformers'
    `last_hidden_state`, pooled or as it is."""

    request_id: str
    encoder_tokens: int  # the prompt's, positions of its media included
    # [d_model], or without pooling [encoder_tokens, d_model].
    embedding: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one sample grew by since its previous delta. Its last one has `finish_reason`."""

    index: int  # the sample's
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    score: float | None = None  # a beam's, with `finish_reason`
    # See `RequestOutput`; on the first sample's first delta, where they were asked for.
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    parsed: Parsed | None = None  # see `CompletionOutput`; with `finish_reason`
