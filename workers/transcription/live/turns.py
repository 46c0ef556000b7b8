"""A stream of audio, cut into turns: what somebody says between two silences."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tandem.transcription import ServerVad
from tandem.workers.requests.media.audio_file import Samples
from tandem.workers.requests.media.voice_activity import FRAME, RATE, VoiceActivity
from tandem.workers.transcription.chunks import leaving

_LATE_S: Final = 3.0  # before the end of a turn that has no silence, where it is cut


@dataclass(slots=True)
class Turn:
    """A stretch of the stream."""

    number: int
    start: int  # samples of the stream before it
    ended: bool = False
    _parts: list[Samples] = field(default_factory=list)
    length: int = 0  # samples so far

    @property
    def samples(self) -> Samples:
        """float32 [length]."""
        self._parts = [np.concatenate([np.zeros(0, np.float32), *self._parts])]
        return self._parts[0]

    def add(self, samples: Samples) -> None:
        self._parts.append(samples)
        self.length += len(samples)

    def cut(self, length: int) -> Samples:
        """Keeps so many samples and gives back the others."""
        samples = self.samples
        self._parts, self.length = [samples[:length]], length
        return samples[length:]


class Turns:
    """Takes samples; `turns` has the turns that are not over, or not taken yet, the oldest first."""

    def __init__(self, vad: ServerVad | None, longest_s: float) -> None:
        """vad: what a silence is; None: a turn ends where `end` is called. longest_s: a turn that is longer
        is cut where it is likeliest to be a pause."""
        self.turns: deque[Turn] = deque()
        self._vad, self._longest = vad, int(longest_s * RATE)
        self._voice = VoiceActivity()
        self._held = np.zeros(0, np.float32)  # less than a frame
        self._before = np.zeros(0, np.float32)  # silence that a turn would begin with
        self.heard = 0  # samples of the stream, up to the frame that is looked at
        self._number = 0
        self._quiet = 0  # samples since speech was last heard
        self._likely: deque[float] = deque(maxlen=int(_LATE_S * RATE) // FRAME)

    def feed(self, samples: Samples) -> None:
        """float32 [n] at RATE, in [-1, 1]."""
        samples = np.concatenate([self._held, samples])
        whole = len(samples) - len(samples) % FRAME
        self._held = samples[whole:]
        for frame, probability in zip(
            samples[:whole].reshape(-1, FRAME), self._voice.hear(samples[:whole]), strict=True
        ):
            self.heard += FRAME
            self._frame(frame, float(probability))

    def end(self) -> None:
        """Ends the turn that is under way."""
        turn = self._current
        if turn is not None:
            turn.add(self._held)
            turn.ended = True
        self._held = np.zeros(0, np.float32)

    def clear(self) -> None:
        """Forgets all of what is not over."""
        if self._current is not None:
            self.turns.pop()
        self._held = self._before = np.zeros(0, np.float32)

    @property
    def _current(self) -> Turn | None:
        return self.turns[-1] if self.turns and not self.turns[-1].ended else None

    def _frame(self, frame: Samples, probability: float) -> None:
        turn, vad = self._current, self._vad
        speech = vad is None or probability >= vad.threshold
        if turn is None:
            kept = 0 if vad is None else vad.prefix_padding_ms * RATE // 1000
            before = np.concatenate([self._before, frame])
            if not speech:
                self._before = before[max(0, len(before) - kept) :]
                return
            self._begin(before[max(0, len(before) - kept - FRAME) :])
            return
        turn.add(frame)
        self._likely.append(probability)
        if vad is not None:
            self._quiet = 0 if probability >= leaving(vad) else self._quiet + FRAME
            if self._quiet >= vad.silence_duration_ms * RATE // 1000:
                turn.ended = True
                return
        if turn.length >= self._longest:
            # The pause that is likeliest among the last frames ends it; what follows begins the next.
            least = min(range(len(self._likely)), key=lambda at: (self._likely[at], -at))
            rest = turn.cut(turn.length - (len(self._likely) - least - 1) * FRAME)
            turn.ended = True
            self._begin(rest)

    def _begin(self, samples: Samples) -> None:
        turn = Turn(self._number, self.heard - len(samples))
        turn.add(samples)
        self.turns.append(turn)
        self._number += 1
        self._quiet, self._before = 0, np.zeros(0, np.float32)
        self._likely.clear()
