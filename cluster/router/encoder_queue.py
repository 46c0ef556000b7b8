"""Which encoder inputs go into the next batch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from tandem.cluster.callers import ANYBODY, Caller
from tandem.cluster.handoff import HiddenSlice
from tandem.cluster.router.turns import Turns
from tandem.errors import TandemError
from tandem.workers.request import EncoderInput


class Sent(NamedTuple):
    """One try at encoding an input."""

    hidden: HiddenSlice  # where its hidden states will be
    encoded: asyncio.Future[bool]  # done when the try has ended; False where it has failed


def _future() -> asyncio.Future[Sent]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False, slots=True)
class EncodeJob:
    """One input to encode, for all requests that wait for it."""

    encoder_input: EncoderInput
    order: tuple[float, int]  # the first request's: see RoutedRequest
    deadline: float  # the last request's: nobody wants the input after it
    sent: asyncio.Future[Sent] = field(default_factory=_future)  # the last try, or the job's error
    caller: Caller = ANYBODY  # the first request's
    waiters: int = 0  # requests; set, like `attempts` and `alone`, by the pool
    attempts: int = 0
    alone: bool = False  # failed in a batch: the next try must not take others down with it
    key: str = field(init=False)
    length: int = field(init=False)  # encoder positions

    def __post_init__(self) -> None:
        self.key, self.length = self.encoder_input.key, len(self.encoder_input.token_ids)

    def again(self) -> None:
        """Makes `sent` the next try, after one that has failed."""
        if self.sent.done():
            self.sent = _future()

    def fail(self, error: TandemError) -> None:
        """Ends the job with an error."""
        self.again()
        self.sent.set_exception(error)
        self.sent.exception()  # retrieved: perhaps nobody waits any more


class EncoderQueue:
    """Jobs of the callers in turn, each one's by priority and arrival. A job that comes back keeps its
    place."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._jobs: set[EncodeJob] = set()
        self.tokens = 0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def put(self, job: EncodeJob) -> None:
        self._jobs.add(job)
        self.tokens += job.length

    def remove(self, job: EncodeJob) -> bool:
        """Whether the job was still here."""
        if job not in self._jobs:
            return False
        self._jobs.remove(job)
        self.tokens -= job.length
        return True

    def take(self, budget_tokens: int, now: float) -> list[EncodeJob]:
        """The next batch, longest first: the first job in order, and the jobs nearest to it in length as far
        as the budget goes. So the kernels, which work by length, find few lengths, and nobody starves. A job
        beyond the budget goes alone. Jobs whose time is over stay here until their requests remove them; the
        batch is empty where there are no others."""
        wanted = [job for job in self._jobs if job.deadline > now]
        if not wanted:
            return []
        first = min(wanted, key=lambda job: (self._turns.start(job.caller), job.order))
        batch, left = [first], budget_tokens - first.length
        if not first.alone:
            length = first.length
            others = (job for job in wanted if job is not first and not job.alone)
            for job in sorted(others, key=lambda job: (abs(job.length - length), job.order)):
                if job.length > left:
                    break
                batch.append(job)
                left -= job.length
        for job in batch:
            self.remove(job)
            self._turns.took(job.caller, job.length, in_turn=job is first)
        return sorted(batch, key=lambda job: job.length, reverse=True)
