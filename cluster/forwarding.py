"""Lines of a joined cluster's processes, which were started elsewhere, where this process' own lines go."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Final

from tandem.cluster.serve_compat.worker_lines import follow_worker_lines

_OURS: Final = re.compile(
    r'(\{"time": ")?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z(", "level": "| )'
    r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b"
)
_TRACEBACK: Final = "Traceback (most recent call last):"


def our_lines(lines: Iterable[str]) -> Iterator[str]:
    """Those that `logs` writes, with the tracebacks that follow them."""
    after_ours = within = False
    for line in lines:
        if _OURS.match(line):
            after_ours, within = True, False
            yield line
            continue
        if after_ours and line == _TRACEBACK:
            within = True
        if within:
            yield line
            within = line == _TRACEBACK or line.startswith(" ")
        after_ours = False


class Forwarding:
    """Writes them to the file or pipe at `path`, from its start to its end."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._done = threading.Event()
        arguments = (self._write, self._done.is_set)
        self._thread = threading.Thread(target=follow_worker_lines, args=arguments, name="lines", daemon=True)
        self._thread.start()

    def _write(self, lines: list[str]) -> None:
        for line in our_lines(lines):
            os.write(self._fd, f"{line}\n".encode(errors="backslashreplace"))

    def end(self) -> None:
        self._done.set()
        self._thread.join()
        os.close(self._fd)
