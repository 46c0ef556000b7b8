"""OpenAI's completions and models, for encoder-decoder models: `prompt` is the encoder's, the extra field
`decoder_prompt` begins the answer, and the request options are fields as well. All of `SamplingParams` may be
given, or of `BeamSearchParams` where one of its own asks for beams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from tandem.cluster.ingress.http.body import FIELDS, read_json, take_options, unless_disconnected
from tandem.cluster.ingress.http.completions import CompletionShape
from tandem.cluster.ingress.http.sse import EventStream
from tandem.cluster.ingress.service import Call, Piece, Service
from tandem.errors import InvalidRequest, renaming_fields
from tandem.inputs import (
    ExplicitEncoderDecoderPrompt,
    Prompt,
    RequestOptions,
    SingletonPrompt,
    TokensPrompt,
)
from tandem.params import Params, SamplingParams, invalid, params_of
from tandem.workers.requests.output_processor import PreparedRequest

# OpenAI's parameters that we do not have, with the value that asks for nothing.
_UNSUPPORTED: Final[dict[str, object]] = {
    "best_of": 1,
    "echo": False,
    "suffix": "",
}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False


class _Body(BaseModel):
    """What is neither a request option nor a decoding parameter; the latter are left in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None
    prompt: Any = None
    decoder_prompt: Any = None  # one for all prompts, or as many as there are
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None  # OpenAI's, for its monitoring of abuse; of no effect here


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        async with AsyncExitStack() as resources:
            call = resources.enter_context(service.call("http", "completions"))
            values = await read_json(request, service.config.limits)
            options = take_options(request, values)
            body = _parse(values)
            params = _params(body)
            prepared = await _prepare(service, call, body, params, options)
            shape = CompletionShape(service.model.id, service.request_builder.vocabulary, prepared, params)
            if not body.stream:
                outputs = await unless_disconnected(request.receive, call.generate(prepared))
                return JSONResponse(shape.whole(outputs))
            pieces = await resources.enter_async_context(aclosing(call.stream(prepared)))
            # Awaited here, so that an error before the first piece has a status of its own.
            first = await unless_disconnected(request.receive, _first(pieces))
            usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(_chunks(shape, first, pieces, usage=usage), resources.pop_all())

    @router.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        service.request_builder.check_model(name)
        return JSONResponse(_model(service))

    return router


async def _prepare(
    service: Service, call: Call, body: _Body, params: Params, options: RequestOptions
) -> list[PreparedRequest]:
    prompts, limit = _prompts(body), service.config.limits.prompts
    if len(prompts) * params.outputs > limit:
        raise InvalidRequest(
            f"{len(prompts)} prompts of {params.outputs} answers each exceed {limit} in all", field="prompt"
        )
    with renaming_fields(FIELDS):
        return await call.prepare(prompts, params, **options)


def _parse(values: dict[str, Any]) -> _Body:
    try:
        body = _Body.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("is for streams only", field="stream_options")
    return body


def _params(body: _Body) -> Params:
    """OpenAI lets null stand for any parameter's default."""
    values = {name: value for name, value in (body.model_extra or {}).items() if value is not None}
    for name in _UNSUPPORTED.keys() & values.keys() - SamplingParams.model_fields.keys():
        if values.pop(name) != _UNSUPPORTED[name]:
            raise InvalidRequest("is not supported", field=name)
    return params_of(values)


def _prompts(body: _Body) -> list[Prompt]:
    encoders = _singletons(body.prompt, "prompt")
    if body.decoder_prompt is None:
        return cast(list[Prompt], encoders)
    decoders = _singletons(body.decoder_prompt, "decoder_prompt")
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


def _singletons(value: object, field: str) -> list[SingletonPrompt]:
    """A string, a list of strings, a list of ids, or a list of lists of ids."""
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


async def _first(pieces: AsyncGenerator[Piece]) -> Piece:
    return await anext(pieces)


async def _chunks(
    shape: CompletionShape, first: Piece, rest: AsyncIterator[Piece], *, usage: bool
) -> AsyncIterator[dict[str, Any]]:
    for chunk in shape.chunks(first):
        yield chunk
    async for piece in rest:
        for chunk in shape.chunks(piece):
            yield chunk
    if usage:
        yield shape.usage_chunk()


def _model(service: Service) -> dict[str, Any]:
    model = service.model
    return {
        "id": model.id,
        "object": "model",
        "created": service.started,
        "owned_by": "tandem",
        "max_model_len": model.max_encoder_tokens,
    }
