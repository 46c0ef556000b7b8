"""Files that wait to be fetched: few, for a while, at names that nobody can guess."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

_KEPT_S: Final = 1800.0  # as LibreTranslate keeps them
_BYTES: Final = 256 * 2**20  # all files together; the oldest make room
_NAME_BYTES: Final = 16  # random ones


class FileStore:
    """The files of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # until when, the oldest first
        self._bytes = 0

    def put(self, data: bytes) -> str:
        """Keeps a file and returns its name."""
        name = secrets.token_urlsafe(_NAME_BYTES)
        self._files[name] = self._clock() + _KEPT_S, data
        self._bytes += len(data)
        self._drop()
        return name

    def get(self, name: str) -> bytes | None:
        """The file of a name; None where there is none any more."""
        self._drop()
        found = self._files.get(name)
        return None if found is None else found[1]

    def _drop(self) -> None:
        while self._files:
            until, data = next(iter(self._files.values()))
            if until > self._clock() and self._bytes <= _BYTES:
                return
            self._files.popitem(last=False)
            self._bytes -= len(data)


class Files(Protocol):
    """Where translated files are kept until their client fetches them."""

    async def put(self, data: bytes) -> str: ...
    async def get(self, name: str) -> bytes | None: ...


class LocalFiles:
    """Files of this process alone."""

    def __init__(self) -> None:
        self._store = FileStore()

    async def put(self, data: bytes) -> str:
        return self._store.put(data)

    async def get(self, name: str) -> bytes | None:
        return self._store.get(name)
