"""A request's options, checked and completed."""

from __future__ import annotations

import math
import secrets
import uuid
from dataclasses import dataclass, field
from typing import Unpack

from tandem.errors import InvalidRequest
from tandem.inputs import RequestOptions, task_options
from tandem.limits import Limits
from tandem.workers.requests.tasks import ResolvedTask, Tasks


@dataclass(frozen=True, slots=True)
class CheckedOptions:
    """See `tandem.inputs.RequestOptions`."""

    request_id: str
    priority: int
    timeout_s: float | None
    task: ResolvedTask
    truncate: int | None
    # Engines need an id of their own for each sequence; clients may reuse theirs, and a retry may arrive
    # while the first try is still being cancelled.
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    def engine_id(self, index: int) -> str:
        return f"{self.request_id}:{self.nonce}:{index}"


def check_options(limits: Limits, tasks: Tasks, **options: Unpack[RequestOptions]) -> CheckedOptions:
    """`limits` and `tasks` are those of the model that the request names. Raises InvalidRequest, naming the
    field and the limit."""
    priority = options.get("priority", 0)
    if type(priority) is not int or abs(priority) > limits.priority:
        raise InvalidRequest(
            f"must be an integer of magnitude at most {limits.priority}, got {priority!r}", field="priority"
        )
    return CheckedOptions(
        request_id=_request_id(options.get("request_id"), limits),
        priority=priority,
        timeout_s=_timeout_s(options.get("timeout_s"), limits.timeout_s),
        task=tasks.resolve(**task_options(options)),
        truncate=_truncate(options.get("truncate_prompt_tokens")),
    )


def _request_id(request_id: str | None, limits: Limits) -> str:
    if request_id is None:
        return uuid.uuid4().hex
    limit = limits.request_id_chars
    if not 0 < len(request_id) <= limit or not (request_id.isascii() and request_id.isprintable()):
        raise InvalidRequest(f"must be 1 to {limit} printable ASCII characters", field="request_id")
    return request_id


def _truncate(tokens: int | None) -> int | None:
    if tokens is not None and type(tokens) is not int:
        raise InvalidRequest(
            f"must be an integer, got {type(tokens).__name__}", field="truncate_prompt_tokens"
        )
    return tokens


def _timeout_s(timeout_s: float | None, limit: float) -> float | None:
    if timeout_s is None:
        return limit if math.isfinite(limit) else None  # infinite: offline use
    if not 0 < timeout_s <= limit:  # also false for NaN
        raise InvalidRequest(f"must be above 0 and at most {limit:g} s, got {timeout_s}", field="timeout_s")
    return timeout_s
