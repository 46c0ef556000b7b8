"""The gRPC services: how an ingress registers them, reads requests and answers errors, and how the client
gets the same errors back."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_health.v1 import health_pb2

from tandem.errors import (
    STATUS,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTooLarge,
    TandemError,
    Unavailable,
    status_of,
)
from tandem.v1.inference_pb2 import DESCRIPTOR

SERVICE = DESCRIPTOR.services_by_name["InferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

MessageT = TypeVar("MessageT", bound=Message)

# How the text of an error ends that says when to try again.
RETRY_AFTER: Final = r"; try again in ([0-9.]+) s\Z"
_TOO_LARGE = "message larger than max"  # gRPC's own words, where it is gRPC that refuses


def add_inference_service(servicer: Any, server: grpc.Server | grpc.aio.Server) -> None:
    """Registers `servicer` as the generated `add_InferenceServiceServicer_to_server` would, but hands
    its methods the request as bytes, for `parse`.

    The generated one lets gRPC parse, and gRPC answers a malformed request with UNKNOWN.
    """
    _add_service(SERVICE, servicer, server)


def add_health_service(servicer: Any, server: grpc.Server | grpc.aio.Server) -> None:
    """Registers the servicer of grpc.health.v1 in the same way."""
    _add_service(HEALTH, servicer, server)


_HANDLERS: Final[dict[tuple[bool, bool], Any]] = {  # by whether the client streams, and the server
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _add_service(service: ServiceDescriptor, servicer: Any, server: grpc.Server | grpc.aio.Server) -> None:
    handlers: dict[str, grpc.RpcMethodHandler[bytes, Message]] = {}
    for method in service.methods:
        handler = _HANDLERS[method.client_streaming, method.server_streaming]
        answer = message_factory.GetMessageClass(method.output_type)
        handlers[method.name] = handler(
            getattr(servicer, method.name), response_serializer=answer.SerializeToString
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def parse(kind: type[MessageT], data: bytes, max_bytes: int) -> MessageT:
    """Reads a request message.

    Raises `RequestTooLarge` above `max_bytes`, and `InvalidRequest` for bytes that are no such message,
    for text that is not UTF-8 and for unknown fields, which would be ignored otherwise.
    """
    check_size(len(data), max_bytes)
    try:
        message = kind.FromString(data)
    except DecodeError:
        raise _unreadable(kind, data) from None
    for fault in _faults(message, kind.DESCRIPTOR.file):
        raise fault
    return message


def check_size(size: int, max_bytes: int) -> None:
    """Raises `RequestTooLarge` for a message of more than `max_bytes`."""
    if size > max_bytes:
        raise RequestTooLarge(f"{_TOO_LARGE} ({size} vs. {max_bytes} bytes)")


def _unreadable(kind: type[Message], data: bytes) -> InvalidRequest:
    """Why protobuf does not read `data` as a `kind`."""
    name = kind.DESCRIPTOR.full_name
    malformed = InvalidRequest(f"not a {name} message")
    try:
        lenient = _with_bytes_for_strings(kind.DESCRIPTOR.file, name).FromString(data)
    except DecodeError:
        return malformed
    return next(_faults(lenient, kind.DESCRIPTOR.file), malformed)


@functools.cache
def _with_bytes_for_strings(declaring: Any, name: str) -> type[Message]:
    """The message type with `bytes` for every `string`: it reads what protobuf refuses for text that is
    not UTF-8, without saying which text."""
    file = descriptor_pb2.FileDescriptorProto()
    declaring.CopyToProto(file)
    for message in file.message_type:
        for field in message.field:
            if field.type == field.TYPE_STRING:
                field.type = field.TYPE_BYTES
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _faults(message: Message, declaring: Any, path: str = "") -> Iterator[InvalidRequest]:
    """What is wrong with a message that was read as its file declares it, or with bytes for strings."""
    declared = declaring.message_types_by_name[message.DESCRIPTOR.name]
    unknown = UnknownFieldSet(message)
    if len(unknown):
        yield InvalidRequest(f"unknown field of {declared.name}", field=f"{path}{unknown[0].field_number}")
    for field, value in message.ListFields():
        if declared.fields_by_name[field.name].type not in _INSPECTED:
            continue
        for item in value if field.is_repeated else (value,):
            if isinstance(item, Message):
                yield from _faults(item, declaring, f"{path}{field.name}.")
            elif isinstance(item, bytes):
                try:
                    item.decode()
                except UnicodeDecodeError as error:
                    yield InvalidRequest(f"must be UTF-8: {error.reason}", field=path + field.name)


_INSPECTED = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING)


def set_error(context: Any, error: BaseException) -> None:
    """Makes `error` the status of a call. `context` is gRPC's, whose handler then returns, or Ray Serve's,
    whose handler then raises.

    The details alone say which field is at fault, because Serve drops the trailing metadata of a call
    that fails. An error that is not ours shows none of its text.
    """
    context.set_code(grpc.StatusCode[status_of(error).grpc])
    context.set_details(str(error) if isinstance(error, TandemError) else "internal error, see the log")


_KIND = {status.grpc: kind for kind, status in reversed(STATUS.items())}  # the first of a status wins
# gRPC's words where it has no connection: "...; last error: UNKNOWN: ipv4:127.0.0.1:9000: ...".
_NO_CONNECTION = re.compile(r"[a-z ]+; last error: (?:[A-Z_]+: )?(.+)", re.DOTALL)
_FIELD = re.compile(r"([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*): (.+)", re.DOTALL)


def error_of(code: grpc.StatusCode, details: str | None) -> TandemError:
    """The error that `set_error` was given, or the nearest to what gRPC itself met."""
    text = details or code.name
    if said := re.search(RETRY_AFTER, text):
        error = error_of(code, text[: said.start()])
        error.retry_after_s = float(said[1])
        return error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return (RequestTooLarge if _TOO_LARGE in text else Overloaded)(text)
    if code.name not in _KIND:
        return TandemError(f"{code.name}: {text}")
    kind = _KIND[code.name]
    if kind is Unavailable and (nowhere := _NO_CONNECTION.fullmatch(text)):
        return Unavailable(f"no server answers: {nowhere[1]}")
    named = _FIELD.fullmatch(text) if kind in (InvalidRequest, ModelNotFound) else None
    return kind(named[2], field=named[1]) if named else kind(text)
