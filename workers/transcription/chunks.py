"""Where a recording is cut: in silences, into chunks that are transcribed independently of each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tandem.transcription import ServerVad
from tandem.workers.requests.media.voice_activity import FRAME_MS
from tandem.workers.transcription.segments import FRAMES_A_TIME, TIME_S

_SPECTRUM_MS: Final = round(1000 * TIME_S / FRAMES_A_TIME)
# Speech goes on down to this much below the threshold that it begins at, as in Silero's own function.
_HYSTERESIS, _LEAST = 0.15, 0.01
_LATE: Final = 2 / 3  # the part of a window after which its longest silence ends it


class Chunk(NamedTuple):
    """Frames of a recording's spectrogram."""

    start: int
    stop: int
    speech_stop: int  # from here to the stop is silence


class _Speech(NamedTuple):
    """Frames of a recording's spectrogram, padded."""

    start: int
    stop: int
    speech_stop: int  # without padding
    silence: int  # frames from there to the next speech


def speech_spans(probabilities: Sequence[float], vad: ServerVad) -> list[tuple[int, int]]:
    """The frames of the voice activity model from which to which somebody speaks: Silero's
    `get_speech_timestamps_from_probs`, however short a speech is. Every frame of at least the threshold is in
    one of them."""
    leave = leaving(vad)
    spans: list[tuple[int, int]] = []
    start = quiet = None
    for at, probability in enumerate(probabilities):
        if probability >= vad.threshold:
            quiet = None
            start = at if start is None else start
        elif start is not None and probability < leave:
            quiet = at if quiet is None else quiet
            if (at - quiet) * FRAME_MS >= vad.silence_duration_ms:
                spans.append((start, quiet))
                start = quiet = None
    if start is not None:
        spans.append((start, len(probabilities)))
    return spans


def leaving(vad: ServerVad) -> float:
    """Probability below which a speech that goes on is silent."""
    return max(vad.threshold - _HYSTERESIS, _LEAST)


def chunks(probabilities: npt.NDArray[np.float32], frames: int, most: int, vad: ServerVad) -> list[Chunk]:
    """A recording's chunks, in order.

    Args:
        probabilities: see `VoiceActivity`.
        frames: those of the recording's spectrogram.
        most: frames of a window. Only a speech without a silence is longer than that, which is a chunk.
    """
    spans = _padded(speech_spans(probabilities.tolist(), vad), frames, vad)
    return [Chunk(group[0].start, group[-1].stop, group[-1].speech_stop) for group in _grouped(spans, most)]


def _padded(spans: Sequence[tuple[int, int]], frames: int, vad: ServerVad) -> list[_Speech]:
    """Each with the silence that belongs to it. Two share one that is too short for both."""
    before, after = vad.prefix_padding_ms // _SPECTRUM_MS, vad.silence_duration_ms // _SPECTRUM_MS
    starts = [start * FRAME_MS // _SPECTRUM_MS for start, _ in spans]
    stops = [min(frames, math.ceil(stop * FRAME_MS / _SPECTRUM_MS)) for _, stop in spans]
    padded: list[_Speech] = []
    free = 0  # from here on, silence belongs to nobody
    for start, stop, following in zip(starts, stops, [*starts[1:], frames + before + after], strict=False):
        if start >= frames:  # the voice activity model's last frame goes beyond the last spectrum
            break
        silence, first = following - stop, max(free, start - before)
        free = stop + (after if silence >= before + after else silence * after // (before + after))
        padded.append(_Speech(first - first % FRAMES_A_TIME, min(frames, free), stop, silence))
    return padded


def _grouped(spans: Sequence[_Speech], most: int) -> Iterator[Sequence[_Speech]]:
    """As many as a window holds. It ends with the longest silence in the last third of it."""
    first = 0
    while first < len(spans):
        start, last = spans[first].start, first
        while last + 1 < len(spans) and spans[last + 1].stop - start <= most:
            last += 1
        if last + 1 < len(spans):
            late = [at for at in range(first, last + 1) if spans[at].stop - start >= _LATE * most]
            last = max(late, key=lambda at: (spans[at].silence, at), default=last)
        yield spans[first : last + 1]
        first = last + 1
