"""What the process that started Ray does to itself."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import ray

_ENDING = {signal.SIGINT, signal.SIGTERM}
os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM}))


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keeps this process's handlers of SIGINT and SIGTERM while Ray starts, and calls them after it.

    Ray's C++ library has SIGTERM print a stack and abort, until Ray's Python replaces that by another
    handler; and a start that is interrupted leaves processes. So SIGTERM is blocked meanwhile, but not in the
    processes that are started. A second SIGINT acts at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    interrupted = False

    def later(number: int, _: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            signal.signal(number, before[signal.SIGINT])
            signal.raise_signal(number)
        interrupted = True

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if interrupted:
            signal.raise_signal(signal.SIGINT)


def stop_printing_errors() -> None:
    """Ends the thread that prints the cluster's errors in this process, as `ray.shutdown` does later.

    To be called before Serve is shut down: that fails the calls that its parts wait for, and Ray would print
    them. No public switch turns this off; `log_to_driver=False` concerns other output.
    """
    worker: Any = ray._private.worker.global_worker
    with contextlib.suppress(Exception):  # whatever it is: what follows must end Serve and Ray
        worker.threads_stopped.set()
        worker.gcs_error_subscriber.close()
