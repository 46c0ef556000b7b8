"""What the process that started Ray does to itself."""

from __future__ import annotations

import contextlib
from typing import Any

import ray


def stop_printing_errors() -> None:
    """Ends the thread that prints the cluster's errors in this process, as `ray.shutdown` does later.

    To be called before Serve is shut down: that fails the calls that its parts wait for, and Ray would print
    them. No public switch turns this off; `log_to_driver=False` concerns other output.
    """
    worker: Any = ray._private.worker.global_worker
    with contextlib.suppress(Exception):  # whatever it is: what follows must end Serve and Ray
        worker.threads_stopped.set()
        worker.gcs_error_subscriber.close()
