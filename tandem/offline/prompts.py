"""Prompts, and what is asked of each, as requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tandem.errors import BAD_PROMPT, BadPrompt, InvalidRequest
from tandem.inputs import Prompt, TaskOptions
from tandem.params import Params, for_each
from tandem.workers.requests.request_builder import PreparedRequest, RequestBuilder, naming_prompt

OneOrEach = str | Sequence[str | None] | None


def each_options(
    count: int, source_language: OneOrEach, target_language: OneOrEach, task: OneOrEach
) -> list[TaskOptions]:
    """The options of each of `count` prompts. Raises InvalidRequest, naming the field, for a list of another
    length."""

    def each(values: OneOrEach, field: str) -> list[str | None]:
        if values is None or isinstance(values, str):
            return [values] * count
        if len(values) != count:
            raise InvalidRequest(f"got {len(values)} for {count} prompts", field=field)
        return list(values)

    columns = (
        each(source_language, "source_language"),
        each(target_language, "target_language"),
        each(task, "task"),
    )
    return [
        TaskOptions(source_language=source, target_language=target, task=own)
        for source, target, own in zip(*columns, strict=True)
    ]


def prepare_each(
    builder: RequestBuilder,
    prompts: Sequence[Prompt],
    sampling_params: Params | Sequence[Params | None] | None,
    options: Sequence[TaskOptions],
    truncate_prompt_tokens: int | None,
) -> Iterator[PreparedRequest | BadPrompt]:
    """Each prompt's request, or why it is refused. Raises InvalidRequest for a list of parameters that is not
    as long as that of the prompts."""
    each_params = for_each(sampling_params, len(prompts), "sampling_params")
    for prompt, params, own in zip(prompts, each_params, options, strict=True):
        try:
            request: PreparedRequest | BadPrompt = builder.prepare(
                prompt, params, truncate_prompt_tokens=truncate_prompt_tokens, **own
            )
        except BAD_PROMPT as error:
            request = error
        yield request


def prepare_all(
    builder: RequestBuilder,
    prompts: Sequence[Prompt],
    sampling_params: Params | Sequence[Params | None] | None,
    options: Sequence[TaskOptions],
    truncate_prompt_tokens: int | None,
) -> list[PreparedRequest]:
    """As `prepare_each`, but raises the first refusal, saying which prompt is meant."""
    prepared: list[PreparedRequest] = []
    for request in prepare_each(builder, prompts, sampling_params, options, truncate_prompt_tokens):
        with naming_prompt(len(prepared), len(prompts)):
            if not isinstance(request, PreparedRequest):
                raise request
        prepared.append(request)
    return prepared
