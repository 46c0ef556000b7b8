"""What Serve's gRPC servers do for Tandem: note when calls came, say when to come again, shed none."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from ray.serve._private import grpc_util

from tandem.protocol.rpc import RETRY_AFTER

# When the head of a call was read, and when gRPC ends the call for its client, in seconds since 1970: a proxy
# may be on another machine than the ingress. Keys of an ASGI scope, and of gRPC's metadata.
ARRIVED: Final = "tandem-arrived"
DEADLINE: Final = "tandem-deadline"
# gRPC itself resets calls, with CANCELLED and unseen by the server, where more wait for its event loop than
# this: from 1000 on at random, from 3000 on all by default, and after 30 s. Our own refusals say what to do.
_NEVER: Final = 2**31 - 1
_SHED_NOTHING: Final = [
    ("grpc.server.max_pending_requests", _NEVER),
    ("grpc.server.max_pending_requests_hard_limit", _NEVER),
    ("grpc.server_max_unrequested_time_in_server", _NEVER),
]


def shed_no_calls() -> None:
    """Changes the options of the gRPC servers that Serve makes from here on: it has none for this."""
    options: list[Any] = grpc_util.DEFAULT_GRPC_SERVER_OPTIONS  # type: ignore[attr-defined]
    options += [option for option in _SHED_NOTHING if option not in options]


def saying_more(handle: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of Serve's for gRPC's server, which is told when a call came, and whose refusals say when to
    come again."""
    if inspect.isasyncgenfunction(handle):

        async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
            try:
                async for message in handle(request, _Context(context)):
                    yield message
            finally:
                _push_back(context)

        return stream

    async def answer(request: Any, context: Any) -> Any:
        try:
            return await handle(request, _Context(context))
        finally:
            _push_back(context)

    return answer


class _Context:
    """gRPC's context, with our keys in the metadata that Serve hands to the ingress."""

    def __init__(self, context: Any) -> None:
        self._context = context
        metadata = [pair for pair in context.invocation_metadata() if pair[0] not in (ARRIVED, DEADLINE)]
        now, left_s = time.time(), context.time_remaining()
        metadata.append((ARRIVED, repr(now)))
        if left_s is not None:
            metadata.append((DEADLINE, repr(now + left_s)))
        self._metadata = metadata

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _push_back(context: Any) -> None:
    """Tells clients that retry by gRPC's own policy when to. Serve drops the metadata of a call that fails,
    not its details."""
    if said := re.search(RETRY_AFTER, context.details() or ""):
        pushback = ("grpc-retry-pushback-ms", str(round(1000 * float(said[1]))))
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), pushback))
