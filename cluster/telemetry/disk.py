"""Whether there is room on the disk that Ray's processes need: a full one stops workers from starting, and
nothing else says why."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from typing import Final

from tandem.errors import Unavailable

logger = logging.getLogger(__name__)

_LOW: Final = 0.05  # of the disk is free: Ray stops using it for objects at the same mark
_LEAST: Final = 2**26  # bytes that Ray's start takes
_AGAIN_S: Final = 60.0  # between two warnings


def folder() -> str:
    """Where Ray keeps its sockets, logs and what does not fit into memory."""
    return os.environ.get("RAY_TMPDIR", "/tmp")


def free_ratio(usage: Callable[[str], tuple[int, int, int]] = shutil.disk_usage) -> float:
    """How much of the disk is free, 0 to 1."""
    total, _, free = usage(folder())
    return free / total if total else 1.0


def problem(usage: Callable[[str], tuple[int, int, int]] = shutil.disk_usage) -> str | None:
    """What to say where there is little room left; None where there is enough."""
    total, _, free = usage(folder())
    if free >= _LOW * total:
        return None
    what = "no space left" if free < _LEAST else f"{free / 2**30:.1f} GiB, {free / total:.1%}, left"
    return f"{what} on {folder()}: workers that end cannot be replaced; make room there"


def check_room(usage: Callable[[str], tuple[int, int, int]] = shutil.disk_usage) -> None:
    """Raises Unavailable where Ray could not start."""
    if usage(folder())[2] < _LEAST:
        raise Unavailable(
            f"no space left on {folder()}, where Ray keeps its files: make room, or set RAY_TMPDIR"
        )


class DiskWatch:
    """Logs a warning each minute in which there is little room."""

    def __init__(self) -> None:
        self._said = -_AGAIN_S

    def look(self) -> None:
        if time.monotonic() - self._said >= _AGAIN_S and (said := problem()) is not None:
            self._said = time.monotonic()
            logger.warning("%s", said)
