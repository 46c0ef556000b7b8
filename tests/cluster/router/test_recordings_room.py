"""What the router does for recordings, whose windows come one after another: room, features, one engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from fake_cluster import FakeCluster, expected, request

from tandem.errors import Overloaded, Unavailable
from tandem.limits import Limits


async def test_windows_of_an_accepted_recording_are_not_refused() -> None:
    async with FakeCluster(limits=Limits(queued_requests=2)) as cluster:
        router = cluster.router
        with router.keep_room(10, 60.0) as room:
            with router.accept([request("a"), request("b")]):
                with pytest.raises(Overloaded):
                    router.check_room()
                with router.accept([request("window")], within=room) as [routed]:
                    assert [delta async for delta in router.deltas(routed)][-1].finish_reason == "length"


async def test_seconds_and_bytes_of_recordings_are_bounded() -> None:
    async with FakeCluster(limits=Limits(queued_audio_seconds=100.0, queued_media_bytes=50)) as cluster:
        router = cluster.router
        with router.keep_room(10, 60.0) as room:
            with pytest.raises(Overloaded, match="60 s of audio are in work and 50 more exceed 100"):
                router.keep_room(10, 50.0).__enter__()
            with pytest.raises(Overloaded, match="10 bytes of media are in work and 45 more exceed 50"):
                router.keep_room(45, 1.0).__enter__()
            room.audio_s = 30.0  # as it turned out
            with router.keep_room(10, 50.0):
                pass
        with router.keep_room(50, 1_000.0):  # alone, whatever its length
            pass


async def test_draining_waits_for_recordings_and_closing_ends_them() -> None:
    async with FakeCluster() as cluster:
        router = cluster.router
        with router.keep_room(10, 60.0) as room:
            draining = asyncio.create_task(router.drain())
            await asyncio.sleep(0.1)
            with pytest.raises(Unavailable):
                router.keep_room(10, 1.0).__enter__()
            with router.accept([request("window")], within=room) as [routed]:
                assert [delta async for delta in router.deltas(routed)][-1].finish_reason == "length"
            assert not draining.done()
        await asyncio.wait_for(draining, 5)
        await router.close()
        with pytest.raises(Unavailable):
            router.accept([request("late")], within=room).__enter__()


@pytest.mark.parametrize("disaggregated", [True, False])
async def test_features_go_where_they_are_encoded(disaggregated: bool) -> None:
    async with FakeCluster(disaggregated=disaggregated) as cluster:
        features = torch.arange(6.0).reshape(1, 2, 3)
        plain = request("r", ids=(1, 1))
        asked = replace(plain, encoder=replace(plain.encoder, features=features))
        assert await cluster.collect(asked) == (expected(asked), "length")
        [replica] = cluster.decoders.replicas.values()
        there = replica.engine.submitted[0].encoder.features
        found = cluster.encoders.features if disaggregated else [there]
        assert len(found) == 1
        assert found[0] is not None
        assert torch.equal(found[0], features)
        assert (there is None) == disaggregated


async def test_a_window_s_next_try_goes_to_the_engine_that_keeps_it() -> None:
    async with FakeCluster(engines=4, disaggregated=False) as cluster:
        for number in range(8):
            one = replace(request(f"window#{number}", ids=(5, 1)), keeps_input=True)
            await cluster.collect(one)
            await cluster.settled()
        used = [len(replica.engine.submitted) for replica in cluster.decoders.replicas.values()]
        assert sorted(used) == [0, 0, 0, 8]
