"""OpenAI's completions, chat completions, embeddings and models.

The encoder of an encoder-decoder model reads `prompt`, or the chat, and the extra field `decoder_prompt`
begins the answer. The request options are fields as well. All of `SamplingParams` may be given, or of
`BeamSearchParams` where one of its own asks for beams.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from tandem.cluster.ingress.arrivals import http_arrival
from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.http.answers import AnswerShape, Shown
from tandem.cluster.ingress.http.body import (
    FIELDS,
    read_json,
    take_options,
    unless_disconnected,
    validated,
)
from tandem.cluster.ingress.http.capabilities import capabilities
from tandem.cluster.ingress.http.chat import ChatBody, ChatShape, image_field
from tandem.cluster.ingress.http.completions import CompletionBody, CompletionShape
from tandem.cluster.ingress.http.embeddings import EmbeddingShape
from tandem.cluster.ingress.http.openai_fields import CHAT, COMPLETION, decoding_params, refuse_unsupported
from tandem.cluster.ingress.http.sse import EventStream
from tandem.cluster.ingress.service import Piece, Service
from tandem.errors import InvalidRequest, renaming_fields
from tandem.inputs import RequestOptions, task_options
from tandem.workers.requests.answers.output_processor import PreparedRequest
from tandem.workers.requests.prompts.chat import image_fields

# What the validator calls a prompt, in the words of chats and of embeddings.
_OF_CHATS: Final = dict.fromkeys(("prompt", "prompt_token_ids", "encoder_prompt"), "messages")
_OF_EMBEDDINGS: Final = dict.fromkeys(("prompt", "prompt_token_ids", "prompts"), "input")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request's body, read."""

    values: dict[str, Any]  # all but the options
    options: RequestOptions
    names: Mapping[str, str]  # what the validator calls the fields, in the words of the request


@dataclass(frozen=True, slots=True)
class _Generation:
    """What is to be generated, and how it is shown."""

    prepared: list[PreparedRequest]
    shape: AnswerShape
    streams: bool
    # What the validator and the workers call a field, in the words of the request.
    named: Callable[[str], str] = str


_Prepare = Callable[[Service, Call, _Asked], Awaitable[_Generation]]


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        return await _generate(service, request, "completions", _completion)

    @router.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        media = service.request_builder.reads_images
        return await _generate(service, request, "chat_completions", _chat, media=media)

    @router.post("/embeddings")
    async def embeddings(request: Request) -> Response:
        with Call(service, "http", "embeddings", http_arrival(request.scope)) as call:
            asked = await _read(service, request)
            shape = EmbeddingShape.of(asked.values, service.model.id, service.request_builder.info)
            with renaming_fields({**asked.names, **_OF_EMBEDDINGS}):
                prepared = await call.prepare_embed(shape.prompts, shape.pooling, **asked.options)
            outputs = await unless_disconnected(request.receive, call.embed(prepared))
        return JSONResponse(shape.whole(outputs))

    @router.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        service.request_builder.check_model(name)
        return JSONResponse(_model(service))

    return router


async def _generate(
    service: Service, request: Request, method: str, prepare: _Prepare, *, media: bool = False
) -> Response:
    """media: the body may have files, see `read_json`."""
    async with AsyncExitStack() as resources:
        call = resources.enter_context(Call(service, "http", method, http_arrival(request.scope)))
        asked = await prepare(service, call, await _read(service, request, media=media))
        prepared, shape = asked.prepared, asked.shape
        with renaming_fields(asked.named):
            if not asked.streams:
                outputs = await unless_disconnected(request.receive, call.generate(prepared))
                return JSONResponse(shape.whole(outputs))
            pieces = await resources.enter_async_context(aclosing(call.stream(prepared)))
            # The first piece is awaited here, so that an error before it has a status of its own.
            first = await unless_disconnected(request.receive, _first(pieces))
        return EventStream(_chunks(shape, first, pieces), resources.pop_all())


async def _read(service: Service, request: Request, *, media: bool = False) -> _Asked:
    """OpenAI lets null stand for any field's default. vLLM has a request's id in the body, too, which comes
    before the header's: Serve sets that where the client does not."""
    values = await read_json(request, service.config.limits, media=media)
    values = {name: value for name, value in values.items() if value is not None}
    request_id, names = values.pop("request_id", None), FIELDS
    options = take_options(request, values)
    if request_id is not None:
        if not isinstance(request_id, str):
            raise InvalidRequest("must be a string", field="request_id")
        options["request_id"] = request_id
        names = {**FIELDS, "request_id": "request_id"}
    return _Asked(values, options, names)


async def _completion(service: Service, call: Call, asked: _Asked) -> _Generation:
    refuse_unsupported(asked.values, COMPLETION)
    body = validated(CompletionBody, asked.values)
    shown = _shown(body)
    params = decoding_params(dict(body.model_extra or {}))
    prompts, limit = body.prompts(), service.config.limits.prompts
    if len(prompts) * params.outputs > limit:
        raise InvalidRequest(
            f"{len(prompts)} prompts of {params.outputs} answers each exceed {limit} in all", field="prompt"
        )
    with renaming_fields(asked.names):
        prepared = await call.prepare(prompts, params, **asked.options)
    shape = CompletionShape(service.model.id, service.request_builder.vocabulary, prepared, params, shown)
    return _Generation(prepared, shape, bool(body.stream))


async def _chat(service: Service, call: Call, asked: _Asked) -> _Generation:
    request_builder = service.request_builder
    request_builder.check_model(asked.options.get("model"))
    if not request_builder.chats:
        raise InvalidRequest(
            f"{request_builder.info.name!r} has no chat template; use /v1/completions", field="messages"
        )
    for name in task_options(asked.options):
        raise InvalidRequest("does not go with a chat, in which the messages say it", field=name)
    refuse_unsupported(asked.values, CHAT)
    body = validated(ChatBody, asked.values)
    shown = _shown(body)
    given, names = body.params()
    with renaming_fields(names):
        params = decoding_params(given)
    with renaming_fields(body.image_field), renaming_fields({**asked.names, **_OF_CHATS, **names}):
        prepared = [await call.prepare_chat(body.conversation(), params, **asked.options)]
    shape = ChatShape(service.model.id, request_builder.vocabulary, prepared, params, shown)
    # The names alone are kept while the answer is generated, not the images in base64.
    fields = image_fields(body.messages) if prepared[0].sequences[0].encoder.media else []
    return _Generation(prepared, shape, bool(body.stream), partial(image_field, fields))


def _shown(body: CompletionBody | ChatBody) -> Shown:
    options = body.stream_options
    if not body.stream and options is not None and options.model_fields_set:
        raise InvalidRequest("is for streams only", field="stream_options")
    return Shown(bool(body.return_token_ids), bool(body.return_tokens_as_token_ids), options)


async def _first(pieces: AsyncGenerator[Piece]) -> Piece:
    return await anext(pieces)


async def _chunks(
    shape: AnswerShape, first: Piece, rest: AsyncIterator[Piece]
) -> AsyncIterator[dict[str, Any]]:
    for chunk in shape.chunks(first):
        yield chunk
    async for piece in rest:
        for chunk in shape.chunks(piece):
            yield chunk
    for chunk in shape.last_chunks():
        yield chunk


def _model(service: Service) -> dict[str, Any]:
    model = service.model
    return {
        "id": model.id,
        "object": "model",
        "created": service.started,
        "owned_by": "tandem",
        "root": model.id,  # vLLM's, like the next two; its benchmark reads it
        "parent": None,
        "max_model_len": model.max_encoder_tokens,
        "capabilities": capabilities(service.request_builder),
    }
