"""API keys: what is kept of them, and in which file.

A line of the file is a caller's name, the SHA-256 of a key, and the caller's quotas:

    acme sha256:2c26b46b… requests_per_minute=600 tokens_per_minute=50000 in_flight=16 weight=2

A key is 256 random bits, so a plain hash is as good as a slow one: nobody finds the key that it is of.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from tandem.cluster.callers import Caller, Quotas
from tandem.errors import InvalidRequest

logger = logging.getLogger(__name__)

ENVIRONMENT: Final = "TANDEM_API_KEY"  # one key, whose holder has no quotas
_ITS_HOLDER: Final = "default"
_PREFIX: Final = "tandem-"  # so that tools that look for secrets know one
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")
_LOOK_S: Final = 1.0  # between looks at the file
_WHOLE: Final = {"in_flight", "priority"}  # quotas that are whole numbers


def new_key() -> str:
    return _PREFIX + secrets.token_urlsafe(32)


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def hash_in_environment() -> str | None:
    """The hash of the key in this process' environment; None where there is none."""
    key = os.environ.get(ENVIRONMENT)
    return sha256(key) if key else None


def line_of(name: str, key: str, quotas: Quotas) -> str:
    """A key's line in the file. Raises InvalidRequest for a name or a quota that cannot stand there."""
    values = {each.name: getattr(quotas, each.name) for each in fields(Quotas)}
    given = [f"{name}={values[name]:g}" for name in values if values[name] != getattr(Quotas(), name)]
    line = " ".join([name, f"sha256:{sha256(key)}", *given])
    if not list(_read(line)):
        raise InvalidRequest(f"{name!r:.80} is no name", field="api_keys")
    return line


class Keys:
    """All keys of a server, as its file has them by now. Without any, it asks for none."""

    def __init__(
        self, path: str | None, single_sha256: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`single_sha256`: the hash of a key that is in no file. Raises InvalidRequest where the file is
        malformed or not there."""
        self._path, self._clock = path, clock
        self._single = {} if single_sha256 is None else {single_sha256: Caller(_ITS_HOLDER)}
        self._callers: dict[str, Caller] = {}  # by their keys' hashes
        self._version: tuple[int, ...] = ()
        self._looked_at = clock()
        if path is not None:
            self._version = _version(path)
            self._load(path)

    @property
    def asked_for(self) -> bool:
        return self._path is not None or bool(self._single)

    def caller(self, key: str) -> Caller | None:
        """Whose key it is; None: nobody's."""
        self._look()
        hashed = sha256(key)
        return self._single.get(hashed) or self._callers.get(hashed)

    def _look(self) -> None:
        """Reads the file again where it has changed. One that is malformed leaves all as it was."""
        now = self._clock()
        if self._path is None or now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        try:
            version = _version(self._path)
            if version == self._version:
                return
            self._version = version
            self._load(self._path)
        except InvalidRequest as error:
            logger.warning("the keys stay as they were: %s", error)

    def _load(self, path: str) -> None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"cannot be read: {error}", field="api_keys") from None
        read = list(_read(text))
        known = {caller.name: caller for caller in self._callers.values()}
        callers: dict[str, Caller] = {}
        for name, hashed, quotas in read:
            caller = callers[hashed] = known.setdefault(name, Caller(name))
            caller.quotas = quotas
        self._callers = callers


def _version(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise InvalidRequest(f"cannot be read: {error}", field="api_keys") from None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(text: str) -> Iterator[tuple[str, str, Quotas]]:
    """The name, the hash and the quotas of each line. Raises InvalidRequest, naming the line."""
    quotas_of: dict[str, Quotas] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue

        def fault(message: str, number: int = number) -> InvalidRequest:
            return InvalidRequest(f"line {number}: {message}", field="api_keys")

        name, *rest = words
        hashed = _HASH.fullmatch(rest[0]) if rest else None
        if not _NAME.fullmatch(name) or hashed is None:
            raise fault("must begin with a name and sha256:HASH, as `tandem key` prints them")
        quotas = _quotas(rest[1:], fault)
        if quotas_of.setdefault(name, quotas) != quotas:
            raise fault(f"{name} has other quotas in a line before")
        yield name, hashed[1], quotas


def _quotas(words: list[str], fault: Callable[[str], InvalidRequest]) -> Quotas:
    given: dict[str, Any] = {"priority": 0}  # who may go before others is said
    known = {each.name for each in fields(Quotas)}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise fault(f"{name!r:.80} is no quota: {', '.join(sorted(known))}")
        try:
            given[name] = int(value) if name in _WHOLE else float(value)
        except ValueError:
            raise fault(f"{name} must be a number, got {value!r:.80}") from None
        if name != "priority" and not 0 < given[name] < float("inf"):
            raise fault(f"{name} must be positive, got {value}")
    return Quotas(**given)
