"""The encoder actor without Ray: order, drain, health."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import unpack
from tandem.cluster.messages import packed_input
from tandem.cluster.replicas.encoder import EncoderActor, EncoderLoad
from tandem.errors import InvalidRequest, Unavailable
from tandem.inputs import Media
from tandem.workers.request import EncoderInput, MediaCounts


class SlowEncoder:
    """Encodes a token as itself, when told to go on."""

    def __init__(self) -> None:
        self.go_on = threading.Semaphore(0)
        self.seen: list[list[tuple[int, ...]]] = []
        self.media = MediaCounts()

    def prepare(self, encoder_input: EncoderInput) -> EncoderInput:
        if any(one.data == b"damaged" for one in encoder_input.media):
            raise InvalidRequest("is damaged", field="multi_modal_data.audio")
        return encoder_input

    def encode(self, inputs: Sequence[EncoderInput]) -> torch.Tensor:
        self.seen.append([each.token_ids for each in inputs])
        self.media = MediaCounts(self.media.encoded + len(inputs), nbytes=12)
        assert self.go_on.acquire(timeout=10)
        if self.seen[-1] == [(13,)]:
            raise ValueError("unlucky")
        return torch.tensor([float(token) for ids in self.seen[-1] for token in ids])[:, None]


@pytest.fixture
def slow() -> SlowEncoder:
    return SlowEncoder()


def packed(inputs: list[list[int]]) -> list[list[Any]]:
    return [packed_input(EncoderInput("key", tuple(ids))) for ids in inputs]


async def started(encoder: SlowEncoder, **config: float) -> EncoderActor:
    # As many threads as there are: the other tests' torch is this one.
    threads = float(torch.get_num_threads())
    actor = EncoderActor(ServeConfig(encoder_cpus=threads, **config), lambda _: encoder)  # type: ignore[arg-type]
    await actor.start()
    return actor


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_batches_are_encoded_one_at_a_time_in_order(slow: SlowEncoder) -> None:
    actor = await started(slow)
    first = asyncio.create_task(actor.encode(packed([[1, 2], [3]]), "router", 7))
    second = asyncio.create_task(actor.encode(packed([[4]]), "router", 5))
    await until(lambda: len(slow.seen) == 1)
    assert await actor.progress() == EncoderLoad(queued_tokens=5, running_tokens=4)
    slow.go_on.release()
    hidden, summary = await first
    assert unpack(hidden).tolist() == [[1.0], [2.0], [3.0]]
    assert (summary["tokens"], summary["nbytes"]) == (3, 12)
    assert summary["media"] == MediaCounts(2, 0, 12)
    slow.go_on.release()
    hidden, summary = await second
    assert unpack(hidden).tolist() == [[4.0]]
    assert summary["media"] == MediaCounts(1, 0, 12)  # this batch's
    assert slow.seen == [[(1, 2), (3,)], [(4,)]]


async def test_draining_finishes_what_is_there_and_refuses_the_rest(slow: SlowEncoder) -> None:
    actor = await started(slow)
    running = asyncio.create_task(actor.encode(packed([[1]]), "router", 0))
    await until(lambda: len(slow.seen) == 1)
    draining = asyncio.create_task(actor.drain())
    await asyncio.sleep(0.05)
    assert not draining.done()
    with pytest.raises(Unavailable):
        await actor.encode(packed([[2]]), "router", 0)
    slow.go_on.release()
    await running
    await asyncio.wait_for(draining, 5)


async def test_a_batch_that_fails_leaves_the_encoder_working(slow: SlowEncoder) -> None:
    slow.go_on.release(2)
    actor = await started(slow)
    with pytest.raises(ValueError, match="unlucky"):
        await actor.encode(packed([[13]]), "router", 0)
    hidden, _ = await actor.encode(packed([[14]]), "router", 0)
    assert unpack(hidden).tolist() == [[14.0]]
    assert (await actor.progress()).running_tokens == 0


async def test_a_batch_that_hangs_fails_the_health(slow: SlowEncoder) -> None:
    actor = await started(slow, stall_timeout_s=0.05)
    await asyncio.sleep(0.1)
    await actor.progress()  # idle is no stall
    running = asyncio.create_task(actor.encode(packed([[1]]), "router", 0))
    await asyncio.sleep(0.1)
    with pytest.raises(Unavailable, match="ended no batch"):
        await actor.progress()
    slow.go_on.release()
    await running
    await actor.progress()


async def test_media_that_cannot_be_decoded_are_refused_and_the_others_encoded(slow: SlowEncoder) -> None:
    slow.go_on.release(2)
    actor = await started(slow)
    sounds = [
        packed_input(EncoderInput(str(n), (n,) * n, media=(Media("audio", data),)))
        for n, data in ((1, b"fine"), (2, b"damaged"), (3, b"fine"))
    ]
    packed, summary = await actor.encode(sounds, "router", 0)
    assert unpack(packed).flatten().tolist() == [1, 0, 0, 3, 3, 3]
    assert {n: error.message for n, error in summary["refused"].items()} == {1: "is damaged"}
    packed, summary = await actor.encode(sounds[1:2], "router", 0)
    assert unpack(packed).flatten().tolist() == [0, 0]
    assert list(summary["refused"]) == [0]


async def test_no_inputs_are_no_work(slow: SlowEncoder) -> None:
    actor = await started(slow)
    packed, summary = await actor.encode([], "router", 0)
    assert len(unpack(packed)) == summary["tokens"] == 0
    assert slow.seen == []
