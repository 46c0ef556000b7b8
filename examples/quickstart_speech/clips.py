"""Recordings of synthetic speech and of nobody, with what is said in them and when; and their features in
files, for training."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from transformers import WhisperFeatureExtractor

RATE: Final = 16_000  # samples a second
WINDOW_S: Final = 6  # of audio that the encoder takes
FRAMES: Final = 100 * WINDOW_S
POSITIONS: Final = FRAMES // 2  # of the encoder; also steps of a time
STEP_S: Final = 0.02
MELS: Final = 80
PAUSE: Final = ""  # the name of no sound

Samples = npt.NDArray[np.float32]
Mel = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Piece:
    """A word, or several that are written as one: "7:45"."""

    written: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Segment:
    """One utterance."""

    start_s: float
    end_s: float
    pieces: list[Piece]

    @property
    def text(self) -> str:
        return " ".join(piece.written for piece in self.pieces)

    def later(self, by_s: float) -> Segment:
        pieces = [Piece(one.written, one.start_s + by_s, one.end_s + by_s) for one in self.pieces]
        return Segment(self.start_s + by_s, self.end_s + by_s, pieces)


@dataclass(frozen=True)
class Recording:
    """At most WINDOW_S."""

    samples: Samples
    segments: list[Segment]  # none: nobody speaks
    cut_s: float | None  # where an utterance begins whose end is not in the window
    sounds: list[tuple[str, float]]  # eSpeak's phonemes, or PAUSE, and where they begin, in seconds
    kind: str  # of the phrase, or "nobody"
    voice: str

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Clip:
    """A recording's features, and what is to be learnt from them."""

    mel: Mel  # [frames, mel bins], up to a little after the recording's end
    silence: float  # what silence is after it
    sounds: list[str]  # of each encoder position
    segments: list[Segment]
    cut_s: float | None
    kind: str
    voice: str

    def cropped(self, rng: random.Random) -> Clip:
        """With less of the pauses at both ends."""
        if not self.segments:
            return self
        first, last = self.segments[0], self.segments[-1]
        begin = max(0, int((first.start_s - rng.uniform(0, 0.2)) / STEP_S))
        end = len(self.sounds) if self.cut_s else int((last.end_s + rng.uniform(0.04, 0.2)) / STEP_S)
        by_s = -begin * STEP_S
        return replace(
            self,
            mel=self.mel[2 * begin : 2 * end],
            sounds=self.sounds[begin:end],
            segments=[segment.later(by_s) for segment in self.segments],
            cut_s=self.cut_s and self.cut_s + by_s,
        )


def clip_of(recording: Recording, extractor: WhisperFeatureExtractor) -> Clip:
    """With the features of `extractor`, which goes on in silence to the window's end."""
    silence = np.zeros(RATE // 10, np.float32)
    samples = np.concatenate([recording.samples, silence])
    made = extractor(samples, sampling_rate=RATE, return_tensors="np", truncation=False, padding="longest")
    mel = made["input_features"][0].T
    frames = min(len(recording.samples) // (RATE // 100) + 4, FRAMES) // 2 * 2
    begins = [begin for _, begin in recording.sounds]
    at = np.searchsorted(begins, (np.arange(frames // 2) + 0.5) * STEP_S, side="right") - 1
    names = [recording.sounds[number][0] if number >= 0 else PAUSE for number in at]
    return Clip(
        mel[:frames].astype(np.float16), float(mel.min()), names, recording.segments, recording.cut_s,
        recording.kind, recording.voice,
    )  # fmt: skip


def save_clips(clips: list[Clip], path: Path) -> None:
    """Writes `path`.npy and `path`.json; the second is there when both are whole."""
    np.save(path.with_suffix(".npy"), np.concatenate([clip.mel for clip in clips]))
    rows: list[dict[str, Any]] = []
    for clip in clips:
        row = asdict(clip)
        row["mel"] = len(clip.mel)
        rows.append(row)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(rows))
    os.replace(part, path.with_suffix(".json"))


def load_clips(path: Path) -> list[Clip]:
    """The clips of one file; `path` is its .json."""
    mels = np.load(path.with_suffix(".npy"))
    clips, at = [], 0
    for row in json.loads(path.read_text()):
        frames = row.pop("mel")
        segments = [
            Segment(one["start_s"], one["end_s"], [Piece(**piece) for piece in one["pieces"]])
            for one in row.pop("segments")
        ]
        clips.append(Clip(mel=mels[at : at + frames], segments=segments, **row))
        at += frames
    return clips


def feature_extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=MELS, sampling_rate=RATE, chunk_length=WINDOW_S)


def drawn(rng: random.Random, likeliest: float, most: float) -> float:
    """Seconds of a pause: zero, or any up to `most`."""
    return 0.0 if rng.random() < 0.2 else min(rng.expovariate(1 / likeliest), most)
