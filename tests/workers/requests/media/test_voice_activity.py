"""Probabilities of speech, block by block, held to Silero's own model frame by frame."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from voices import voice, voices
from whisper import RATE

from tandem.workers.requests.media.voice_activity import FRAME, VoiceActivity

Samples = npt.NDArray[np.float32]


@cache
def silero() -> Any:
    package = find_spec("silero_vad")
    assert package is not None
    assert package.origin is not None
    return torch.jit.load(Path(package.origin).parent / "data" / "silero_vad.jit").eval()


@torch.no_grad()
def expected(samples: Samples) -> list[float]:
    model = silero()
    model.reset_states()
    frames = torch.from_numpy(np.pad(samples, (0, -len(samples) % FRAME))).split(FRAME)
    return [float(model(frame, RATE)) for frame in frames]


def heard(samples: Samples, part: int = 1_024) -> Samples:
    activity = VoiceActivity()
    parts = [samples[at : at + part] for at in range(0, len(samples), part)]
    assert all(one is other for one, other in zip(activity.listen(parts), parts, strict=True))
    return activity.probabilities


def gain(samples: Samples) -> np.float32:
    """1, unless all of it is faint."""
    frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    return np.float32(max(1.0, 0.1 / max(1e-4, np.sqrt((frames**2).mean(axis=1).max()))))


@pytest.mark.parametrize(
    ("count", "part"),
    [(1, 9), (512, 512), (513, 99), (16_000, 7_000), (19 * RATE + 7, 300), (19 * RATE, 10**6)],
)
def test_as_silero_s_own_model(count: int, part: int) -> None:
    """A recording of one sample, and those of more than one block, in parts of any size."""
    samples = voices([(0.2, 2.5), (4.0, 4.6), (9.0, 18.2)], 20.0)[:count]
    made = heard(samples, part)
    np.testing.assert_allclose(made, expected(samples * gain(samples)), atol=1e-5)
    if count > 2 * RATE:
        assert made.min() < 0.05
        assert made.max() > 0.9


def test_a_faint_recording_is_amplified() -> None:
    """To where its loudest 32 ms have a root mean square of 0.1; the model would hear nothing."""
    samples = np.concatenate([np.zeros(RATE, np.float32), voice(4.0, 1), np.zeros(RATE, np.float32)])
    faint = samples * np.float32(0.003)
    assert max(expected(faint)) < 0.5
    made = heard(faint)
    assert gain(faint) > 100
    np.testing.assert_allclose(made, expected(faint * gain(faint)), atol=1e-4)
    assert (made > 0.5).sum() > 60


@pytest.mark.parametrize("level", [0.0, 1e-6, 1e-3, 0.3, 1e4])
def test_noise_is_no_speech(level: float) -> None:
    noise = np.float32(level) * np.random.default_rng(1).standard_normal(3 * RATE).astype(np.float32)
    made = heard(noise)
    assert len(made) == 94
    assert made.max() < 0.5


def test_nothing() -> None:
    assert VoiceActivity().probabilities.shape == (0,)


def test_memory_does_not_grow() -> None:
    """Minutes leave four bytes a frame, and on the way no more than some blocks."""

    def parts() -> Iterator[Samples]:
        for seed in range(160):
            yield np.random.default_rng(seed).standard_normal(RATE).astype(np.float32)

    activity = VoiceActivity()
    tracemalloc.start()
    try:
        for _ in activity.listen(parts()):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert len(activity.probabilities) == 5_000
