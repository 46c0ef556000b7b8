"""The one check of keys, for both protocols."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from tandem.cluster.callers import ANYBODY, CALLER, Caller
from tandem.cluster.keys import Keys
from tandem.errors import Unauthenticated

_BEARER: Final = "bearer "


class Guard:
    """Lets calls in. Everything that answers a client asks it, and only health and the page's files are
    public."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    @property
    def closed(self) -> bool:
        """Whether keys are asked for."""
        return self._keys.asked_for

    @contextmanager
    def admit(self, key: str | None, *, public: bool = False) -> Iterator[Caller]:
        """A call, while the block runs, of whoever has the key: `CALLER` from here on. Everybody may make a
        `public` one. Raises Unauthenticated, and Overloaded where the caller's quotas are used up."""
        if public or not self.closed:
            CALLER.set(ANYBODY)
            yield ANYBODY
            return
        if not key:
            raise Unauthenticated("a key is needed, as Authorization: Bearer KEY or x-api-key: KEY")
        caller = self._keys.caller(key)
        if caller is None:
            raise Unauthenticated("nobody has this key")
        with caller.call():
            CALLER.set(caller)  # for the rest of the task, which is the call's own
            yield caller


def key_of(headers: Iterable[tuple[str | bytes, str | bytes]]) -> str | None:
    """The first key in headers or metadata, which are pairs of lower-case names and values."""
    for name, value in headers:
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if name in ("authorization", b"authorization"):
            if text[: len(_BEARER)].lower() != _BEARER:
                continue
            text = text[len(_BEARER) :]
        elif name not in ("x-api-key", b"x-api-key"):
            continue
        if key := text.strip():
            return key
    return None
