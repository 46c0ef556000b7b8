"""Live transcriptions with a tiny model: turns, hypotheses and what becomes final."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from whisper import RATE, make_whisper, sound

from tandem import LLM, InvalidRequest
from tandem.live import LiveDelta, LiveParams
from tandem.transcription import ServerVad
from tandem.workers.requests.media.voice_activity import FRAME, VoiceActivity
from tandem.workers.transcription.builder import PreparedLive


@pytest.fixture(autouse=True)
def hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any sound is speech."""
    monkeypatch.setattr(
        VoiceActivity, "hear", lambda _, samples: (np.abs(samples.reshape(-1, FRAME)).max(axis=1) > 0) * 1.0
    )


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = make_whisper(tmp_path_factory.mktemp("whisper"), "turbo", times=True)
    with LLM(str(folder), dtype="float32") as llm:
        yield llm


def prepared(llm: LLM, **asked: Any) -> PreparedLive:
    return llm._transcription_builder.prepare_live(LiveParams(step_ms=200, **asked))


def run(llm: LLM, one: PreparedLive, stream: npt.NDArray[np.float32], chunk: int = 1600) -> list[LiveDelta]:
    """Deltas, with the engine faster than the speaker."""
    live = one.transcriber
    deltas: list[LiveDelta] = []

    def work() -> None:
        while requests := live.due():
            while requests:
                answers = list(llm._engine.deltas(requests))
                requests = [more for delta in answers for more in live.push(delta)]
        deltas.extend(live.deltas)
        live.deltas.clear()

    for at in range(0, len(stream), chunk):
        live.feed(stream[at : at + chunk])
        work()
    live.end()
    work()
    assert live.done
    return deltas


def texts(deltas: list[LiveDelta]) -> dict[int, str]:
    said: dict[int, str] = {}
    for delta in deltas:
        said[delta.turn] = said.get(delta.turn, "") + delta.final
    return said


def test_turns(llm: LLM) -> None:
    stream = np.concatenate([sound(1, 1.2), np.zeros(RATE, np.float32), sound(2, 0.9)])
    deltas = run(llm, prepared(llm, turn_detection=ServerVad(silence_duration_ms=320)), stream)
    assert list(texts(deltas)) == [0, 1]
    ends = [delta for delta in deltas if delta.end_s is not None]
    assert [(delta.turn, delta.partial) for delta in ends] == [(0, ""), (1, "")]
    assert [round(delta.start_s, 1) for delta in ends] == [0.0, 1.9]
    assert ends[0].end_s == pytest.approx(1.2 + 0.32, abs=0.04)
    assert {delta.language for delta in deltas[2:]} <= set(llm.info.speech.languages)  # type: ignore[union-attr]
    assert any(delta.final and delta.end_s is None for delta in deltas)  # some is final before the turn's end
    assert any(delta.partial for delta in deltas)


def test_a_whole_turn_at_once_is_what_transcribing_it_gives(llm: LLM) -> None:
    """Where nothing is heard in between, there is nothing to agree on."""
    asked: Any = {"language": "fr", "prompt": "ba be"}
    compared = 0
    for number in range(12):
        samples = sound(number, 1.5)
        deltas = run(llm, prepared(llm, turn_detection=None, **asked), samples, len(samples))
        each = [
            llm.transcribe((samples, RATE), semantics="openai", timestamps=None, temperature=one, **asked)
            for one in (None, (0.0,))
        ]
        # Else it was drawn, or this model, which says times unasked, moved its window by one.
        if each[0] == each[1] and each[0].encoder_tokens == 100:
            compared += 1
            assert "".join(delta.final for delta in deltas) == each[0].text
    assert compared


def test_commits_end_turns_and_what_is_cleared_is_never_said(llm: LLM) -> None:
    live = prepared(llm, turn_detection=None).transcriber
    live.feed(sound(1, 0.5))
    live.clear()
    live.commit()
    assert live.due() == []
    live.feed(sound(1, 0.5))
    live.commit()
    assert live.backlog == 1
    assert len(live.due()) == 1
    assert live.due() == []  # one at a time


def test_a_turn_that_is_cleared_leaves_nothing_to_the_next(llm: LLM) -> None:
    """Nor does it where hypotheses about it were made, and some of it was final."""
    answers = []
    for cleared in (np.zeros(0, np.float32), np.tile(sound(2, 0.3), 4)):
        one = prepared(llm, turn_detection=None, language="fr")
        live = one.transcriber
        for part in np.array_split(cleared, 6):
            live.feed(part)
            while requests := live.due():
                while requests:
                    deltas = list(llm._engine.deltas(requests))
                    requests = [more for delta in deltas for more in live.push(delta)]
        live.clear()
        live.deltas.clear()
        last = run(llm, one, sound(9, 1.0), RATE)
        answers.append("".join(delta.final for delta in last))
    assert answers[0] == answers[1] != ""


def test_a_turn_longer_than_a_window_is_cut(llm: LLM) -> None:
    deltas = run(llm, prepared(llm), sound(6, 4.5))
    ends = [(delta.start_s, delta.end_s) for delta in deltas if delta.end_s is not None]
    assert len(ends) >= 3
    assert all(end == start for (_, end), (start, _) in pairwise(ends))
    assert ends[-1][1] == pytest.approx(4.5, abs=0.1)


def test_what_cannot_be_is_refused_by_name(llm: LLM) -> None:
    for asked, field in (({"language": "klingon"}, "language"), ({"task": "sing"}, "task")):
        with pytest.raises(InvalidRequest) as refused:
            prepared(llm, **asked)
        assert refused.value.field == field
    for values, field in (({"step_ms": 5}, "step_ms"), ({"sample_rate": 4}, "sample_rate")):
        with pytest.raises(InvalidRequest) as refused:
            LiveParams(**values)
        assert refused.value.field == field
