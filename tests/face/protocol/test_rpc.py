"""Malformed requests, and errors to a gRPC status and back."""

from __future__ import annotations

import grpc
import pytest

from tandem.errors import (
    STATUS,
    Cancelled,
    DeadlineExceeded,
    HiddenStatesLost,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTooLarge,
    TandemError,
    Unavailable,
)
from tandem.protocol.rpc import error_of, parse, set_error
from tandem.v1 import inference_pb2 as pb

LIMIT = 1000  # bytes


class Context:
    """The part of a gRPC context that `set_error` uses."""

    code: grpc.StatusCode
    details: str

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field on the wire."""
    return bytes([number << 3 | 2, len(content)]) + content


def test_a_well_formed_message_is_read() -> None:
    request = pb.GenerateRequest(
        encoder_prompt=pb.EncoderPrompt(text="Grüße"), options=pb.RequestOptions(timeout_ms=5)
    )
    assert parse(pb.GenerateRequest, request.SerializeToString(), LIMIT) == request


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (field(5, field(1, b"\xff")), "options.request_id"),
        (field(1, field(1, b"ok \xc3")), "encoder_prompt.text"),
        (field(3, field(3, b"fine") + field(3, b"\xed\xa0\x80")), "sampling_params.stop"),
        (field(3, field(1, b"\x82\x01\x01\xff")), "sampling_params.decoding.bad_words"),
    ],
)
def test_text_that_is_not_utf8_is_refused_by_name(data: bytes, name: str) -> None:
    with pytest.raises(InvalidRequest, match="UTF-8") as caught:
        parse(pb.GenerateRequest, data, LIMIT)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("data", "name"),
    [(field(15, b"x"), "15"), (field(3, field(15, b"x")), "sampling_params.15")],
)
def test_an_unknown_field_is_refused(data: bytes, name: str) -> None:
    with pytest.raises(InvalidRequest, match="unknown field of") as caught:
        parse(pb.GenerateRequest, data, LIMIT)
    assert caught.value.field == name


@pytest.mark.parametrize("data", [b"\xff", field(1, b"\xff"), b"\x0a\x7fshort"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="GenerateRequest message"):
        parse(pb.GenerateRequest, data, LIMIT)


def test_a_message_beyond_the_limit_is_not_read() -> None:
    with pytest.raises(RequestTooLarge, match=r"1001 vs\. 1000 bytes"):
        parse(pb.GenerateRequest, b"\xff" * (LIMIT + 1), LIMIT)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("must be at least 0, got -1", field="temperature"),
        InvalidRequest("must be UTF-8: over\ntwo lines", field="sampling_params.stop.0"),
        InvalidRequest("not a field: it has spaces"),
        ModelNotFound("no model 'x'", field="model"),
        RequestTooLarge("message larger than max (5 vs. 4 bytes)"),
        Overloaded("4096 requests are waiting"),
        Unavailable("no decoder is ready"),
        DeadlineExceeded("nothing was generated in 5 s"),
        Cancelled("by the caller"),
        InternalError("engine: see the log"),
    ],
)
def test_an_error_survives_the_wire(error: TandemError) -> None:
    context = Context()
    set_error(context, error)
    back = error_of(context.code, context.details)
    assert type(back) is type(error)
    assert (back.message, back.field) == (error.message, error.field)


def test_every_error_has_a_status_that_comes_back_as_ours() -> None:
    for kind in STATUS:
        context = Context()
        set_error(context, kind("what"))
        assert isinstance(error_of(context.code, context.details), TandemError)
    assert isinstance(error_of(grpc.StatusCode.UNAVAILABLE, "gone"), Unavailable)
    assert not isinstance(error_of(grpc.StatusCode.UNAVAILABLE, "gone"), HiddenStatesLost)


@pytest.mark.parametrize(
    "words", ["failed to connect to all addresses", "connections to all backends failing"]
)
def test_no_connection_is_said_in_plain_words(words: str) -> None:
    error = error_of(
        grpc.StatusCode.UNAVAILABLE, f"{words}; last error: UNKNOWN: ipv4:10.0.0.1:9000: refused"
    )
    assert isinstance(error, Unavailable)
    assert str(error) == "no server answers: ipv4:10.0.0.1:9000: refused"


def test_an_error_that_is_not_ours_keeps_its_text_to_itself() -> None:
    context = Context()
    set_error(context, KeyError("secret"))
    assert context.code is grpc.StatusCode.INTERNAL
    assert "secret" not in context.details


def test_a_status_we_never_send_is_no_defect_of_the_server() -> None:
    error = error_of(grpc.StatusCode.PERMISSION_DENIED, "no token")
    assert type(error) is TandemError
    assert str(error) == "PERMISSION_DENIED: no token"
