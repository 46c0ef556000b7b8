"""A request's answer: engine deltas → text deltas and the finished answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat

from tandem.outputs import CompletionOutput, Parse, RequestOutput, TextDelta, TokenLogprobs
from tandem.workers.request import Delta, EngineRequest, Hypothesis
from tandem.workers.requests.answers.detokenizer import Detokenizer, StopStrings, Vocabulary


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A valid request: what its answer repeats, and the engine requests that make it."""

    request_id: str
    encoder_prompt: str | None  # as given; None where only ids were
    encoder_prompt_token_ids: list[int]
    prompt: str | None  # the decoder prompt as given
    prompt_token_ids: list[int]  # what the decoder starts from, start token included
    context_ids: list[int]  # the decoder prompt alone: the text goes on from it
    # One for each sample or target, or one that searches beams.
    sequences: list[EngineRequest] = field(repr=False)
    outputs: int  # samples, beams to return, or targets
    stop: Sequence[str] = ()  # texts that end a sample
    skip_special_tokens: bool = True
    parse: Parse | None = field(default=None, repr=False)  # of a whole answer, special tokens included
    media_tokens: int = 0  # positions of the encoder input that its media take, their padding included

    @property
    def encoder_tokens(self) -> int:
        """Length of the encoder input: its tokens, and the positions that its media take."""
        return len(self.sequences[0].encoder.token_ids)


class OutputProcessor:
    """Turns the deltas of a request's samples, in any order between samples, into its answer.

    A stop string ends a sample here, not in the engine: after each `push`, ask `stopped(index)` and
    cancel the engine request if so. Whatever the engine still sends for it is ignored. A beam, which comes
    whole, is cut at it.
    """

    def __init__(self, vocabulary: Vocabulary, prepared: PreparedRequest) -> None:
        self._prepared = prepared
        self._by_index = [_Sample(index, vocabulary, prepared) for index in range(prepared.outputs)]
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None
        ids = [sample.request_id for sample in prepared.sequences]
        self._samples = (
            {request_id: [sample] for request_id, sample in zip(ids, self._by_index, strict=True)}
            if len(ids) > 1
            else {ids[0]: self._by_index}
        )

    def push(self, delta: Delta) -> list[TextDelta]:
        """What the answer grew by: a sample's delta, one for each beam where the search ended, or nothing.
        The text may be empty while it is held back. Raises the delta's error."""
        if delta.error is not None:
            raise delta.error
        pieces = []
        hypotheses = delta.hypotheses or repeat(None)
        for sample, hypothesis in zip(self._samples[delta.request_id], hypotheses, strict=False):
            if sample.output.finish_reason is None:
                piece = sample.push(delta) if hypothesis is None else sample.take(delta, hypothesis)
                pieces += [] if piece is None else [piece]
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = [None, *delta.prompt_logprobs]
            pieces = [replace(piece, prompt_logprobs=self._prompt_logprobs) for piece in pieces]
        return pieces

    def stopped(self, index: int) -> bool:
        """Whether a stop string ended this sample."""
        return self._by_index[index].stops.matched is not None

    @property
    def watches(self) -> bool:
        """Whether there are stop strings to look for."""
        return self._by_index[0].watches

    @property
    def finished(self) -> bool:
        return all(sample.output.finish_reason is not None for sample in self._by_index)

    def output(self) -> RequestOutput:
        """The answer so far."""
        prepared = self._prepared
        return RequestOutput(
            request_id=prepared.request_id,
            encoder_prompt=prepared.encoder_prompt,
            encoder_prompt_token_ids=prepared.encoder_prompt_token_ids,
            prompt=prepared.prompt,
            prompt_token_ids=prepared.prompt_token_ids,
            outputs=[sample.output for sample in self._by_index],
            prompt_logprobs=self._prompt_logprobs,
            encoder_tokens=prepared.encoder_tokens,
            media_tokens=prepared.media_tokens,
        )


class _Sample:
    def __init__(self, index: int, vocabulary: Vocabulary, prepared: PreparedRequest) -> None:
        self.stops = StopStrings(prepared.stop)
        self.watches = bool(prepared.stop)
        self._parse, self._prefix = prepared.parse, prepared.prompt_token_ids
        # Stop strings count, like EOS, only after this many tokens.
        self._min_tokens = prepared.sequences[0].decoding.min_tokens
        self._detokenizer = Detokenizer(
            vocabulary, skip_special_tokens=prepared.skip_special_tokens, context_ids=prepared.context_ids
        )
        wanted = prepared.sequences[0].decoding.logprobs is not None
        self.output = CompletionOutput(
            index=index,
            text="",
            token_ids=[],
            logprobs=[] if wanted else None,
            cumulative_logprob=0.0 if wanted else None,
        )

    def take(self, delta: Delta, found: Hypothesis) -> TextDelta | None:
        """The whole answer of a beam."""
        self.output.score = found.score
        return self.push(
            Delta(
                delta.request_id,
                found.token_ids,
                finish_reason=found.finish_reason,
                stop_reason=found.stop_reason,
            )
        )

    def push(self, delta: Delta) -> TextDelta | None:
        ids, text = self._read(delta.token_ids)
        finish_reason = delta.finish_reason
        stop_reason: int | str | None = delta.stop_reason
        if delta.last and self.stops.matched is None:
            text += self.stops.push(self._detokenizer.flush()) + self.stops.flush()
        if self.stops.matched is not None:
            finish_reason, stop_reason = "stop", self.stops.matched
        if not ids and not text and finish_reason is None:
            return None
        logprobs = delta.logprobs[: len(ids)] if delta.logprobs is not None else None
        self._grow(ids, text, logprobs)
        self.output.finish_reason, self.output.stop_reason = finish_reason, stop_reason
        if self._parse is not None and finish_reason is not None:
            self.output.parsed = self._parse([*self._prefix, *self.output.token_ids])
        return TextDelta(
            self.output.index, text, ids, logprobs, finish_reason, stop_reason, self.output.score,
            parsed=self.output.parsed,
        )  # fmt: skip

    def _read(self, ids: list[int]) -> tuple[list[int], str]:
        """The ids up to the one that completed a stop string, and the text that has become final."""
        if not self.watches:
            return ids, self._detokenizer.push(ids)
        text, seen = "", len(self.output.token_ids)
        for count, token_id in enumerate(ids, 1):
            piece = self._detokenizer.push([token_id])
            text += piece if seen + count <= self._min_tokens else self.stops.push(piece)
            if self.stops.matched is not None:
                return ids[:count], text
        return ids, text

    def _grow(self, ids: list[int], text: str, logprobs: list[TokenLogprobs] | None) -> None:
        output = self.output
        output.text += text
        output.token_ids += ids
        if logprobs is not None and output.logprobs is not None:
            output.logprobs += logprobs
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + sum(
                position.logprob for position in logprobs
            )
