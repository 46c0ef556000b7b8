"""`LLM.transcribe_each`: any number of recordings, and how far each is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from audio_files import wav
from slow_decoding import SlowDecoding
from whisper import RATE, make_whisper, sound

from tandem import LLM, InvalidRequest, Transcription
from tandem.inputs import Audio

LENGTHS_S = (3.3, 0.7, 2.2, 1.0)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = make_whisper(tmp_path_factory.mktemp("whisper"), "base", times=True)
    with LLM(str(folder), dtype="float32", max_num_seqs=3, check_invariants=True) as llm:
        yield llm


def test_each_goes_on_to_its_answer(llm: LLM, tmp_path: Path) -> None:
    recordings: list[Audio] = [(sound(seed, length), RATE) for seed, length in enumerate(LENGTHS_S)]
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    for at, bad in ((1, tmp_path / "broken.wav"), (3, b""), (6, "nowhere.mp3")):
        recordings.insert(at, bad)
    steps = defaultdict(list)
    for step in llm.transcribe_each(iter(recordings), language="en"):
        steps[step.number].append(step)
    assert sorted(steps) == list(range(7))
    for number, own in steps.items():
        last = own[-1].answer
        assert all(step.answer is None for step in own[:-1])
        if number in (1, 3, 6):
            assert isinstance(last, InvalidRequest)
            assert last.field == "audio"
            continue
        assert isinstance(last, Transcription)
        assert last.text == llm.transcribe(recordings[number], language="en").text
        done = [step.done_s for step in own]
        assert done == sorted(done)
        assert done[-1] == own[-1].duration_s == last.duration_s
    assert len(steps[0]) > 2, "a step for each window"


def test_segments_are_there_without_times_too(llm: LLM) -> None:
    *_, last = llm.transcribe_each([(sound(1, 3.0), RATE)], language="en", timestamps=None)
    assert isinstance(last.answer, Transcription)
    assert not last.answer.segments
    assert last.segments
    assert all(segment.token_ids for segment in last.segments)


def test_closing_ends_what_is_under_way(llm: LLM) -> None:
    taken = []

    def read() -> Iterator[bytes]:
        for seed in range(1000):
            taken.append(seed)
            yield wav(sound(seed, 3.0), RATE)

    steps = llm.transcribe_each(read())
    next(steps)
    steps.close()
    stats = llm.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
    assert len(taken) < 20


def test_nor_does_decoding_go_on(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for it no longer than from one look at it to the next; so does a list's first error."""
    file, broken = wav(sound(0, 9.0), RATE), wav(np.full(RATE, np.nan), RATE)
    slow = SlowDecoding(monkeypatch, file)
    steps = llm.transcribe_each([(sound(1, 1.0), RATE), file])
    next(steps)
    assert slow.begun.wait(30)
    began = time.monotonic()
    steps.close()
    assert slow.ended.is_set()
    with pytest.raises(InvalidRequest):
        llm.transcribe([broken, file])
    assert time.monotonic() - began < 2.0


def test_what_no_recording_can_be_asked_is_an_error(llm: LLM) -> None:
    for asked, field in (({"language": "xx"}, "language"), ({"num_beams": 0}, "num_beams")):
        with pytest.raises(InvalidRequest) as refused:
            next(llm.transcribe_each([b""], **asked))  # type: ignore[arg-type]
        assert refused.value.field == field
    assert list(llm.transcribe_each([])) == []
