"""The fields of OpenAI's chat completions, and their JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tandem.cluster.ingress.http.answers import AnswerShape, Shown
from tandem.cluster.ingress.http.openai_fields import Fields, StreamOptions
from tandem.errors import InvalidRequest
from tandem.outputs import CompletionOutput, TextDelta, TokenLogprobs
from tandem.params import Params
from tandem.workers.requests.answers.detokenizer import Vocabulary
from tandem.workers.requests.answers.output_processor import PreparedRequest
from tandem.workers.requests.media.image_file import FIELD
from tandem.workers.requests.prompts.chat import Conversation, image_fields


class ChatBody(Fields):
    """What is neither a request option nor a parameter of decoding."""

    model: str | None = None
    messages: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None  # its older name
    logprobs: bool | None = None
    top_logprobs: int | None = None
    # vLLM's:
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def conversation(self) -> Conversation:
        """What the chat template is given; it is checked there."""
        goes_on = bool(self.continue_final_message)
        begins = self.add_generation_prompt
        return Conversation(
            messages=self.messages,
            add_generation_prompt=not goes_on if begins is None else begins,
            continue_final_message=goes_on,
            documents=self.documents,
            variables=self.chat_template_kwargs or {},
        )

    def image_field(self, name: str) -> str:
        """What the request calls an image that the validator finds at fault; any other name as it is."""
        return image_field(image_fields(self.messages), name) if name.startswith(FIELD) else name

    def params(self) -> tuple[dict[str, Any], Mapping[str, str]]:
        """The parameters of decoding by Tandem's names, and what a chat calls those it calls otherwise.

        Raises InvalidRequest for fields that contradict each other.
        """
        values = dict(self.model_extra or {})
        names = {"logprobs": "top_logprobs"}
        if self.logprobs:
            values["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs:
            raise InvalidRequest("needs logprobs: true", field="top_logprobs")
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise InvalidRequest(
                    f"is max_completion_tokens' older name, and they are {self.max_tokens} and "
                    f"{self.max_completion_tokens}",
                    field="max_tokens",
                )
            values["max_tokens"] = self.max_completion_tokens
            names["max_tokens"] = "max_completion_tokens"
        elif self.max_tokens is not None:
            values["max_tokens"] = self.max_tokens
        return values, names


def image_field(fields: Sequence[str], name: str) -> str:
    """What a request calls what is at fault: one of its images, which it calls `fields`; all of several; or
    anything else, whose name stays."""
    if not name.startswith(FIELD):
        return name
    number = name.removeprefix(f"{FIELD}.")
    if number.isdecimal():
        return fields[int(number)]
    return fields[0] if len(fields) == 1 else "messages"


class ChatShape(AnswerShape):
    """A chat completion's JSON."""

    id_prefix = "chatcmpl"
    object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        model: str,
        vocabulary: Vocabulary,
        prepared: Sequence[PreparedRequest],
        params: Params,
        shown: Shown,
    ) -> None:
        super().__init__(model, vocabulary, prepared, params, shown)
        self._texts = [self.token_texts(prepared[0]) for _ in range(params.outputs)]

    def choice(self, index: int, sample: CompletionOutput) -> dict[str, Any]:
        message = {"role": "assistant", "content": sample.text, "refusal": None}
        choice = {"index": index, "message": message, "logprobs": self._logprobs(index, sample.logprobs)}
        return self.add_sample(choice, sample)

    def choices_of(self, index: int, delta: TextDelta, *, first: bool) -> Iterator[dict[str, Any]]:
        if first:
            said: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
            yield {"index": index, "delta": said, "logprobs": None, "finish_reason": None}
        said = {"content": delta.text} if delta.text or delta.finish_reason is None else {}
        choice = {"index": index, "delta": said, "logprobs": self._logprobs(index, delta.logprobs)}
        yield self.add_sample(choice, delta)

    def add_prompt(self, answer: dict[str, Any], choice: dict[str, Any], prompt: dict[str, Any]) -> None:
        del choice  # a chat has one prompt
        answer.update(prompt)

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        content, texts = [], self._texts[index]
        for position in logprobs:
            content.append(
                {
                    **texts.entry(position.token_id, position.logprob),
                    "top_logprobs": [texts.entry(*entry) for entry in position.top],
                }
            )
            texts.advance(position.token_id)
        return {"content": content, "refusal": None}
