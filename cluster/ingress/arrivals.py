"""When a client's call came, by what the listener noted: see `edge.listeners`."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, Final

from starlette.types import Scope

from tandem.cluster.router.routed_request import Arrival
from tandem.cluster.serve_compat.grpc_handlers import ARRIVED, DEADLINE

_LONGEST_S: Final = 60.0  # a call that is said to have come earlier came through a clock that is wrong


def http_arrival(scope: Scope) -> Arrival:
    return _arrival(scope.get(ARRIVED), None)


def grpc_arrival(context: Any) -> Arrival:
    """`context` is Serve's."""
    metadata = dict(context.invocation_metadata())
    return _arrival(metadata.get(ARRIVED), metadata.get(DEADLINE))


def _arrival(arrived: object, deadline: object) -> Arrival:
    """From seconds since 1970. Where nothing was noted, the call comes now and its client listens on."""
    here, now = asyncio.get_running_loop().time(), time.time()
    ago, left = now - _seconds(arrived, now), _seconds(deadline, math.inf) - now
    return Arrival(here - ago if 0 <= ago <= _LONGEST_S else here, here + left)


def _seconds(noted: object, otherwise: float) -> float:
    try:
        return float(noted)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return otherwise
