"""The process that becomes the next ingress replica: it waits with all modules loaded, which take seconds."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import grpc

from tandem.cluster.serve_compat.spare_worker import start_spare_worker

logger = logging.getLogger(__name__)

_LATER_S: Final = 5.0  # after this replica has begun: whoever starts meanwhile has the cores


async def keep_spare() -> None:
    """Starts the next one's process. Call it in an ingress replica, which took the one there was."""
    await asyncio.sleep(_LATER_S)
    try:
        await asyncio.to_thread(start_spare_worker)
    except grpc.RpcError as error:
        logger.warning("no process waits to be the next ingress replica: %s", error)
