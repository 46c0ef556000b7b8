"""The process that becomes the next ingress replica: it waits with all modules loaded, which take seconds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import grpc

from tandem.cluster.serve_compat.spare_worker import spare_worker_waits, start_spare_worker

logger = logging.getLogger(__name__)

_LATER_S: Final = 5.0  # after this replica has begun: whoever starts meanwhile has the cores
_LOOK_S: Final = 30.0
_VAIN: Final = 3  # starts, after which there is no other


async def keep_spare(
    waits: Callable[[], bool] = spare_worker_waits, start: Callable[[], None] = start_spare_worker
) -> None:
    """Sees to it that one waits on this machine. Call it in an ingress replica, which took the one there was;
    it returns where Ray keeps none."""
    await asyncio.sleep(_LATER_S)
    vain, why = 0, "Ray ends it, as it does where the driver that started Serve has ended"
    while vain < _VAIN:
        try:
            if await asyncio.to_thread(waits):
                vain = 0
            else:
                vain += 1
                await asyncio.to_thread(start)
        except grpc.RpcError as error:
            why = str(error)
        await asyncio.sleep(_LOOK_S)
    logger.warning("no process waits to be the next ingress replica: %s", why)
