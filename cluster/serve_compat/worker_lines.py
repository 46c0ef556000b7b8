"""What the processes of a joined cluster write to standard error, on all of its machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import ray

_POLL_S: Final = 0.5


def follow_worker_lines(take: Callable[[list[str]], None], done: Callable[[], bool]) -> None:
    """Hands over lines as Ray's log monitors read them, those of a process in order, until it is done. Call
    it in a thread of the process that has joined.

    `log_to_driver` prints the lines of the job of this process alone, and the actors of a Serve that was
    there are another's; and it puts the process before each.
    """
    worker: Any = ray._private.worker.global_worker
    subscriber = worker.gcs_log_subscriber
    subscriber.subscribe()
    try:
        while not done():
            if (batch := subscriber.poll(timeout=_POLL_S)) is not None:
                take(batch["lines"])
    finally:
        subscriber.close()
