"""Lines of a joined cluster's processes, which were started elsewhere, where this process' own lines go."""

from __future__ import annotations

import threading

from tandem.cluster.serve_compat.worker_lines import follow_worker_lines
from tandem.cluster.telemetry.logs import Log, LogFormat, is_ours


class Forwarding:
    """Writes those of our loggers to the file or pipe at `path`, from its start to its end. Like a process
    that logs, it waits for no reader, and goes on when one comes back."""

    def __init__(self, path: str, log_format: LogFormat) -> None:
        """`log_format`: of what is said about the lines."""
        self._log = Log(log_format, calls=False, path=path)
        self._done = threading.Event()
        arguments = (self._take, self._done.is_set)
        self._thread = threading.Thread(target=follow_worker_lines, args=arguments, name="lines", daemon=True)
        self._thread.start()

    def _take(self, lines: list[str]) -> None:
        for line in filter(is_ours, lines):
            self._log.add_line(f"{line}\n")

    def end(self) -> None:
        self._done.set()
        self._thread.join()
        self._log.close()
