"""What the next batch is made of."""

from __future__ import annotations

import asyncio
import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from tandem.cluster.router.encoder_queue import EncodeJob, EncoderQueue
from tandem.workers.request import EncoderInput

_numbers = itertools.count()


def job(length: int, *, alone: bool = False, earlier_s: float = 0.0) -> EncodeJob:
    loop = asyncio.new_event_loop()
    loop.close()
    order = (-earlier_s, next(_numbers))
    return EncodeJob(
        EncoderInput("key", tuple(range(length))), order, math.inf, asyncio.Future(loop=loop), alone=alone
    )


def queue_of(*jobs: EncodeJob) -> EncoderQueue:
    queue = EncoderQueue()
    for one in jobs:
        queue.put(one)
    return queue


def test_the_oldest_goes_with_those_of_its_length() -> None:
    oldest, long, near, nearer = job(10), job(50), job(14), job(11)
    queue = queue_of(oldest, long, near, nearer)
    assert queue.take(40, 0.0) == [near, nearer, oldest]
    assert queue.take(40, 0.0) == [long]  # beyond the budget: by itself
    assert not queue


def test_one_of_higher_priority_goes_first() -> None:
    first, second, urgent = job(5), job(5), job(50, earlier_s=10.0)
    queue = queue_of(first, second, urgent)
    assert queue.take(50, 0.0) == [urgent]
    assert queue.take(50, 0.0) == [first, second]


def test_one_that_failed_in_a_batch_goes_alone_and_keeps_its_place() -> None:
    suspect, second, third = job(5, alone=True), job(5), job(5)
    queue = queue_of(second, third, suspect)
    assert queue.take(100, 0.0) == [suspect]
    assert queue.take(100, 0.0) == [second, third]


def test_removing_gives_its_tokens_back() -> None:
    first, second = job(3), job(4)
    queue = queue_of(first, second)
    assert queue.remove(first)
    assert not queue.remove(first)
    assert queue.tokens == 4


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), budget=st.integers(1, 100))
def test_every_job_is_taken_once_and_batches_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    jobs = [job(length) for length in lengths]
    queue = queue_of(*jobs)
    taken: list[EncodeJob] = []
    while queue:
        oldest = min(set(jobs) - set(taken), key=lambda one: one.order)
        batch = queue.take(budget, 0.0)
        assert oldest in batch
        assert len(batch) == 1 or sum(one.length for one in batch) <= budget
        taken += batch
    assert sorted(taken, key=lambda one: one.order) == jobs
    assert queue.tokens == 0
