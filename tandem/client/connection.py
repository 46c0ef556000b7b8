"""What the two clients have in common: how they connect, and how a call becomes a request and its failure an
error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.errors import InvalidRequest
from tandem.inputs import (
    Audio,
    CallOptions,
    ExplicitEncoderDecoderPrompt,
    Prompt,
    RequestOptions,
    SingletonPrompt,
    listed,
    recording,
)
from tandem.params import Params, Pooling
from tandem.protocol import wire, wire_transcription
from tandem.protocol.rpc import SERVICE, error_of
from tandem.transcription import TranscriptionOptions
from tandem.v1 import inference_pb2 as pb
from tandem.v1.inference_pb2_grpc import InferenceServiceStub

Metadata = Sequence[tuple[str, str | bytes]]

_SERVICE_CONFIG = {
    # A connection to every address the name resolves to, as of a headless Kubernetes service.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": SERVICE.full_name}],
            # gRPC retries a call only while nothing of its answer has arrived. About three seconds in all,
            # for a server that restarts or a replica that went away.
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Connections are tried again at the pace of calls; gRPC's own first pause, a second, would let most of
    # a call's attempts fail unsent.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # An answer is as long as its request allowed: many samples with logprobs are megabytes.
    ("grpc.max_receive_message_length", -1),
]

# How much longer than a request's timeout the client waits for what the server sends then.
_GRACE_S = 1.0


@contextmanager
def typed_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error.code(), error.details()) from error


class Connection:
    """What the two clients have in common."""

    _grpc: ModuleType  # whose channels a client's calls go through: `grpc` or `grpc.aio`

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 60.0,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        api_key: str | None = None,
    ) -> None:
        """See `Client`."""
        self._timeout_s = timeout_s
        self._metadata = tuple(metadata)
        if api_key is not None:
            self._metadata += (("authorization", f"Bearer {api_key}"),)
        if credentials is None:
            self._channel = self._grpc.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = self._grpc.secure_channel(target, credentials, options=_OPTIONS)
        self._stub = InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def _generate_request(
        self,
        kind: type[wire.GenerateT],
        prompt: Prompt,
        params: Params | None,
        decoder_prompt: SingletonPrompt | None,
        options: RequestOptions,
    ) -> wire.GenerateT:
        if decoder_prompt is not None:
            encoder_prompt = cast(SingletonPrompt, prompt)  # `split_prompt` refuses anything else
            prompt = ExplicitEncoderDecoderPrompt(
                encoder_prompt=encoder_prompt, decoder_prompt=decoder_prompt
            )
        return wire.generate_request(kind, prompt, params, **self._timed(options))

    def _score_request(
        self,
        prompt: Prompt,
        targets: SingletonPrompt | Sequence[SingletonPrompt],
        options: RequestOptions,
    ) -> pb.ScoreRequest:
        return wire.score_request(prompt, targets, **self._timed(options))

    def _embed_request(
        self, prompts: Prompt | Sequence[Prompt], pooling: Pooling, options: RequestOptions
    ) -> pb.EmbedRequest:
        return wire.embed_request(listed(prompts), pooling, **self._timed(options))

    def _transcribe_request(
        self,
        kind: type[wire_transcription.TranscribeT],
        audio: Audio,
        asked: TranscriptionOptions,
        options: CallOptions,
    ) -> wire_transcription.TranscribeT:
        timed: CallOptions = {**options, "timeout_s": self._seconds(options.get("timeout_s"))}
        return wire_transcription.transcribe_request(kind, recording(audio, "audio"), asked, timed)

    def _timed(self, options: RequestOptions) -> RequestOptions:
        return {**options, "timeout_s": self._seconds(options.get("timeout_s"))}

    def _seconds(self, timeout_s: float | None) -> float:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if timeout_s <= 0:
            raise InvalidRequest(f"must be positive, got {timeout_s}", field="timeout_s")
        return timeout_s

    def _call(self, timeout_s: float | None) -> dict[str, Any]:
        """The keyword arguments of a gRPC call."""
        return {"timeout": self._seconds(timeout_s), "metadata": self._metadata}

    def _request_call(self, options: RequestOptions | CallOptions) -> dict[str, Any]:
        """The keyword arguments of a call that waits a little longer than these options' timeout."""
        return self._call(self._seconds(options.get("timeout_s")) + _GRACE_S)


def positive(number: int, field: str) -> int:
    if number < 1:
        raise InvalidRequest(f"must be positive, got {number}", field=field)
    return number


def serving(response: health_pb2.HealthCheckResponse) -> bool:
    serving: bool = response.status == health_pb2.HealthCheckResponse.SERVING
    return serving
