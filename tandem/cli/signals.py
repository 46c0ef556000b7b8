"""How a command ends where a signal ends it: with 128 and the signal's number, as shells have it, whatever it
was doing at that moment."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final, NoReturn

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)
_AGAIN_S: Final = 0.05  # after an interruption that nobody has met

_received: int | None = None  # the first signal
_lost = False  # whether Python dropped the exception that it became


def exit_code() -> int | None:
    """The command's exit code where a signal ends it; None: none has come."""
    return None if _received is None else 128 + _received


@contextlib.contextmanager
def ending_by_signals() -> Iterator[None]:
    """Has SIGINT and SIGTERM raise KeyboardInterrupt in the block, and the process end after it if one came.

    Clean-up under way may replace that exception by another or drop it, Ray's C++ library may crash where the
    interpreter ends, and click says nothing of a broken pipe: so that it was a signal is remembered here, and
    the process ends without the interpreter's own clean-up. An exception that is raised where Python can only
    drop it, in a `__del__` or a callback from C, is raised again a moment later. A second signal ends the
    process at once; Ray's reaper process then ends what Ray has started.
    """
    global _received, _lost
    _received, _lost = None, False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _take) for number in _ENDING}
    shown, sys.unraisablehook = sys.unraisablehook, _drop
    try:
        yield
    finally:
        if (code := exit_code()) is not None:
            _end(code)
        sys.unraisablehook = shown
        for number, handler in before.items():
            signal.signal(number, handler)


def _take(number: int, _: FrameType | None) -> None:
    global _received, _lost
    if (code := exit_code()) is not None and not _lost:
        _end(code)
    _lost = False
    _received = _received or number
    raise KeyboardInterrupt


def _drop(dropped: sys.UnraisableHookArgs) -> None:
    """Takes the place of `sys.unraisablehook`."""
    global _lost
    if _received is None or not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    _lost = True
    main = threading.main_thread().ident
    again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, _received))
    again.daemon = True
    again.start()


def _end(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # whoever reads it may have gone
            stream.flush()
    os._exit(code)
