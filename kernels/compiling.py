"""Counts what makes a step wait for the host to prepare the device: kernels compiled, and graphs captured.

Both take from a tenth of a second to seconds. They belong before the first request.
"""

from __future__ import annotations

import threading
from typing import Any


class _Count(threading.local):
    """A count for each thread that compiles: its engine is not the others'."""

    value = 0


_COUNT = _Count()


def compilations() -> int:
    """How many there were in this thread."""
    return _COUNT.value


def note_compilation() -> None:
    _COUNT.value += 1


def watch_triton() -> None:
    """Counts Triton's from here on. It calls the hook in the thread that launches the kernel."""
    from triton import knobs

    others = knobs.runtime.jit_post_compile_hook

    def compiled(**about: Any) -> bool | None:
        note_compilation()
        return None if others is None else others(**about)

    knobs.runtime.jit_post_compile_hook = compiled
