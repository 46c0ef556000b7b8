"""The router's promises, on a cluster in one process: see fake_cluster.py. What Ray itself does is in
test_failover.py."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from fake_cluster import (
    FakeActor,
    FakeCluster,
    FakeEncoders,
    encode,
    expected,
    hypotheses,
    request,
    target_logprobs,
    task_error,
    until,
)
from ray.exceptions import ActorDiedError

from tandem.errors import InternalError, InvalidRequest, Overloaded, Unavailable
from tandem.inputs import Media
from tandem.limits import Limits
from tandem.workers.request import BeamSearch, Delta, EncoderInput, EngineRequest


async def test_many_requests_each_get_their_own_tokens() -> None:
    async with FakeCluster(engines=2) as cluster:
        requests = [request(f"r{i}", tokens=5 + i % 7, ids=(i, 1)) for i in range(50)]
        answers = await asyncio.gather(*map(cluster.collect, requests))
        assert answers == [(expected(r), "length") for r in requests]
        await cluster.settled()
        assert all(replica.engine.submitted for replica in cluster.decoders.replicas.values())


async def test_colocated_requests_reach_the_engine_without_hidden_states() -> None:
    async with FakeCluster(disaggregated=False) as cluster:
        assert await cluster.collect(request("r")) == (expected(request("r")), "length")
        [replica] = cluster.decoders.replicas.values()
        assert replica.engine.submitted[0].encoder.hidden is None


@pytest.mark.parametrize("disaggregated", [True, False])
async def test_media_go_where_they_are_encoded(disaggregated: bool) -> None:
    async with FakeCluster(disaggregated=disaggregated) as cluster:
        media = (Media("image", b"image"), Media("audio", b"audio"))
        text = request("r", ids=(3, 1, 1))
        asked = replace(text, encoder=replace(text.encoder, media=media))
        assert await cluster.collect(asked) == (expected(asked), "length")
        [replica] = cluster.decoders.replicas.values()
        assert tuple(cluster.encoders.media) == (media if disaggregated else ())
        assert replica.engine.submitted[0].encoder.media == (() if disaggregated else media)


async def test_equal_inputs_are_encoded_once_and_share_an_engine() -> None:
    async with FakeCluster(engines=2, slots=32) as cluster:
        cluster.encoders.step_s = 0.02
        samples = [request(f"same#{i}", ids=(7, 7, 1)) for i in range(4)]
        await asyncio.gather(*map(cluster.collect, samples))
        engines = [replica.engine for replica in cluster.decoders.replicas.values()]
        assert sorted(len(engine.submitted) for engine in engines) == [0, 4]
        await cluster.collect(request("same#4", ids=(7, 7, 1)))
        assert cluster.encoders.batches == [[[7, 7, 1]]]
        counters = cluster.router.stats().encoder
        assert (counters.cache_misses, counters.cache_hits) == (1, 4)


async def test_one_document_with_twenty_decoder_prompts_is_encoded_once() -> None:
    async with FakeCluster(engines=2, slots=32) as cluster:
        document = tuple(range(2, 40))
        asked = [replace(request(f"document#{i}", ids=document), prefix_ids=(0, i)) for i in range(20)]
        await asyncio.gather(*map(cluster.collect, asked))
        assert cluster.encoders.batches == [[list(document)]]
        counters = cluster.router.stats().encoder
        assert (counters.cache_misses, counters.cache_hits) == (1, 19)


async def test_equal_engines_share_the_requests() -> None:
    """Else the routers, which know them in the same order, would all take the first."""
    random.seed(0)
    async with FakeCluster(engines=4) as cluster:
        for number in range(40):
            await cluster.collect(request(f"r{number}", tokens=1, ids=(number, 1)))
        assert all(replica.engine.submitted for replica in cluster.decoders.replicas.values())


async def test_an_engine_sends_messages_by_the_step_not_by_the_token() -> None:
    async with FakeCluster(slots=16, step_s=0.01) as cluster:
        await asyncio.gather(*(cluster.collect(request(f"r{i}", tokens=50)) for i in range(16)))
        stats = cluster.router.stats()
        [engine], [messages] = stats.engines.values(), stats.messages.values()
        assert stats.generated_tokens == 16 * 50
        assert 0 < messages <= engine.steps
        assert stats.generated_tokens > 4 * messages


async def test_what_arrives_during_a_batch_goes_into_the_next() -> None:
    async with FakeCluster(encoder_batches_in_flight=1) as cluster:
        cluster.encoders.step_s = 0.05
        await asyncio.gather(*(cluster.collect(request(f"r{i}", ids=(i, 1))) for i in range(20)))
        assert [len(batch) for batch in cluster.encoders.batches] == [1, 19]


async def test_priority_decides_what_is_encoded_next() -> None:
    """That of the most urgent request, where several wait for one input."""
    async with FakeCluster(
        encoder_batches_in_flight=1, max_encoder_tokens=8, max_batched_tokens=8, max_num_seqs=8
    ) as cluster:
        cluster.encoders.step_s = 0.02
        requests = [request(f"r{i}", ids=(*range(i, i + 7), 1)) for i in range(6)]
        requests += [
            request("urgent", ids=(*range(50, 57), 1), priority=5),
            request("r4#urgent", ids=requests[4].encoder.token_ids, priority=3),
        ]
        await asyncio.gather(*map(cluster.collect, requests))
        order = [ids[0] for [ids] in cluster.encoders.batches]
        assert order == [0, 50, 4, 1, 2, 3, 5]


async def test_batches_keep_to_the_token_budget() -> None:
    async with FakeCluster(
        encoder_batches_in_flight=1, max_encoder_tokens=64, max_batched_tokens=64, max_num_seqs=8
    ) as cluster:
        cluster.encoders.step_s = 0.01
        inputs = [tuple(range(1 + i % 40)) for i in range(40)]
        await asyncio.gather(
            *(cluster.collect(request(f"r{i}", ids=(i, *ids))) for i, ids in enumerate(inputs))
        )
        sizes = [sum(map(len, batch)) for batch in cluster.encoders.batches]
        assert max(sizes) <= 64
        assert sum(sizes) == sum(len(ids) + 1 for ids in inputs)


async def test_a_killed_engine_leaves_no_gap_and_no_repeat() -> None:
    async with FakeCluster(engines=2, step_s=0.005) as cluster:
        requests = [request(f"r{i}", tokens=60, ids=(i, 1)) for i in range(10)]
        tasks = [asyncio.create_task(cluster.collect(r)) for r in requests]
        while cluster.router.stats().generated_tokens < 100:  # of 600
            await asyncio.sleep(0.005)
        cluster.kill(next(iter(cluster.decoders.replicas.values())))
        assert await asyncio.gather(*tasks) == [(expected(r), "length") for r in requests]
        [replica] = cluster.decoders.replicas.values()
        moved = [r for r in replica.engine.submitted if r.generated_ids]
        assert moved
        assert cluster.router.stats().resubmitted == len(moved)
        await cluster.settled()


async def test_workers_of_another_model_are_none() -> None:
    """As there are in the middle of an update, which only changes the model."""
    async with FakeCluster(step_s=0.005) as cluster:
        [engine] = cluster.decoders.replicas.values()
        other_encoder, other_engine = FakeEncoders(), await cluster.add_engine()
        for replica in (*other_encoder.replicas.values(), other_engine):
            replica.identity = "another model's"  # type: ignore[attr-defined]
        cluster.encoders.replicas["other"] = next(iter(other_encoder.replicas.values()))
        for pool in (cluster.router._encoders, cluster.router._engines):
            pool._discovery.look_soon()  # type: ignore[union-attr]
        requests = [request(f"r{i}", tokens=60, ids=(i, 1)) for i in range(20)]
        tasks = [asyncio.create_task(cluster.collect(r)) for r in requests]
        await asyncio.sleep(0.3)
        cluster.kill(engine)
        await cluster.add_engine()
        assert await asyncio.gather(*tasks) == [(expected(r), "length") for r in requests]
        assert not other_engine.engine.submitted
        assert not other_encoder.batches


async def test_beams_start_anew_on_another_engine() -> None:
    """Nothing of them has been delivered."""
    async with FakeCluster(engines=2, step_s=0.005) as cluster:
        plain = [request(f"r{i}", tokens=60, ids=(i, 1)) for i in range(8)]
        search = BeamSearch(2, 2, 1.0, early_stopping=False)
        requests = [replace(r, decoding=replace(r.decoding, beams=search)) for r in plain]

        async def collect(one: EngineRequest) -> list[Delta]:
            return [delta async for delta in cluster.router.generate(one)]

        tasks = [asyncio.create_task(collect(r)) for r in requests]
        await asyncio.sleep(0.1)
        cluster.kill(next(iter(cluster.decoders.replicas.values())))
        for [delta], of in zip(await asyncio.gather(*tasks), requests, strict=True):
            assert (delta.token_ids, delta.finish_reason) == ([], "length")
            assert delta.hypotheses == hypotheses(of)
        [replica] = cluster.decoders.replicas.values()
        assert cluster.router.stats().resubmitted > 0
        assert not any(r.generated_ids for r in replica.engine.submitted)
        assert cluster.router.stats().generated_tokens == 8 * 2 * 60
        await cluster.settled()


async def test_scoring_starts_anew_on_another_engine() -> None:
    """Likewise; what is scored counts as generated nowhere."""
    async with FakeCluster(engines=2, step_s=0.005) as cluster:
        requests = []
        for i in range(8):
            one = request(f"r{i}", tokens=60, ids=(i, 1))
            how = replace(one.decoding, logprobs=0)
            requests.append(replace(one, decoding=how, target_ids=tuple(range(60))))

        async def collect(one: EngineRequest) -> list[Delta]:
            return [delta async for delta in cluster.router.generate(one)]

        tasks = [asyncio.create_task(collect(r)) for r in requests]
        await asyncio.sleep(0.1)
        cluster.kill(next(iter(cluster.decoders.replicas.values())))
        for [delta], of in zip(await asyncio.gather(*tasks), requests, strict=True):
            assert (delta.token_ids, delta.logprobs) == ([], target_logprobs(of))
        assert cluster.router.stats().resubmitted > 0
        assert cluster.router.stats().generated_tokens == 0
        await cluster.settled()


async def test_with_no_engine_left_requests_wait_for_the_replacement() -> None:
    async with FakeCluster(step_s=0.005) as cluster:
        task = asyncio.create_task(cluster.collect(request("r", tokens=40)))
        await asyncio.sleep(0.05)
        cluster.kill(next(iter(cluster.decoders.replicas.values())))
        await asyncio.sleep(0.3)
        assert not await cluster.router.ready()
        await cluster.add_engine()
        assert await task == (expected(request("r", tokens=40)), "length")


async def test_with_no_replacement_requests_end_with_unavailable() -> None:
    async with FakeCluster(engines=0, replica_wait_s=0.2) as cluster:
        with pytest.raises(Unavailable, match="no decoder"):
            await cluster.collect(request("r"))
        await cluster.settled()


async def test_a_request_whose_engines_keep_dying_is_given_up() -> None:
    async with FakeCluster() as cluster:
        for _ in range(6):
            (await cluster.add_engine()).engine.stuck = True
        for replica in cluster.decoders.replicas.values():
            replica.engine.stuck = True
        task = asyncio.create_task(cluster.collect(request("killer")))
        killed = 0
        while not task.done():
            for replica in list(cluster.decoders.replicas.values()):
                if replica.engine.submitted:
                    cluster.kill(replica)
                    killed += 1
            await asyncio.sleep(0.01)
        with pytest.raises(InternalError, match="died"):
            await task
        assert killed == 4


async def test_a_draining_engine_finishes_its_own_and_gets_no_more() -> None:
    async with FakeCluster(engines=2, step_s=0.005) as cluster:
        before = [request(f"a{i}", tokens=40, ids=(i, 1)) for i in range(6)]
        tasks = [asyncio.create_task(cluster.collect(r)) for r in before]
        while sum(len(actor.engine.submitted) for actor in cluster.decoders.replicas.values()) < len(before):
            await asyncio.sleep(0.001)
        name, draining = next(iter(cluster.decoders.replicas.items()))
        had = len(draining.engine.submitted)
        assert had
        drained = asyncio.create_task(draining.actor.drain())
        await asyncio.sleep(0)
        del cluster.decoders.replicas[name]
        after = [request(f"b{i}", ids=(100 + i, 1)) for i in range(6)]
        answers = await asyncio.gather(*tasks, *map(cluster.collect, after))
        assert answers == [(expected(r), "length") for r in before + after]
        await asyncio.wait_for(drained, 5)
        assert draining.engine.closed
        assert len(draining.engine.submitted) == had
        assert cluster.router.stats().resubmitted == 0


async def test_an_engine_hears_of_a_request_while_its_input_is_encoded() -> None:
    async with FakeCluster() as cluster:
        [replica] = cluster.decoders.replicas.values()
        with cluster.encoders.held():
            task = asyncio.create_task(cluster.collect(request("r")))
            await until(lambda: replica.actor._live)
            await asyncio.sleep(0.1)
            assert cluster.encoders.running
            assert not replica.engine.submitted
        assert await task == (expected(request("r")), "length")
        [submitted] = replica.engine.submitted
        assert submitted.waited_s >= 0.1
        [handoff] = cluster.router.stats().handoffs.values()
        assert handoff.reads == 1
        assert handoff.nbytes == encode(request("r").encoder.token_ids).nbytes


@pytest.mark.parametrize("step_s", [0.0, 0.05])
async def test_an_engine_that_waits_for_a_failed_encoder_hears_of_the_next_try(step_s: float) -> None:
    async with FakeCluster(engines=2, encoder_batches_in_flight=1) as cluster:
        cluster.encoders.step_s = step_s
        cluster.encoders.faults = [task_error(RuntimeError("oops")), task_error(Unavailable("draining"))]
        cluster.encoders.replace()
        requests = [request(f"r{i}", ids=(i, 1)) for i in range(8)]
        answers = await asyncio.gather(*map(cluster.collect, requests))
        assert answers == [(expected(r), "length") for r in requests]
        assert cluster.router.stats().encoder.retries >= 2
        assert cluster.router.stats().resubmitted == 0, "no engine had begun with it"
        await cluster.settled()


async def test_an_engine_that_dies_while_the_encoder_works_costs_no_second_encoding() -> None:
    async with FakeCluster() as cluster:
        [replica] = cluster.decoders.replicas.values()
        with cluster.encoders.held():
            task = asyncio.create_task(cluster.collect(request("r")))
            await until(lambda: replica.actor._live)
            await cluster.add_engine()
            cluster.kill(replica)
        assert await task == (expected(request("r")), "length")
        assert len(cluster.encoders.batches) == 1


async def test_what_is_cancelled_or_late_while_it_is_encoded_never_gets_to_the_engine() -> None:
    async with FakeCluster() as cluster:
        [replica] = cluster.decoders.replicas.values()
        with cluster.encoders.held():
            cancelled = asyncio.create_task(cluster.collect(request("r")))
            late = asyncio.create_task(cluster.collect(request("late", timeout_s=1)))
            await until(lambda: len(replica.actor._live) == 2)
            cancelled.cancel()
            assert await late == ([], "deadline")
            await until(lambda: not replica.actor._live)
            assert cluster.encoders.running
        await cluster.settled()
        assert not replica.engine.submitted


async def test_a_router_that_closes_while_an_encoder_works_says_so() -> None:
    async with FakeCluster(encoder_batches_in_flight=1) as cluster:
        with cluster.encoders.held():
            sent = asyncio.create_task(cluster.collect(request("sent", ids=(1, 1))))
            await until(lambda: cluster.encoders.running)
            queued = asyncio.create_task(cluster.collect(request("queued", ids=(2, 1))))
            await until(lambda: cluster.router.stats().queued_encoder_tokens == 2)
            await cluster.router.close()
            for task in (sent, queued):
                with pytest.raises(Unavailable):
                    await asyncio.wait_for(task, 10)


async def test_what_is_being_encoded_does_not_fill_an_idle_engine() -> None:
    """Else an encoder that hangs would hold up everybody, and not only its own."""
    async with FakeCluster(slots=2, encoder_batches_in_flight=12) as cluster:
        hot = request("hot", ids=(9, 1))
        await cluster.collect(hot)
        with cluster.encoders.held():
            tasks = [asyncio.create_task(cluster.collect(request(f"r{i}", ids=(i, 1)))) for i in range(12)]
            await until(lambda: sum(map(len, cluster.encoders.batches)) >= 13)
            async with asyncio.timeout(10):
                assert await cluster.collect(request("hot#2", ids=(9, 1))) == (expected(hot), "length")
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def test_an_engine_that_drains_does_not_wait_for_encoders() -> None:
    async with FakeCluster() as cluster:
        [(name, replica)] = cluster.decoders.replicas.items()
        with cluster.encoders.held():
            task = asyncio.create_task(cluster.collect(request("r")))
            await until(lambda: replica.actor._live)
            await cluster.add_engine()
            del cluster.decoders.replicas[name]
            await asyncio.wait_for(replica.actor.drain(), 10)
            assert cluster.encoders.running
        assert await task == (expected(request("r")), "length")
        assert not replica.engine.submitted


async def test_an_encoder_that_answers_nonsense_is_asked_so_many_times() -> None:
    async with FakeCluster() as cluster:

        async def nonsense(inputs: list[list[int]]) -> tuple[object, dict[str, int]]:
            return None, {"tokens": len(inputs)}

        cluster.encoders.run = nonsense  # type: ignore[assignment,method-assign]
        with pytest.raises(Unavailable, match="3 tries"):
            await cluster.collect(request("r"))
        assert len(cluster.encoders.batches) == 3


async def test_lost_hidden_states_are_encoded_again() -> None:
    async with FakeCluster() as cluster:
        await cluster.collect(request("r", ids=(5, 1)))
        cluster.encoders.references[0].lose()  # the cache still has it
        again = request("r#again", ids=(5, 1))
        assert await cluster.collect(again) == (expected(again), "length")
        assert len(cluster.encoders.batches) == 2


async def test_hidden_states_that_keep_vanishing_end_with_unavailable() -> None:
    async with FakeCluster(encoder_attempts=2) as cluster:
        cluster.encoders.losing = True
        with pytest.raises(Unavailable, match="lost 2 times"):
            await cluster.collect(request("r"))
        assert len(cluster.encoders.batches) == 2


async def test_a_dead_encoder_is_replaced_by_another_try() -> None:
    async with FakeCluster() as cluster:
        cluster.encoders.faults = [ActorDiedError()]
        cluster.encoders.replace()
        requests = [request(f"r{i}", ids=(i, 1)) for i in range(8)]
        answers = await asyncio.gather(*map(cluster.collect, requests))
        assert answers == [(expected(r), "length") for r in requests]
        assert cluster.router.stats().encoder.retries > 0


async def test_without_any_encoder_the_router_is_not_ready() -> None:
    async with FakeCluster() as cluster:
        assert await cluster.router.ready()
        cluster.encoders.replicas.clear()
        async with asyncio.timeout(10):
            while await cluster.router.ready():
                cluster.router._encoders._discovery.look_soon()  # type: ignore[union-attr]
                await asyncio.sleep(0.05)


async def test_a_poisonous_input_fails_alone() -> None:
    async with FakeCluster(encoder_batches_in_flight=1) as cluster:
        cluster.encoders.step_s = 0.02
        cluster.encoders.poison = 66
        good = [request(f"r{i}", ids=(i, 1)) for i in range(6)]
        bad = asyncio.create_task(cluster.collect(request("bad", ids=(66, 1))))
        answers = await asyncio.gather(*map(cluster.collect, good))
        assert answers == [(expected(r), "length") for r in good]
        with pytest.raises(Unavailable, match="3 tries"):
            await bad


async def test_an_encoder_that_refuses_an_input_says_why() -> None:
    async with FakeCluster() as cluster:
        cluster.encoders.faults = [task_error(InvalidRequest("too long", field="prompt"))]
        with pytest.raises(InvalidRequest, match="prompt: too long"):
            await cluster.collect(request("r"))


async def test_an_engine_that_refuses_a_request_says_why() -> None:
    async with FakeCluster() as cluster:
        [replica] = cluster.decoders.replicas.values()

        def refuse(_: object) -> None:
            raise InvalidRequest("never fits", field="max_tokens")

        replica.engine.submit = refuse  # type: ignore[method-assign,assignment]
        with pytest.raises(InvalidRequest, match="max_tokens: never fits"):
            await cluster.collect(request("r"))


async def test_an_engine_whose_step_raises_fails_its_health() -> None:
    async with FakeCluster(replica_wait_s=0.3) as cluster:
        [replica] = cluster.decoders.replicas.values()
        replica.engine.fail_with = RuntimeError("device lost")
        task = asyncio.create_task(cluster.collect(request("r", timeout_s=2.0)))
        assert "device lost" in await asyncio.wait_for(replica.actor.watch(), 5)
        with pytest.raises(Unavailable, match="device lost"):
            await replica.actor.progress()
        cluster.kill(replica)  # as the supervisor does when `watch` returns
        with pytest.raises(Unavailable):
            await task


async def test_a_stalled_engine_fails_its_health() -> None:
    async with FakeCluster(stall_timeout_s=0.1) as cluster:
        [replica] = cluster.decoders.replicas.values()
        await asyncio.sleep(0.2)
        await replica.actor.progress()  # idle is no stall
        replica.engine.stuck = True
        stream = asyncio.create_task(cluster.collect(request("r")))
        await asyncio.sleep(0.3)
        with pytest.raises(Unavailable, match="no step"):
            await replica.actor.progress()
        replica.engine.stuck = False
        await stream
        await replica.actor.progress()


async def test_a_router_that_vanishes_loses_its_requests_after_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tandem.cluster.replicas.router_link.LEASE_S", 0.3)
    monkeypatch.setattr("tandem.cluster.replicas.engine_actor.LEASE_S", 0.3)
    async with FakeCluster(step_s=0.005) as cluster:
        replica: FakeActor = next(iter(cluster.decoders.replicas.values()))
        stream = replica.actor.attach("vanishing")
        await anext(stream)
        from tandem.cluster.messages import Submission

        assert await replica.actor.exchange("vanishing", [Submission(request("r", 100_000), None)], [])
        while not replica.engine.submitted:
            await asyncio.sleep(0.005)
        async with asyncio.timeout(5):
            while replica.engine.has_work:
                await asyncio.sleep(0.01)
        assert replica.engine.cancelled == ["r"]
        assert not await replica.actor.exchange("vanishing", [], [])


async def test_files_in_work_are_bounded_in_bytes() -> None:
    """Samples of one input hold its file once, and what has ended holds none."""
    limits = Limits(queued_media_bytes=100)
    async with FakeCluster(limits=limits) as cluster:

        def hearing(key: str, size: int) -> EngineRequest:
            one = request(key, 3)
            media = (Media("audio", bytes(size)),)
            return replace(one, encoder=replace(one.encoder, key=key, media=media))

        first = [hearing("a", 60), replace(hearing("a", 60), request_id="a2")]
        with cluster.router.accept(first):
            with pytest.raises(Overloaded, match="60 bytes of media are in work and 50 more exceed 100"):
                with cluster.router.accept([hearing("b", 50)]):
                    pass
            with cluster.router.accept([hearing("c", 40)]), cluster.router.accept([request("text", 3)]):
                pass
        with cluster.router.accept([hearing("d", 100)]):
            pass


async def test_an_input_without_positions_needs_no_encoder() -> None:
    """A text alone, for a model that reads images: the engine gets it at once."""
    async with FakeCluster() as cluster:
        text = request("r")
        asked = replace(text, encoder=EncoderInput("none", ()))
        assert await cluster.collect(asked) == (expected(asked), "length")
        assert cluster.encoders.batches == []
