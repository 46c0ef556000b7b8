"""Every error a caller can meet, and the one table of the statuses they become.

Anything in Tandem may raise them. They go unchanged across the cluster (they pickle), and become a gRPC
status or an HTTP answer only at the edge, by `STATUS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

# queue, media, audio: a limit of what one router has in work. wait: `max_queue_wait_s` would be exceeded.
# deadline: the answer would not be whole in time. quota: its caller's are used up. shutdown: the server ends.
Refusal = Literal["queue", "media", "audio", "wait", "deadline", "quota", "shutdown"]


class TandemError(Exception):
    """Base of all errors Tandem raises on purpose.

    `field` names the request's field at fault, if one is; the message says the limit and what to do.
    `refused` is why a server took nothing of the request in, as its metrics call it; None where it began.
    `retry_after_s` is how soon it would probably take the request in, by how fast it has worked lately; None
    where that is not known.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        refused: Refusal | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.refused = refused
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.field, self.refused, self.retry_after_s))

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}" if self.field else self.message
        return text if self.retry_after_s is None else f"{text}; try again in {self.retry_after_s:.1f} s"


def _rebuild(
    kind: type[TandemError],
    message: str,
    field: str | None,
    refused: Refusal | None,
    retry_after_s: float | None,
) -> TandemError:
    return kind(message, field=field, refused=refused, retry_after_s=retry_after_s)


class InvalidRequest(TandemError, ValueError):
    """The request can never succeed as it is: a value is missing, malformed or beyond a limit."""


class RequestTooLarge(TandemError):
    """The message exceeds the size the server reads."""


class ModelNotFound(TandemError):
    """The request names a model this server does not serve."""


class Unauthenticated(TandemError):
    """The call has no key, or none that the server knows."""


class Overloaded(TandemError):
    """A bounded queue is full, its wait too long, or the caller's quotas are used up. Try again later:
    nothing was done."""


class Unavailable(TandemError):
    """A needed worker is gone or not ready, and the retries within the cluster are used up."""


class DeadlineExceeded(TandemError):
    """The request's own timeout passed before it finished, or would: then it is refused at once."""


class Cancelled(TandemError):
    """The caller cancelled the request."""


class InternalError(TandemError):
    """A defect of Tandem. Details are in the server's log, not in the answer."""


class HiddenStatesLost(TandemError):
    """The encoder's output vanished before the decoder read it; the router encodes again."""


class ModelLoadError(TandemError):
    """The checkpoint cannot be served: missing, unused or misshapen weights, unknown family."""


# What a prompt is refused with for what is in it.
BadPrompt = InvalidRequest | RequestTooLarge
BAD_PROMPT = (InvalidRequest, RequestTooLarge)

# What says nothing of other requests: they may succeed.
OF_ONE_REQUEST = (*BAD_PROMPT, DeadlineExceeded, InternalError)


class Status(NamedTuple):
    """What an error becomes on the wire."""

    grpc: str  # name of a grpc.StatusCode
    http: int
    kind: str  # `type` in OpenAI's error shape


# By exact class; everything unknown is an InternalError.
STATUS: dict[type[TandemError], Status] = {
    InvalidRequest: Status("INVALID_ARGUMENT", 400, "invalid_request_error"),
    RequestTooLarge: Status("RESOURCE_EXHAUSTED", 413, "invalid_request_error"),
    ModelNotFound: Status("NOT_FOUND", 404, "not_found_error"),
    Unauthenticated: Status("UNAUTHENTICATED", 401, "authentication_error"),
    Overloaded: Status("RESOURCE_EXHAUSTED", 429, "overloaded_error"),
    Unavailable: Status("UNAVAILABLE", 503, "service_unavailable_error"),
    HiddenStatesLost: Status("UNAVAILABLE", 503, "service_unavailable_error"),
    DeadlineExceeded: Status("DEADLINE_EXCEEDED", 504, "timeout_error"),
    Cancelled: Status("CANCELLED", 499, "cancelled_error"),
    ModelLoadError: Status("FAILED_PRECONDITION", 500, "server_error"),
    InternalError: Status("INTERNAL", 500, "server_error"),
}


def status_of(error: BaseException) -> Status:
    """The status of any exception; one that is not ours is an InternalError's."""
    kind = type(error) if isinstance(error, TandemError) else InternalError
    return STATUS.get(kind, STATUS[InternalError])


@contextmanager
def renaming_fields(names: Mapping[str, str] | Callable[[str], str]) -> Iterator[None]:
    """Errors raised within name their field as a protocol or a command calls it.

    `names` are those, by the validator's own. A key that begins with "." is the end of a name, and what comes
    of it is looked up again: with `{".ids": "", "encoder": "prompt"}` "encoder.ids" becomes "prompt". The
    number of one of several, as in "images.2", stays.
    """
    try:
        yield
    except TandemError as error:
        if error.field is None:
            raise
        field = names(error.field) if callable(names) else _renamed(error.field, names)
        if field == error.field:
            raise
        raise type(error)(
            error.message, field=field, refused=error.refused, retry_after_s=error.retry_after_s
        ) from None


def _renamed(field: str, names: Mapping[str, str]) -> str:
    if field in names:
        return names[field]
    for end, ours in names.items():
        if end.startswith(".") and field.endswith(end):
            field = field.removesuffix(end) + ours
            return names.get(field, field)
    several, _, number = field.rpartition(".")
    return f"{_renamed(several, names)}.{number}" if several and number.isdecimal() else field
