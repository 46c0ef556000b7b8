"""Where recordings are cut: held to Silero's own spans of speech, and what holds for any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem import InvalidRequest, ServerVad, TranscriptionParams
from tandem.workers.transcription.chunks import Chunk, chunks, speech_spans

FRAME = 512  # samples of a probability
RATE = 16_000

probabilities = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.36, 0.5, 0.55, 0.9]), st.integers(1, 40)), max_size=30
).map(lambda runs: [value for value, count in runs for _ in range(count)])
vads = st.builds(
    ServerVad,
    threshold=st.sampled_from([0.1, 0.3, 0.5, 0.7]),
    prefix_padding_ms=st.integers(0, 700),
    silence_duration_ms=st.integers(0, 900),
)


@pytest.fixture(scope="module")
def silero_spans() -> Any:
    threads = torch.get_num_threads()
    import silero_vad

    torch.set_num_threads(threads)  # importing it sets them to one
    return silero_vad.get_speech_timestamps_from_probs


def array(values: list[float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


@settings(max_examples=80, deadline=None)
@given(values=probabilities, vad=vads)
def test_spans_are_silero_s(silero_spans: Any, values: list[float], vad: ServerVad) -> None:
    theirs = silero_spans(
        values, threshold=vad.threshold, min_speech_duration_ms=0, speech_pad_ms=0,
        min_silence_duration_ms=vad.silence_duration_ms,
    )  # fmt: skip
    expected = [(one["start"] / FRAME, one["end"] / FRAME) for one in theirs]
    assert speech_spans(values, vad) == expected


@settings(max_examples=80, deadline=None)
@given(values=probabilities, pad_ms=st.integers(0, 900))
def test_padding_is_silero_s(silero_spans: Any, values: list[float], pad_ms: int) -> None:
    """Where it is the same on both sides; but for a time's step, which theirs is not a multiple of."""
    theirs = silero_spans(
        values, min_speech_duration_ms=0, speech_pad_ms=pad_ms, min_silence_duration_ms=pad_ms
    )
    vad = ServerVad(prefix_padding_ms=pad_ms, silence_duration_ms=pad_ms)
    # With windows of one frame each span is a chunk of its own.
    ours = chunks(array(values), len(values) * FRAME // 160, 1, vad)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.start == pytest.approx(other["start"] / 160, abs=3)
        assert one.stop == pytest.approx(other["end"] / 160, abs=3)


@settings(max_examples=150, deadline=None)
@given(values=probabilities, vad=vads, most=st.sampled_from([50, 100, 300]), lost=st.integers(0, 3))
def test_no_speech_is_lost_or_cut(values: list[float], vad: ServerVad, most: int, lost: int) -> None:
    """lost: frames of the spectrogram that a recording's last samples do not fill."""
    frames = max(0, len(values) * FRAME // 160 - lost)
    made = chunks(array(values), frames, most, vad)
    ends = [one.stop for one in made]
    assert all(one.start % 2 == 0 for one in made)  # a step of a time
    assert all(0 <= one.start < one.speech_stop <= one.stop <= frames for one in made)
    # One even frame may be in two chunks.
    assert all(one.start >= stop - 1 for one, stop in zip(made[1:], ends[:-1], strict=True))
    for start, stop in speech_spans(values, vad):
        first, last = int(start * 3.2), min(frames, -int(-stop * 3.2 // 1))
        whole = [one for one in made if one.start <= first and last <= one.speech_stop]
        assert len(whole) == (first < frames)
        if whole and whole[0].stop - whole[0].start > most:  # this speech alone
            assert whole[0].speech_stop == last
    spoken = [at for at, value in enumerate(values) if value >= vad.threshold]
    for frame in (at for at in (int(one * 3.2) for one in spoken) if at < frames):
        assert any(one.start <= frame < one.speech_stop for one in made)


def recording(*runs: tuple[float, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Probabilities; counts are of 320 ms, which are 32 frames of a spectrogram."""
    return array([value for value, count in runs for _ in range(10 * count)])


VAD = ServerVad(prefix_padding_ms=40, silence_duration_ms=60)


def test_speech_near_each_other_shares_a_window() -> None:
    made = chunks(recording((0, 1), (1, 2), (0, 1), (1, 2), (0, 9), (1, 1), (0, 1)), 17 * 32, 300, VAD)
    assert made == [Chunk(28, 198, 192), Chunk(476, 518, 512)]


def test_a_window_ends_with_the_longest_silence_in_its_last_third() -> None:
    runs = [(1.0, 3), (0.0, 2), (1.0, 2), (0.0, 2), (1.0, 1), (0.0, 1), (1.0, 9)]
    made = chunks(recording(*runs), 20 * 32, 12 * 32, VAD)
    # 5 and 10 of 12 could hold the first two and the first three; the longest silences are after 3 and 7.
    assert [(one.start, one.speech_stop) for one in made] == [(0, 10 * 32), (348, 640)]
    made = chunks(recording(*runs), 20 * 32, 10 * 32, VAD)
    assert [(one.start, one.speech_stop) for one in made] == [(0, 7 * 32), (284, 320), (348, 640)]


def test_speech_without_a_silence_is_longer_than_a_window() -> None:
    made = chunks(recording((1, 2), (0, 1), (1, 20), (0, 1), (1, 2)), 26 * 32, 200, VAD)
    assert [one.speech_stop - one.start for one in made] == [64, 644, 68]


def test_silence_has_no_chunks() -> None:
    assert chunks(recording((0.3, 9)), 9 * 32, 300, VAD) == []
    assert chunks(array([]), 0, 300, VAD) == []


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ("vad", "chunking_strategy"),
        (3, "chunking_strategy"),
        ({"type": "semantic_vad"}, "chunking_strategy.type"),
        ({"type": "server_vad", "threshold": 1.5}, "chunking_strategy.threshold"),
        ({"threshold": float("nan")}, "chunking_strategy.threshold"),
        ({"silence_duration_ms": -1}, "chunking_strategy.silence_duration_ms"),
        ({"prefix_padding_ms": 0.5}, "chunking_strategy.prefix_padding_ms"),
        ({"create_response": True}, "chunking_strategy.create_response"),
    ],
)
def test_what_is_no_strategy_is_refused_by_name(asked: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        TranscriptionParams(chunking_strategy=asked)
    assert refused.value.field == field


def test_openai_s_fields() -> None:
    """And their defaults, of the API's reference."""
    assert TranscriptionParams().vad is None
    own = TranscriptionParams(chunking_strategy="auto").vad
    assert own == ServerVad(threshold=0.5, prefix_padding_ms=300, silence_duration_ms=200)
    fields = {"type": "server_vad", "threshold": 0.2, "prefix_padding_ms": 1, "silence_duration_ms": 0}
    said = TranscriptionParams(chunking_strategy=fields)  # type: ignore[arg-type]
    assert said.vad is not None
    assert said.vad.model_dump() == fields
    with pytest.raises(InvalidRequest) as refused:
        ServerVad(threshold=2)
    assert refused.value.field == "threshold"
