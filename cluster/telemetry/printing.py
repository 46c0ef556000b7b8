"""Prints the lines of a cluster's processes in the process that starts it."""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from tandem.cluster.telemetry.logs import PATH

_LOOK_S: Final = 0.2
_READ: Final = 2**16  # bytes
_PIPE: Final = 2**20  # bytes, where the system allows so many: what is written while nobody reads


@contextlib.contextmanager
def printed(stream: BinaryIO) -> Iterator[None]:
    """What the processes log that are started within the block comes out of `stream`, unless the environment
    says where it goes."""
    if PATH in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        path = str(Path(folder, "log"))
        os.mkfifo(path, 0o600)
        # For both, so that there is a reader whenever a process opens it, and no end when the last closes it.
        pipe = os.open(path, os.O_RDWR)
        _enlarge(pipe)
        done = threading.Event()
        printer = threading.Thread(target=_print, args=(pipe, stream, done), name="print", daemon=True)
        printer.start()
        os.environ[PATH] = path
        try:
            yield
        finally:
            del os.environ[PATH]
            done.set()
            printer.join()
            os.close(pipe)


def _print(pipe: int, stream: BinaryIO, done: threading.Event) -> None:
    """Until `done`, and what is there then."""
    while True:
        ending = done.is_set()
        if select.select([pipe], [], [], 0 if ending else _LOOK_S)[0]:
            data = os.read(pipe, _READ)
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more; the pipe must not fill up
                stream.write(data)
                stream.flush()
        elif ending:
            return


def _enlarge(pipe: int) -> None:
    import fcntl

    size: Any = getattr(fcntl, "F_SETPIPE_SZ", None)  # Linux
    if size is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, size, _PIPE)
