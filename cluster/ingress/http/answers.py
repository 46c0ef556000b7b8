"""What the JSON of OpenAI's completions and chats has in common: whole, or chunk by chunk."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from tandem.cluster.ingress.http.openai_fields import StreamOptions
from tandem.cluster.ingress.service import Piece
from tandem.outputs import CompletionOutput, RequestOutput, TextDelta, TokenLogprobs
from tandem.params import Params
from tandem.workers.requests.answers.detokenizer import Vocabulary
from tandem.workers.requests.answers.output_processor import PreparedRequest


@dataclass(frozen=True, slots=True)
class Shown:
    """What an answer has besides its texts, as the request asks. The first two are vLLM's."""

    token_ids: bool = False  # the prompts' and the answers'
    tokens_as_ids: bool = False  # `token_id:7` in place of a token's text, in log-probabilities
    stream: StreamOptions | None = None


_BYTES: Final = "bytes:"  # how a part of a character is shown, see `Vocabulary.token_text`


class TokenTexts:
    """A choice's tokens in log-probabilities. What a token adds to a text depends on the one before it."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        context_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        as_ids: bool = False,
    ) -> None:
        """The text goes on from `context_ids`. `as_ids`: vLLM's `token_id:7` is shown in place of a text."""
        self._vocabulary, self._as_ids = vocabulary, as_ids
        special = vocabulary.special_ids if skip_special_tokens else frozenset[int]()
        self._hidden = special | vocabulary.timestamp_ids
        # The text's last token; None: the next one is its first.
        self._last = next((i for i in reversed(context_ids) if i not in self._hidden), None)

    def text(self, token_id: int) -> str:
        return self._vocabulary.token_text(token_id, first=self._last is None, after=self._last)

    def shown(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self.text(token_id)

    def entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """A token as OpenAI has it in log-probabilities."""
        text = self.text(token_id)
        data = text.encode()
        if text.startswith(_BYTES + "\\x"):
            data = bytes.fromhex(text.removeprefix(_BYTES).replace("\\x", ""))
        return {"token": self.shown(token_id), "logprob": logprob, "bytes": list(data)}

    def advance(self, token_id: int) -> bool:
        """Goes on behind the choice's next token. Returns whether the choice's text has it."""
        if token_id in self._hidden:
            return False
        self._last = token_id
        return True


class AnswerShape(ABC):
    """Shapes the answer to one request. Choices are numbered through: the first prompt's samples, then the
    second's. `finish_reason` may be `deadline`, which OpenAI does not have: the time ran out."""

    id_prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(
        self,
        model: str,
        vocabulary: Vocabulary,
        prepared: Sequence[PreparedRequest],
        params: Params,
        shown: Shown,
    ) -> None:
        self._head = {
            "id": f"{self.id_prefix}-{prepared[0].request_id}",
            "created": int(time.time()),
            "model": model,
        }
        self._n = params.outputs
        self._vocabulary, self._shown = vocabulary, shown
        self._prompt_ids = [one.encoder_prompt_token_ids or one.prompt_token_ids for one in prepared]
        self._prompt_tokens = sum(one.encoder_tokens + len(one.context_ids) for one in prepared)
        self._image_tokens = sum(one.media_tokens for one in prepared)  # these requests have no other media
        self._completion_tokens = 0
        self._begun: set[int] = set()  # choices that a stream has sent something of

    @abstractmethod
    def choice(self, index: int, sample: CompletionOutput) -> dict[str, Any]:
        """A whole answer's choice."""

    @abstractmethod
    def choices_of(self, index: int, delta: TextDelta, *, first: bool) -> Iterator[dict[str, Any]]:
        """What a delta is in a stream, one chunk's choice each. `first`: it is the choice's first."""

    @abstractmethod
    def add_prompt(self, answer: dict[str, Any], choice: dict[str, Any], prompt: dict[str, Any]) -> None:
        """Adds what is asked for about a choice's prompt to the choice, or to the answer or chunk."""

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        answer: dict[str, Any] = {**self._head, "object": self.object, "choices": choices}
        for number, output in enumerate(outputs):
            for sample in output.outputs:
                self._completion_tokens += len(sample.token_ids)
                choice = self.choice(number * self._n + sample.index, sample)
                self.add_prompt(answer, choice, self._prompt(number, output.prompt_logprobs))
                choices.append(choice)
        return {**answer, "usage": self._usage()}

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The piece as chunks; none where it has nothing to show yet."""
        delta = piece.delta
        self._completion_tokens += len(delta.token_ids)
        if not self._shows(delta):
            return
        index = piece.prompt * self._n + delta.index
        first = index not in self._begun
        self._begun.add(index)
        for choice in self.choices_of(index, delta, first=first):
            chunk = self._chunk([choice])
            if first:
                self.add_prompt(chunk, choice, self._prompt(piece.prompt, delta.prompt_logprobs))
                first = False
            yield chunk

    def last_chunks(self) -> Iterator[dict[str, Any]]:
        """What a stream ends with, before `[DONE]`."""
        if self._shown.stream is not None and self._shown.stream.include_usage:
            yield {**self._chunk([]), "usage": self._usage()}

    def token_texts(self, prepared: PreparedRequest) -> TokenTexts:
        """For one choice of a prompt."""
        return TokenTexts(
            self._vocabulary,
            prepared.context_ids,
            skip_special_tokens=prepared.skip_special_tokens,
            as_ids=self._shown.tokens_as_ids,
        )

    def add_sample(self, choice: dict[str, Any], sample: CompletionOutput | TextDelta) -> dict[str, Any]:
        """Adds to a choice why it ended, and what goes beyond OpenAI's: vLLM's stop id or text, null for EOS,
        and token ids; Tandem's beam score, and what the text holds where the prompt asks for a task."""
        choice["finish_reason"], choice["stop_reason"] = sample.finish_reason, sample.stop_reason
        if sample.score is not None:
            choice["score"] = sample.score
        if sample.parsed is not None:
            choice["parsed"] = sample.parsed
        if self._shown.token_ids:
            choice["token_ids"] = sample.token_ids
        return choice

    def _shows(self, delta: TextDelta) -> bool:
        if delta.text or delta.logprobs or delta.finish_reason is not None:
            return True
        return delta.prompt_logprobs is not None or (self._shown.token_ids and bool(delta.token_ids))

    def _prompt(self, number: int, logprobs: Sequence[TokenLogprobs | None] | None) -> dict[str, Any]:
        """vLLM's extensions: the prompt's token ids; for each token of the decoder prompt, the entries of the
        token and of its likeliest alternatives, by id, and null for the first token."""
        said: dict[str, Any] = {}
        if self._shown.token_ids:
            said["prompt_token_ids"] = self._prompt_ids[number]
        if logprobs is not None:
            said["prompt_logprobs"] = [token and self._prompt_entries(token) for token in logprobs]
        return said

    def _prompt_entries(self, token: TokenLogprobs) -> dict[str, Any]:
        likeliest = [(rank, *entry) for rank, entry in enumerate(token.top, 1)]
        return {
            str(token_id): {
                "logprob": logprob,
                "rank": rank,
                "decoded_token": self._vocabulary.token_text(token_id, first=False),
            }
            for rank, token_id, logprob in [*likeliest, (token.rank, token.token_id, token.logprob)]
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        options = self._shown.stream
        if options is not None and options.include_usage:
            chunk["usage"] = self._usage() if options.continuous_usage_stats else None
        return chunk

    def _usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }
        if self._image_tokens:
            text = self._prompt_tokens - self._image_tokens
            usage["prompt_tokens_details"] = {"image_tokens": self._image_tokens, "text_tokens": text}
        return usage
