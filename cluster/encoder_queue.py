"""Which encoder inputs go into the next batch."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

from tandem.cluster.handoff import HiddenSlice

_numbers = itertools.count()


@dataclass(eq=False, slots=True)
class EncodeJob:
    """One input to encode, with everyone who waits for it."""

    key: str
    token_ids: tuple[int, ...]
    done: asyncio.Future[HiddenSlice]
    waiters: int = 0
    attempts: int = 0
    alone: bool = False  # failed in a batch: the next try must not take others down with it
    number: int = field(default_factory=lambda: next(_numbers))


class EncoderQueue:
    """Jobs in order of arrival; one that comes back keeps its place."""

    def __init__(self) -> None:
        self._jobs: dict[int, EncodeJob] = {}  # by number
        self.tokens = 0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def put(self, job: EncodeJob) -> None:
        self._jobs[job.number] = job
        self.tokens += len(job.token_ids)

    def remove(self, job: EncodeJob) -> bool:
        """Whether the job was still here."""
        if self._jobs.pop(job.number, None) is None:
            return False
        self.tokens -= len(job.token_ids)
        return True

    def take(self, budget_tokens: int) -> list[EncodeJob]:
        """The next batch: the oldest job, and of the others those nearest to it in length, as far as the
        budget goes. So kernels that work by length find few lengths, and nobody starves. A job beyond
        the budget goes by itself. Longest first."""
        oldest = self._jobs[min(self._jobs)]
        batch, left = [oldest], budget_tokens - len(oldest.token_ids)
        if not oldest.alone:
            length = len(oldest.token_ids)
            others = (job for job in self._jobs.values() if job is not oldest and not job.alone)
            for job in sorted(others, key=lambda job: (abs(len(job.token_ids) - length), job.number)):
                if len(job.token_ids) > left:
                    break
                batch.append(job)
                left -= len(job.token_ids)
        for job in batch:
            self.remove(job)
        return sorted(batch, key=lambda job: len(job.token_ids), reverse=True)
