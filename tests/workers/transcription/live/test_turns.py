"""A stream cut into turns, with a voice activity model that hears any sound for speech."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tandem.transcription import ServerVad
from tandem.workers.requests.media.voice_activity import FRAME, RATE, VoiceActivity
from tandem.workers.transcription.live.turns import Turns

VAD = ServerVad(prefix_padding_ms=64, silence_duration_ms=320)  # two frames, ten frames


@pytest.fixture(autouse=True)
def hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    def hear(self: VoiceActivity, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        del self
        return np.abs(samples.reshape(-1, FRAME)).max(axis=1)

    monkeypatch.setattr(VoiceActivity, "hear", hear)


def sound(frames: int, level: float = 1.0) -> npt.NDArray[np.float32]:
    return np.full(frames * FRAME, level, np.float32)


def found(turns: Turns) -> list[tuple[int, int, bool]]:
    return [(turn.start // FRAME, turn.length // FRAME, turn.ended) for turn in turns.turns]


@pytest.mark.parametrize("chunk", [1, 100, FRAME, FRAME + 1, 40_000])
def test_silences_end_turns_however_the_sound_comes(chunk: int) -> None:
    stream = np.concatenate(
        [sound(7, 0), sound(20), sound(5, 0), sound(5), sound(30, 0), sound(8), sound(3, 0)]
    )
    if chunk == 1:
        stream = stream[: 10 * FRAME]
    turns = Turns(VAD, 30.0)
    for at in range(0, len(stream), chunk):
        turns.feed(stream[at : at + chunk])
    if chunk == 1:
        assert found(turns) == [(5, 5, False)]
        return
    assert found(turns) == [(5, 42, True), (65, 13, False)]
    assert np.array_equal(turns.turns[0].samples, stream[5 * FRAME : 47 * FRAME])
    turns.end()
    assert found(turns)[1] == (65, 13, True)


def test_a_turn_without_a_silence_is_cut_at_its_likeliest_pause() -> None:
    turns = Turns(VAD, 100 * FRAME / RATE)
    turns.feed(np.concatenate([sound(70), sound(1, 0.6), sound(60)]))
    assert found(turns) == [(0, 71, True), (71, 60, False)]
    turns.feed(sound(50))
    assert [length for _, length, _ in found(turns)][:2] == [71, 100]


def test_without_detection_a_turn_ends_where_it_is_said() -> None:
    turns = Turns(None, 30.0)
    turns.feed(np.concatenate([sound(3, 0), sound(4)]))
    turns.end()
    turns.feed(sound(2, 0))
    turns.end()
    turns.end()
    assert found(turns) == [(0, 7, True), (7, 2, True)]


def test_what_is_cleared_is_forgotten() -> None:
    turns = Turns(VAD, 30.0)
    turns.feed(np.concatenate([sound(9), sound(40, 0), sound(5)]))
    turns.clear()
    assert found(turns) == [(0, 19, True)]
