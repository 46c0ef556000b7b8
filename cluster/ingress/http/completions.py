"""The fields of OpenAI's completions, and their JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from tandem.cluster.ingress.http.answers import AnswerShape, Shown, TokenTexts
from tandem.cluster.ingress.http.openai_fields import Fields, StreamOptions
from tandem.errors import InvalidRequest
from tandem.inputs import ExplicitEncoderDecoderPrompt, Prompt, SingletonPrompt, TokensPrompt
from tandem.outputs import CompletionOutput, TextDelta, TokenLogprobs
from tandem.params import Params
from tandem.workers.requests.answers.detokenizer import Vocabulary
from tandem.workers.requests.answers.output_processor import PreparedRequest


class CompletionBody(Fields):
    """What is neither a request option nor a parameter of decoding."""

    model: str | None = None
    prompt: Any = None
    decoder_prompt: Any = None  # Tandem's: one for all prompts, or as many as there are
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    def prompts(self) -> list[Prompt]:
        """Raises InvalidRequest, naming the field."""
        encoders = prompts_of(self.prompt, "prompt")
        if self.decoder_prompt is None:
            return cast(list[Prompt], encoders)
        decoders = prompts_of(self.decoder_prompt, "decoder_prompt")
        if len(decoders) == 1:
            decoders *= len(encoders)
        if len(decoders) != len(encoders):
            raise InvalidRequest(
                f"one, or as many as the {len(encoders)} prompts, got {len(decoders)}", field="decoder_prompt"
            )
        return [
            ExplicitEncoderDecoderPrompt(encoder_prompt=encoder, decoder_prompt=decoder)
            for encoder, decoder in zip(encoders, decoders, strict=True)
        ]


def prompts_of(value: object, field: str) -> list[SingletonPrompt]:
    """A string, a list of strings, a list of ids, or a list of lists of ids. Raises InvalidRequest."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return cast(list[SingletonPrompt], value)
        if _are_ids(value):
            return [TokensPrompt(prompt_token_ids=value)]
        if all(isinstance(item, list) and _are_ids(item) for item in value):
            return [TokensPrompt(prompt_token_ids=item) for item in value]
    raise InvalidRequest(
        "must be a string, a list of strings, a list of token ids or a list of such lists, and not empty",
        field=field,
    )


def _are_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)


class CompletionShape(AnswerShape):
    """A completion's JSON."""

    id_prefix = "cmpl"
    object = chunk_object = "text_completion"

    def __init__(
        self,
        model: str,
        vocabulary: Vocabulary,
        prepared: Sequence[PreparedRequest],
        params: Params,
        shown: Shown,
    ) -> None:
        super().__init__(model, vocabulary, prepared, params, shown)
        self._logprobs = [
            _LogprobsShape(self.token_texts(one)) for one in prepared for _ in range(params.outputs)
        ]

    def choice(self, index: int, sample: CompletionOutput | TextDelta) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": sample.text,
            "logprobs": self._logprobs[index].shape(sample.logprobs),
        }
        return self.add_sample(choice, sample)

    def choices_of(self, index: int, delta: TextDelta, *, first: bool) -> Iterator[dict[str, Any]]:
        del first
        yield self.choice(index, delta)

    def add_prompt(self, answer: dict[str, Any], choice: dict[str, Any], prompt: dict[str, Any]) -> None:
        del answer
        choice.update(prompt)


class _LogprobsShape:
    """OpenAI's legacy shape: parallel lists over the tokens, one of them with the place in the choice's text
    where each begins."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._offset = 0

    def shape(self, logprobs: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        tokens: list[str] = []
        offsets: list[int] = []
        top: list[dict[str, float]] = []
        for position in logprobs:
            text = self._texts.text(position.token_id)
            tokens.append(self._texts.shown(position.token_id))
            offsets.append(self._offset)
            top.append(
                {
                    self._texts.shown(token_id): logprob
                    for token_id, logprob in reversed(position.top)  # the likeliest of equal texts stays
                }
            )
            if self._texts.advance(position.token_id):
                self._offset += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [position.logprob for position in logprobs],
            "top_logprobs": [dict(reversed(list(one.items()))) for one in top],
            "text_offset": offsets,
        }
