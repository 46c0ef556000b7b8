"""Speech made by eSpeak NG, which is no dependency: tests that need it are skipped without it, by name."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave

import numpy as np
import numpy.typing as npt
import pytest
from whisper import RATE

SENTENCES = [
    "Good morning. The meeting begins at nine o'clock in the large room on the second floor.",
    "The train to the north leaves at a quarter past seven, and the next one is two hours later.",
    "She opened the window and looked at the garden, where the children were playing in the snow.",
    "Water boils at one hundred degrees, but on a high mountain it boils much earlier than that.",
    "If you want to learn a language, read a little every day and do not be afraid of mistakes.",
    "The old man told us a story about a ship that was lost at sea during a great storm.",
]


def spoken(seconds: float, *, first: int = 0, pause_s: float = 0.6) -> npt.NDArray[np.float32]:
    """Sentences from the `first` on, with pauses, float32 [samples] at RATE."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("speech: there is no espeak-ng")
    parts: list[npt.NDArray[np.float32]] = []
    number = first
    while sum(map(len, parts)) < seconds * RATE:
        command = ["espeak-ng", "-v", "en-us", "-s", "150", "--stdout", SENTENCES[number % len(SENTENCES)]]
        file = subprocess.run(command, capture_output=True, check=True).stdout
        with wave.open(io.BytesIO(file)) as made:
            rate, data = made.getframerate(), made.readframes(made.getnframes())
        samples = np.frombuffer(data, np.int16).astype(np.float32) / 2**15
        at = np.arange(int(len(samples) * RATE / rate)) * (rate / RATE)
        parts.append(np.interp(at, np.arange(len(samples)), samples).astype(np.float32))
        parts.append(np.zeros(int(pause_s * RATE), np.float32))
        number += 1
    return np.concatenate(parts)[: int(seconds * RATE)]
