"""OpenAI's JSON for a completion: whole, or chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from tandem.cluster.ingress.service import Piece
from tandem.outputs import RequestOutput, TokenLogprobs
from tandem.params import Params
from tandem.workers.requests.detokenizer import Vocabulary
from tandem.workers.requests.output_processor import PreparedRequest


class CompletionShape:
    """Shapes the answer to one request. Choices are numbered through: the first prompt's samples, then the
    second's. `finish_reason` may be `deadline`, which OpenAI does not have: the time ran out."""

    def __init__(
        self,
        model: str,
        vocabulary: Vocabulary,
        prepared: Sequence[PreparedRequest],
        params: Params,
    ) -> None:
        self._head = {
            "id": f"cmpl-{prepared[0].request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._n = params.outputs
        self._vocabulary = vocabulary
        self._prompt_tokens = sum(
            len(one.encoder_prompt_token_ids) + len(one.context_ids) for one in prepared
        )
        self._completion_tokens = 0
        self._logprobs = [
            _LogprobsShape(vocabulary, params.skip_special_tokens, one.context_ids)
            for one in prepared
            for _ in range(params.outputs)
        ]

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        choices = []
        for number, output in enumerate(outputs):
            for sample in output.outputs:
                self._completion_tokens += len(sample.token_ids)
                index = number * self._n + sample.index
                logprobs = self._logprobs[index].shape(sample.logprobs)
                choice = _choice(
                    index, sample.text, logprobs, sample.finish_reason, sample.stop_reason, sample.score
                )
                self._add_prompt_logprobs(choice, output.prompt_logprobs)
                choices.append(choice)
        return {**self._head, "choices": choices, "usage": self._usage()}

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The piece as a chunk; none where it has nothing to show yet."""
        delta = piece.delta
        self._completion_tokens += len(delta.token_ids)
        if delta.text or delta.logprobs or delta.finish_reason is not None:
            index = piece.prompt * self._n + delta.index
            logprobs = self._logprobs[index].shape(delta.logprobs)
            choice = _choice(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason, delta.score)
            self._add_prompt_logprobs(choice, delta.prompt_logprobs)
            yield {**self._head, "choices": [choice]}

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._usage()}

    def _add_prompt_logprobs(
        self, choice: dict[str, Any], logprobs: Sequence[TokenLogprobs | None] | None
    ) -> None:
        """vLLM's extension: for each token of the decoder prompt, the entries of the token and of its
        likeliest alternatives, by id; null for the first token."""
        if logprobs is not None:
            choice["prompt_logprobs"] = [token and self._prompt_entries(token) for token in logprobs]

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

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }


def _choice(
    index: int,
    text: str,
    logprobs: dict[str, Any] | None,
    finish_reason: str | None,
    stop_reason: int | str | None,
    score: float | None,
) -> dict[str, Any]:
    choice = {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
        "stop_reason": stop_reason,  # vLLM's extension: the stop id or text, null for EOS
    }
    if score is not None:
        choice["score"] = score  # Tandem's extension, for beam search
    return choice


class _LogprobsShape:
    """OpenAI's legacy shape: parallel lists over the tokens, one of them with the place in the choice's text
    where each begins."""

    def __init__(self, vocabulary: Vocabulary, skip_special_tokens: bool, context_ids: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        special = vocabulary.special_ids if skip_special_tokens else frozenset[int]()
        self._hidden = special | vocabulary.timestamp_ids
        # The text's last token; None: the next one is its first.
        self._last = next((i for i in reversed(context_ids) if i not in self._hidden), None)
        self._offset = 0

    def shape(self, logprobs: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        tokens: list[str] = []
        offsets: list[int] = []
        top: list[dict[str, float]] = []
        for position in logprobs:
            text = self._text(position.token_id)
            tokens.append(text)
            offsets.append(self._offset)
            top.append(
                {
                    self._text(token_id): logprob
                    for token_id, logprob in reversed(position.top)  # the likeliest of equal texts stays
                }
            )
            if position.token_id not in self._hidden:
                self._offset += len(text)
                self._last = position.token_id
        return {
            "tokens": tokens,
            "token_logprobs": [position.logprob for position in logprobs],
            "top_logprobs": [dict(reversed(list(one.items()))) for one in top],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        return self._vocabulary.token_text(token_id, first=self._last is None, after=self._last)
