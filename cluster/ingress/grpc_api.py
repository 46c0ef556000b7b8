"""The gRPC side of the ingress: the methods of `tandem.v1.InferenceService` and `grpc.health.v1.Health`.

Ray Serve calls them by the last part of the RPC's path. `rpc` registers them so that they are given bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any, Final, TypeVar

from grpc_health.v1 import health_pb2

from tandem.cluster.ingress.arrivals import grpc_arrival
from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.edge.guard import key_of
from tandem.cluster.ingress.service import Service
from tandem.errors import InternalError, InvalidRequest, ModelNotFound, TandemError, renaming_fields
from tandem.protocol import wire, wire_answers, wire_live, wire_transcription
from tandem.protocol.rpc import SERVICE, MessageT, check_size, parse, set_error
from tandem.v1 import inference_pb2 as pb
from tandem.workers.requests.answers.output_processor import PreparedRequest
from tandem.workers.transcription.builder import PreparedTranscription

_SERVICES: Final = ("", SERVICE.full_name)  # whose health can be asked for; "" is the whole server
_WATCH_S: Final = 1.0  # between looks at the health for Watch

# What the validator calls the prompts of Embed, in its message's words.
_EMBED_FIELDS: Final = {
    **{name: ours.replace("encoder_prompt", "encoder_prompts") for name, ours in wire.FIELDS.items()},
    "prompts": "encoder_prompts",
}

TranscribeT = TypeVar("TranscribeT", pb.TranscribeRequest, pb.TranscribeStreamRequest)
RequestT = TypeVar("RequestT", pb.GenerateRequest, pb.GenerateStreamRequest)


class GrpcApi:
    """To be inherited by the deployment. `_service` is set in its constructor."""

    _service: Service

    async def Generate(self, request: bytes, grpc_context: Any) -> pb.GenerateResponse:
        with self._call("Generate", grpc_context) as call, renaming_fields(wire.FIELDS):
            prepared = await self._prepare(call, pb.GenerateRequest, request)
            [output] = await call.generate([prepared])
            return wire_answers.generate_response(output)

    async def GenerateStream(
        self, request: bytes, grpc_context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        with self._call("GenerateStream", grpc_context) as call, renaming_fields(wire.FIELDS):
            prepared = await self._prepare(call, pb.GenerateStreamRequest, request)
            # Not before the first piece: gRPC tries a call that finds no worker again only as long as nothing
            # has come back.
            started: pb.Started | None = pb.Started(
                request_id=prepared.request_id, prompt=wire_answers.prompt_info(prepared)
            )
            generated, unfinished = 0, prepared.outputs
            async with aclosing(call.stream([prepared])) as pieces:
                async for piece in pieces:
                    delta, usage = piece.delta, None
                    generated += len(delta.token_ids)
                    unfinished -= delta.finish_reason is not None
                    if not unfinished:
                        usage = wire_answers.usage(prepared, generated)
                    yield wire_answers.stream_response(delta, started, usage)
                    started = None

    async def Score(self, request: bytes, grpc_context: Any) -> pb.ScoreResponse:
        with self._call("Score", grpc_context) as call, renaming_fields(wire.FIELDS):
            message = self._parse(pb.ScoreRequest, request)
            prepared = await call.prepare_score(
                wire.prompt_of(message), wire.targets_of(message), **wire.options_of(message.options)
            )
            return wire_answers.score_response(await call.score(prepared))

    async def Embed(self, request: bytes, grpc_context: Any) -> pb.EmbedResponse:
        with self._call("Embed", grpc_context) as call, renaming_fields(_EMBED_FIELDS):
            message = self._parse(pb.EmbedRequest, request)
            prepared = await call.prepare_embed(
                wire.embed_prompts_of(message),
                wire.pooling_of(message),
                **wire.options_of(message.options),
            )
            return wire_answers.embed_response(prepared.request_id, await call.embed(prepared))

    async def Transcribe(self, request: bytes, grpc_context: Any) -> pb.TranscribeResponse:
        with self._call("Transcribe", grpc_context) as call:
            prepared = await self._prepare_transcription(call, pb.TranscribeRequest, request)
            return wire_transcription.transcribe_response(
                prepared.request_id, await call.transcription(prepared)
            )

    async def TranscribeStream(
        self, request: bytes, grpc_context: Any
    ) -> AsyncIterator[pb.TranscribeStreamResponse]:
        with self._call("TranscribeStream", grpc_context) as call:
            prepared = await self._prepare_transcription(call, pb.TranscribeStreamRequest, request)
            async with aclosing(call.transcription_deltas(prepared)) as deltas:
                async for delta in deltas:
                    yield wire_transcription.transcribe_stream_response(prepared.request_id, delta)

    async def TranscribeLive(
        self, requests: AsyncIterator[bytes], grpc_context: Any
    ) -> AsyncIterator[pb.TranscribeLiveResponse]:
        with self._call("TranscribeLive", grpc_context) as call:
            messages = self._live_messages(requests)
            with renaming_fields(wire_live.FIELDS):
                start = await anext(messages, None)
                if start is None or start.WhichOneof("content") != "start":
                    raise InvalidRequest("is what the first message has", field="start")
                prepared = await call.prepare_live(
                    wire_live.params_of(start.start), **wire_live.call_options_of(start.start)
                )
            async with aclosing(call.transcribe_live(prepared, wire_live.sound_of(messages))) as deltas:
                async for delta in deltas:
                    yield wire_live.live_response(prepared.request_id, delta)

    async def _live_messages(self, requests: AsyncIterator[bytes]) -> AsyncIterator[pb.TranscribeLiveRequest]:
        async for request in requests:
            yield parse(pb.TranscribeLiveRequest, request, self._service.config.limits.message_bytes)

    async def Tokenize(self, request: bytes, grpc_context: Any) -> pb.TokenizeResponse:
        with self._call("Tokenize", grpc_context) as call:
            message = self._parse(pb.TokenizeRequest, request)
            model = message.model if message.HasField("model") else None
            ids = await call.tokenize(message.text, field="text", model=model)
            return pb.TokenizeResponse(token_ids=ids)

    async def Detokenize(self, request: bytes, grpc_context: Any) -> pb.DetokenizeResponse:
        with self._call("Detokenize", grpc_context) as call:
            message = self._parse(pb.DetokenizeRequest, request)
            text = await call.detokenize(
                list(message.token_ids),
                field="token_ids",
                model=message.model if message.HasField("model") else None,
                skip_special_tokens=message.skip_special_tokens,
            )
            return pb.DetokenizeResponse(text=text)

    async def ListModels(self, request: bytes, grpc_context: Any) -> pb.ListModelsResponse:
        with self._call("ListModels", grpc_context):
            self._parse(pb.ListModelsRequest, request)
            return wire_answers.list_models_response([self._service.model])

    # grpc.health.v1.Health: public

    async def Check(self, request: bytes, grpc_context: Any) -> Any:
        with self._call("Check", grpc_context, public=True):
            message = self._parse(health_pb2.HealthCheckRequest, request)
            if message.service not in _SERVICES:
                raise ModelNotFound(f"no service {message.service[:80]!r}", field="service")
            return await self._status()

    async def List(self, request: bytes, grpc_context: Any) -> Any:
        with self._call("List", grpc_context, public=True):
            self._parse(health_pb2.HealthListRequest, request)
            status = await self._status()
            return health_pb2.HealthListResponse(statuses=dict.fromkeys(_SERVICES, status))

    async def Watch(self, request: bytes, grpc_context: Any) -> AsyncIterator[Any]:
        """The status now and whenever it changes, until the client has seen enough."""
        with self._call("Watch", grpc_context, public=True):
            message = self._parse(health_pb2.HealthCheckRequest, request)
            last = None
            while True:
                status = await self._status()
                if message.service not in _SERVICES:
                    status.status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN  # as the protocol has it
                if status != last:
                    yield status
                    last = status
                await asyncio.sleep(_WATCH_S)

    async def _status(self) -> Any:
        problem = await self._service.health.problem()
        answer = health_pb2.HealthCheckResponse
        return answer(status=answer.SERVING if problem is None else answer.NOT_SERVING)

    async def _prepare(self, call: Call, kind: type[RequestT], request: bytes) -> PreparedRequest:
        message = self._parse(kind, request)
        [prepared] = await call.prepare(
            [wire.prompt_of(message)], wire.params_of(message), **wire.options_of(message.options)
        )
        return prepared

    async def _prepare_transcription(
        self, call: Call, kind: type[TranscribeT], request: bytes
    ) -> PreparedTranscription:
        message = self._parse(kind, request)
        with renaming_fields(wire_transcription.FIELDS):
            return await call.prepare_transcription(
                wire_transcription.recording_of(message),
                wire_transcription.params_of(message),
                "audio",
                **wire_transcription.call_options_of(message),
            )

    def _parse(self, kind: type[MessageT], request: bytes) -> MessageT:
        limits = self._service.config.limits
        message = parse(kind, request, limits.request_bytes)
        check_size(len(request) - wire.media_bytes(message), limits.message_bytes)
        return message

    @contextmanager
    def _call(self, method: str, context: Any, *, public: bool = False) -> Iterator[Call]:
        """A client's call, once it is let in, whose errors become its status. Only errors of ours are raised
        further: Serve shows the text of any."""
        service = self._service
        try:
            with ExitStack() as stack:
                try:
                    stack.enter_context(
                        service.guard.admit(key_of(context.invocation_metadata()), public=public)
                    )
                except TandemError as error:
                    service.metrics.turned_away("grpc", method, error)
                    raise
                yield stack.enter_context(Call(service, "grpc", method, grpc_arrival(context)))
        except Exception as error:
            set_error(context, error)
            if isinstance(error, TandemError):
                raise
            raise InternalError("internal error, see the server's log") from None
