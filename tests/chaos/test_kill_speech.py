"""Parts are killed in the middle of long recordings: the clients see nothing of an encoder or an engine, and
an `Unavailable` of an ingress replica, whose replacement gives the whole answer. What it costs is printed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import eventually, make_config, metrics, pids
from whisper import RATE, make_whisper, sound

from tandem import LLM, Client, Transcription, Unavailable
from tandem.cluster import launch
from tandem.cluster.endpoints import Endpoints
from tandem.inputs import Audio
from tandem.transcription import TranscriptionOptions

pytestmark = pytest.mark.ray
ENCODER, ENGINE, INGRESS = "ServeReplica:tandem:Encoder", "EngineActor", "ServeReplica:tandem:Ingress"
WINDOWS = 40  # of each recording, of a second each
UNDER_WAY_S = 4.0  # of each recording, transcribed when a part is killed
COUNT = 3
# By the actor that is killed; each has its own, of which nothing is in a cache.
RECORDINGS = {
    actor: [(sound(COUNT * number + at, float(WINDOWS)), RATE) for at in range(COUNT)]
    for number, actor in enumerate((ENCODER, ENGINE, INGRESS))
}
# Later windows depend on earlier ones, and some are decoded twice.
ASKED: TranscriptionOptions = {
    "temperature": (0.0, 0.4), "logprob_threshold": -0.25, "seed": 1, "condition_on_prev_tokens": True,
}  # fmt: skip
Said = list[tuple[float, float, list[int], float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"), "base", times=True)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, list[Said]]:
    """Answers by the actor that is killed."""
    each = [one for recordings in RECORDINGS.values() for one in recordings]
    with LLM(str(folder), dtype="float32") as llm:
        answers = llm.transcribe([*each], **ASKED)
    assert {one.temperature for answer in answers for one in answer.segments} == {0.0, 0.4}
    return {
        actor: [said(one) for one in answers[COUNT * number :][:COUNT]]
        for number, actor in enumerate(RECORDINGS)
    }


@pytest.fixture(scope="module")
def endpoints(folder: Path) -> Iterator[Endpoints]:
    config = make_config(
        model=str(folder),
        max_encoder_tokens=200,
        min_decoder_replicas=2,
        replica_wait_s=120.0,  # longer than a replacement takes to start
    )
    with launch.RunningCluster(config) as cluster:
        yield cluster.deploy(config)


def said(answer: Transcription) -> Said:
    return [(one.start_s, one.end_s, one.token_ids, one.temperature) for one in answer.segments]


class Calls:
    """One client for each recording; `under_way` once all are in the middle of theirs."""

    def __init__(self, address: str, recordings: Sequence[Audio]) -> None:
        self._address, self._recordings = address, recordings
        self._done_s = [0.0] * len(recordings)
        self._changed = threading.Condition()
        self.ended = 0

    def one(self, number: int) -> Transcription | Unavailable:
        try:
            with Client(self._address, timeout_s=240) as client:
                for delta in client.stream_transcription(self._recordings[number], **ASKED):
                    with self._changed:
                        self._done_s[number] = delta.done_s
                        self._changed.notify_all()
            assert delta.transcription is not None
            return delta.transcription
        except Unavailable as error:
            return error
        finally:
            with self._changed:
                self.ended += 1
                self._changed.notify_all()

    def wait_until_under_way(self) -> None:
        def ready() -> bool:
            return self.ended > 0 or min(self._done_s) >= UNDER_WAY_S

        with self._changed:
            assert self._changed.wait_for(ready, timeout=120)
            assert self.ended == 0
            assert max(self._done_s) < WINDOWS / 2


def disturbed(address: str, actor: str) -> tuple[list[Transcription | Unavailable], Callable[[], bool]]:
    """What each client gets while a process of the actor is killed, and whether that has been replaced."""
    before = pids(actor)
    victim = min(before)
    calls = Calls(address, RECORDINGS[actor])
    with ThreadPoolExecutor(COUNT) as pool:
        answers = pool.map(calls.one, range(COUNT))
        try:
            calls.wait_until_under_way()
        finally:
            os.kill(victim, signal.SIGKILL)
        found = list(answers)

    def back() -> bool:
        now = pids(actor)
        return victim not in now and len(now) >= len(before)

    return found, back


@pytest.mark.parametrize("actor", [ENCODER, ENGINE])
def test_unseen(
    endpoints: Endpoints,
    undisturbed: dict[str, list[Said]],
    actor: str,
    record_property: Callable[[str, object], None],
) -> None:
    """No window is encoded twice but those that were under way."""
    before = metrics(endpoints.http[0])
    answers, back = disturbed(endpoints.grpc[0], actor)
    for answer, expected in zip(answers, undisturbed[actor], strict=True):
        assert isinstance(answer, Transcription), answer
        assert said(answer) == expected
    after = metrics(endpoints.http[0])
    windows, misses, retries, resubmitted = (
        round(after[f"tandem_{name}_total"] - before[f"tandem_{name}_total"])
        for name in (
            "transcription_windows", "encoder_cache_misses", "encoder_retries", "resubmitted_requests",
        )
    )  # fmt: skip
    again = misses + retries - windows
    record_property(
        "chaos",
        f"{actor} killed in {COUNT} recordings of {WINDOWS} windows: all answers right; {windows} windows, "
        f"{again} encoded again, {resubmitted} requests resubmitted",
    )
    assert 0 <= again <= COUNT
    assert resubmitted <= COUNT
    eventually(back, "the killed part did not come back")


def test_an_ingress_replica(
    endpoints: Endpoints,
    undisturbed: dict[str, list[Said]],
    record_property: Callable[[str, object], None],
) -> None:
    """A clean error; the replacement answers, and what the lost replica had under way is given up."""
    answers, back = disturbed(endpoints.grpc[0], INGRESS)
    assert [type(one) for one in answers] == [Unavailable] * COUNT, answers
    eventually(back, "the killed replica did not come back")
    with Client(endpoints.grpc[0], timeout_s=240) as client:
        eventually(client.health, "the replacement does not answer")
        again = [client.transcribe(one, **ASKED) for one in RECORDINGS[INGRESS]]
    assert [said(one) for one in again] == undisturbed[INGRESS]
    record_property(
        "chaos",
        f"{INGRESS} killed: {len(answers)} of {COUNT} clients Unavailable, all right when they ask again",
    )
    eventually(
        lambda: metrics(endpoints.http[0])["tandem_num_requests_running"] == 0, "a request is left over"
    )
