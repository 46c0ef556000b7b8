"""Hidden states for clients go the way of a generation's inputs: queue, batches, cache, retries, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fake_cluster import D_MODEL, FakeCluster, encode, expected, request, task_error, until

from tandem.cluster.callers import ANYBODY, CALLER, Caller
from tandem.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from tandem.limits import Limits
from tandem.workers.request import EncodeRequest, EncoderInput

PLACEMENTS = pytest.mark.parametrize("disaggregated", [True, False])


def asked(ids: Sequence[int], *, priority: int = 0, timeout_s: float | None = None) -> EncodeRequest:
    return EncodeRequest(EncoderInput(str(ids), tuple(ids)), priority, timeout_s)


@PLACEMENTS
async def test_each_input_gets_its_own_states(disaggregated: bool) -> None:
    async with FakeCluster(engines=2, disaggregated=disaggregated) as cluster:
        inputs = [[number, *range(number % 7), 1] for number in range(40)]
        states = await cluster.router.hidden_states([asked(ids) for ids in inputs])
        assert [one.tolist() for one in states] == [encode(ids).tolist() for ids in inputs]
        stats = cluster.router.stats()
        assert (stats.outstanding, stats.encoder_replicas) == (0, int(disaggregated))
        assert stats.encoder.batch_tokens == sum(map(len, inputs))
        await cluster.settled()


@PLACEMENTS
async def test_they_share_batches_and_the_cache_with_generations(disaggregated: bool) -> None:
    async with FakeCluster(disaggregated=disaggregated) as cluster:
        cluster.encoders.step_s = 0.02
        generated = [request(f"r{number}", ids=(number, 1)) for number in range(8)]
        embedding = asyncio.create_task(
            cluster.router.hidden_states([asked([50, number, 1]) for number in range(8)])
        )
        answers = await asyncio.gather(*map(cluster.collect, generated))
        states = await embedding
        assert answers == [(expected(one), "length") for one in generated]
        assert [one.tolist() for one in states] == [encode([50, n, 1]).tolist() for n in range(8)]
        if disaggregated:  # otherwise engines encode what they generate from in their own steps
            assert any({len(ids) for ids in batch} == {2, 3} for batch in cluster.encoders.batches)
        hits = cluster.router.stats().encoder.cache_hits
        await cluster.router.hidden_states([asked([50, number, 1]) for number in range(8)])
        assert cluster.router.stats().encoder.cache_hits == hits + 8


@PLACEMENTS
async def test_a_batch_holds_no_more_than_its_tokens(disaggregated: bool) -> None:
    async with FakeCluster(disaggregated=disaggregated, max_encoder_tokens=16) as cluster:
        await cluster.router.hidden_states([asked([number, *range(4)]) for number in range(20)])
        [replica] = cluster.decoders.replicas.values()
        batches = cluster.encoders.batches if disaggregated else replica.engine.encoded
        assert max(sum(map(len, batch)) for batch in batches) <= 16
        assert sum(map(len, batches)) == 20


async def test_those_of_higher_priority_go_first() -> None:
    async with FakeCluster(max_encoder_tokens=3, encoder_batches_in_flight=1) as cluster:
        cluster.encoders.step_s = 0.01
        await asyncio.gather(
            *(cluster.router.hidden_states([asked([number, 2, 1], priority=number)]) for number in range(5))
        )
        first, *rest = [batch[0][0] for batch in cluster.encoders.batches]
        assert first == 0, "it met an idle encoder"
        assert rest == [4, 3, 2, 1]


@PLACEMENTS
async def test_time_that_is_over_is_an_error(disaggregated: bool) -> None:
    async with FakeCluster(disaggregated=disaggregated) as cluster:
        cluster.encoders.step_s = 5
        for replica in cluster.decoders.replicas.values():
            replica.delays["encode"] = [5, 5, 5, 5]
        with pytest.raises(DeadlineExceeded):
            await cluster.router.hidden_states([asked([3, 1], timeout_s=0.05)])
        assert cluster.router.stats().outstanding == 0


async def test_a_cancelled_one_leaves_the_queue() -> None:
    async with FakeCluster(max_encoder_tokens=4, encoder_batches_in_flight=1) as cluster:
        with cluster.encoders.held():
            running = asyncio.create_task(cluster.router.hidden_states([asked([3, 2, 1, 1])]))
            await until(lambda: cluster.encoders.running)
            waiting = asyncio.create_task(cluster.router.hidden_states([asked([4, 2, 1, 1])]))
            await until(lambda: cluster.router.stats().queued_encoder_tokens == 4)
            waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert cluster.router.stats().queued_encoder_tokens == 0
        assert cluster.encoders.batches == [[[3, 2, 1, 1]]]
        await cluster.settled()


@pytest.mark.parametrize("caller", [ANYBODY, Caller("keyed")], ids=["anybody", "keyed"])
async def test_limits_count_them(caller: Caller) -> None:
    CALLER.set(caller)  # of this test's own context
    async with FakeCluster(limits=Limits(queued_requests=3)) as cluster:
        with cluster.encoders.held():
            running = asyncio.create_task(cluster.router.hidden_states([asked([n, 1]) for n in range(2)]))
            await until(lambda: cluster.router.stats().outstanding == 2)
            with pytest.raises(Overloaded, match="2 sequences are in work and 2 more exceed 3"):
                await cluster.router.hidden_states([asked([8, 1]), asked([9, 1])])
        assert await cluster.collect(request("r")) == (expected(request("r")), "length")
        await running


async def test_faults_of_encoders_are_made_good() -> None:
    async with FakeCluster() as cluster:
        cluster.encoders.faults = [task_error(ValueError("once"))]
        [states] = await cluster.router.hidden_states([asked([3, 2, 1])])
        assert states.shape == (3, D_MODEL)
        cluster.encoders.losing, cluster.encoders.step_s = True, 0.01
        lost = asyncio.create_task(cluster.router.hidden_states([asked([4, 2, 1])]))
        await until(lambda: len(cluster.encoders.batches) >= 4)  # the second try of it
        cluster.encoders.losing = False
        assert (await lost)[0].tolist() == encode([4, 2, 1]).tolist()
        cluster.encoders.losing = True
        with pytest.raises(Unavailable, match="lost"):
            await cluster.router.hidden_states([asked([5, 2, 1])])


@PLACEMENTS
async def test_one_that_is_refused_ends_all_of_its_call(disaggregated: bool) -> None:
    async with FakeCluster(disaggregated=disaggregated) as cluster:
        refusal = task_error(InvalidRequest("no such input", field="prompt"))
        if disaggregated:
            cluster.encoders.faults = [refusal] * 3
        else:
            [replica] = cluster.decoders.replicas.values()
            replica.engine.refusal = InvalidRequest("no such input", field="prompt")
        with pytest.raises(InvalidRequest, match="no such input"):
            await cluster.router.hidden_states([asked([3, 1]), asked([4, 1])])
        await cluster.settled()


async def test_what_is_refused_says_which_of_its_calls_prompts_it_is() -> None:
    async with FakeCluster() as cluster:
        cluster.encoders.faults = [task_error(InvalidRequest("no such input", field="prompt"))]
        with pytest.raises(InvalidRequest, match=r"no such input \(in prompt 7 of 9\)") as caught:
            await cluster.router.hidden_states([replace(asked([3, 1]), number=6, prompts=9)])
        assert caught.value.field == "prompt"


@PLACEMENTS
async def test_draining_waits_for_them_and_closing_fails_them(disaggregated: bool) -> None:
    async with FakeCluster(disaggregated=disaggregated, step_s=0.05) as cluster:
        cluster.encoders.step_s = 0.5
        running = asyncio.create_task(cluster.router.hidden_states([asked([3, 1])]))
        await asyncio.sleep(0)
        await cluster.router.drain()
        assert running.done()
        assert [one.shape for one in running.result()] == [(2, D_MODEL)]
        with pytest.raises(Unavailable):
            await cluster.router.hidden_states([asked([3, 1])])
    async with FakeCluster(disaggregated=disaggregated, step_s=0.5) as cluster:
        cluster.encoders.step_s = 0.5
        running = asyncio.create_task(cluster.router.hidden_states([asked([3, 1])]))
        await asyncio.sleep(0.05)
        await cluster.router.close()
        with pytest.raises(Unavailable):
            await running


async def test_a_lost_decoder_that_encodes_is_replaced_by_another() -> None:
    async with FakeCluster(engines=2, disaggregated=False, step_s=0.02) as cluster:
        calls = asyncio.create_task(cluster.router.hidden_states([asked([n, 2, 1]) for n in range(30)]))
        await asyncio.sleep(0.03)
        cluster.kill(next(iter(cluster.decoders.replicas.values())))
        assert [one.tolist() for one in await calls] == [encode([n, 2, 1]).tolist() for n in range(30)]
