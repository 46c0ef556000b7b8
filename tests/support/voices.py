"""Something that the voice activity model takes for speech, and that needs no synthesiser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from whisper import RATE

_SYLLABLE_S = 0.18


def voice(seconds: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """Vowels one after another, float32 [samples] at RATE: harmonics of a voice under moving formants."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 110 * (1 + 0.15 * np.sin(4.4 * time) + 0.05 * np.sin(14.5 * time))
    phase, syllable = 2 * np.pi * np.cumsum(pitch) / RATE, time / _SYLLABLE_S
    count = int(syllable[-1]) + 2
    made = np.zeros(len(time))
    for low, high, width, gain in ((300, 800, 80, 1), (900, 2200, 110, 0.5), (2400, 2900, 160, 0.25)):
        formant = np.interp(syllable, np.arange(count), rng.uniform(low, high, count))
        for harmonic in range(1, 35):
            made += gain / (1 + ((harmonic * pitch - formant) / width) ** 2) * np.sin(harmonic * phase)
    made *= np.abs(np.sin(np.pi * syllable))
    return (made / np.abs(made).max() / 2).astype(np.float32)


def voices(spans: Sequence[tuple[float, float]], seconds: float) -> npt.NDArray[np.float32]:
    """A recording in which somebody speaks from each start to each stop, in seconds; noise at -60 dB else."""
    made = 1e-3 * np.random.default_rng(0).standard_normal(int(seconds * RATE)).astype(np.float32)
    for seed, (start, stop) in enumerate(spans):
        spoken = voice(stop - start, seed)
        at = int(start * RATE)
        made[at : at + len(spoken)] += spoken
    return made
