"""Who calls: the holder of a key, what it may use and what it has used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from tandem.errors import InvalidRequest, Overloaded

_MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a caller may use, at each ingress replica. None: as much as there is."""

    requests_per_minute: float | None = None  # calls, whatever each asks for
    tokens_per_minute: float | None = None  # encoder positions, those of media included, and generated tokens
    in_flight: int | None = None  # calls at a time
    priority: int | None = None  # the greatest that its requests may have; None: the server's limit
    weight: float = 1.0  # its share where callers wait for the same workers, against the others' weights


class Caller:
    """One of those who may call. Several keys may be one caller's."""

    def __init__(
        self, name: str, quotas: Quotas = Quotas(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.quotas = quotas  # the keys' file may change them
        self._requests, self._tokens = _Allowance(clock), _Allowance(clock)
        self._in_flight = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call of the caller, while the block runs. Raises Overloaded where its quotas are used up."""
        quotas = self.quotas
        if quotas.in_flight is not None and self._in_flight >= quotas.in_flight:
            raise Overloaded(
                f"{self.name} has {self._in_flight} calls in flight, its limit; wait for one", refused="quota"
            )
        for allowance, each_minute, what in (
            (self._tokens, quotas.tokens_per_minute, "tokens"),
            (self._requests, quotas.requests_per_minute, "requests"),
        ):
            if each_minute is not None and (wait_s := allowance.wait_s(each_minute)) > 0:
                raise Overloaded(
                    f"{self.name} has used its {each_minute:g} {what} a minute",
                    refused="quota",
                    retry_after_s=wait_s,
                )
        self._requests.spend(1)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def spend(self, tokens: int) -> None:
        """Counts tokens of an answer. A call that has begun is not ended for want of them; the next waits."""
        self._tokens.spend(tokens)

    def check_priority(self, priority: int) -> None:
        """Raises InvalidRequest for a priority beyond what the caller may ask for."""
        most = self.quotas.priority
        if most is not None and priority > most:
            raise InvalidRequest(f"{self.name} may have {most} at most, got {priority}", field="priority")


class _Allowance:
    """A minute's worth that comes back as time passes, at an even rate; it may be overdrawn."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._used, self._at = clock, 0.0, clock()

    def wait_s(self, each_minute: float) -> float:
        """How long until there is any again."""
        now = self._clock()
        self._used = max(0.0, self._used - (now - self._at) * each_minute / _MINUTE_S)
        self._at = now
        return max(0.0, self._used + 1 - max(each_minute, 1.0)) * _MINUTE_S / each_minute

    def spend(self, amount: float) -> None:
        self._used += amount


ANYBODY: Final = Caller("")  # where no keys are asked for
CALLER: ContextVar[Caller] = ContextVar("CALLER", default=ANYBODY)  # of the call that a task works for
