"""Waiting for something that only a worker can bring about, and giving up when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from tandem.errors import Unavailable

T = TypeVar("T")


async def wait_for_worker(
    future: asyncio.Future[T], patience_s: float, possible: Callable[[], bool], lack: str
) -> T:
    """The future's result. Raises Unavailable, saying what is lacking, where it has not come after
    `patience_s` and is not possible then. Cancelling the caller leaves the future as it is."""
    while not future.done():
        await asyncio.wait([future], timeout=patience_s)
        if not future.done() and not possible():
            raise Unavailable(f"{lack}, waited {patience_s:.0f} s")
    return future.result()
