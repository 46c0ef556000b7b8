"""A stream of 16-bit samples → samples at the rate that models hear."""

from __future__ import annotations

from typing import Final

import av
import numpy as np
from av.audio.resampler import AudioResampler

from tandem.errors import InvalidRequest
from tandem.workers.requests.media.audio_file import Samples
from tandem.workers.requests.media.voice_activity import RATE

FIELD: Final = "pcm"
_SAMPLE_BYTES: Final = 2
_FULL_SCALE: Final = 32_768.0


class PcmReader:
    """Resamples by libswresample as it reads."""

    def __init__(self, rate: int) -> None:
        """rate: samples a second of the stream."""
        self._rate, self._resampler = rate, None
        if rate != RATE:
            self._resampler = AudioResampler(format="flt", layout="mono", rate=RATE)

    def read(self, data: bytes) -> Samples:
        """float32 [n] in [-1, 1], of little-endian samples of one channel. Raises InvalidRequest for half a
        sample."""
        if len(data) % _SAMPLE_BYTES:
            raise InvalidRequest(f"has {len(data)} bytes, which is no number of 16-bit samples", field=FIELD)
        samples = np.frombuffer(data, "<i2").astype(np.float32) / _FULL_SCALE
        if self._resampler is None or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = self._rate
        return self._joined(self._resampler.resample(frame))

    def rest(self) -> Samples:
        """What the resampler holds, at the stream's end."""
        return (
            np.zeros(0, np.float32)
            if self._resampler is None
            else self._joined(self._resampler.resample(None))
        )

    def _joined(self, frames: list[av.AudioFrame]) -> Samples:
        return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)])
