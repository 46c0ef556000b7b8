"""A whole recording's log-mel spectrogram, of which windows are encoded one by one.

A mel bin's floor depends on the loudest of the whole recording, so the spectrogram of a part is not a part of
the spectrogram: it is made once, from the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from tandem.workers.requests.media.audio_file import Samples

if TYPE_CHECKING:
    from transformers import WhisperFeatureExtractor

_BLOCK_S: Final = 60  # seconds of audio that are transformed at a time
_LEAST: Final = -10.0  # log10 of the least energy


class Spectrogram:
    """float32 [mel bins, frames] on the CPU."""

    def __init__(self, mel: torch.Tensor, duration_s: float, silence: float = 0.0) -> None:
        self.mel = mel
        self.duration_s = duration_s  # the audio's, without silence put after it
        self.silence = silence  # what samples of zero become

    @property
    def frames(self) -> int:
        return self.mel.shape[1]

    def window(self, start: int, stop: int, frames: int, fill: float = 0.0) -> torch.Tensor:
        """Features of an item, float32 [1, mel bins, frames]: from frame `start` to `stop`, then `fill`.

        transformers and openai-whisper fill with zeros. They are no silence, whose value depends on the
        recording.
        """
        part = self.mel[:, start:stop]
        return torch.nn.functional.pad(part, (0, frames - part.shape[1]), value=fill).unsqueeze(0)


class LogMel:
    """The transformation of `WhisperFeatureExtractor`, without dither, block by block: what it holds besides
    the spectrogram does not grow with the recording."""

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        self.rate, self.hop, self._size = extractor.sampling_rate, extractor.hop_length, extractor.n_fft
        self._window = torch.hann_window(self._size)
        self._filters = torch.from_numpy(extractor.mel_filters).float().T.contiguous()

    def __call__(self, parts: Iterable[Samples], *, least: int = 0, silence: int = 0) -> Spectrogram:
        """
        Args:
            parts: the recording, float32 [n] each.
            least: samples; a shorter recording is followed by silence. Together with `silence` more than half
                of what one transform reads.
            silence: samples of silence that come after any recording, whose frames are left out.
        """
        padded = _Padded(parts, self._size // 2, least, silence)
        hop, size = self.hop, self._size
        kept, held = [], np.zeros(0, np.float32)
        for block in padded.blocks(_BLOCK_S * self.rate):
            held = np.concatenate([held, block])
            count = max(0, (len(held) - size) // hop + 1)
            if count:
                kept.append(self._log(held[: (count - 1) * hop + size]))
                held = held[count * hop :]
        # transformers drops the frame that is centred at the recording's end.
        frames = padded.samples // hop
        mel = torch.cat(kept, dim=1)[:, :frames]
        del kept
        floor = float(mel.max()) - 8.0
        mel = mel.clamp_(min=floor).add_(4.0).div_(4.0)
        return Spectrogram(
            mel[:, : (padded.samples - silence) // hop],
            padded.recorded / self.rate,
            (max(floor, _LEAST) + 4.0) / 4.0,
        )

    def _log(self, samples: Samples) -> torch.Tensor:
        """[mel bins, frames]: a frame every hop, each of whole samples of these."""
        frames = (len(samples) - self._size) // self.hop + 1
        # Most of a short recording is the silence after it, whose frames have no energy.
        sounds = samples[::-1] != 0
        sounding = len(samples) - int(sounds.argmax()) if sounds.any() else 0
        heard = min(frames, -(-sounding // self.hop))
        energies = torch.zeros(len(self._filters), frames)
        if heard:
            spectrum = torch.stft(
                torch.from_numpy(samples[: (heard - 1) * self.hop + self._size]), self._size, self.hop,
                window=self._window, center=False, return_complex=True,
            )  # fmt: skip
            torch.mm(self._filters, spectrum.abs() ** 2, out=energies[:, :heard])
        return energies.clamp_(min=10**_LEAST).log10_()


class _Padded:
    """A recording with silence after it, reflected at both ends, in blocks."""

    def __init__(self, parts: Iterable[Samples], reflected: int, least: int, silence: int) -> None:
        self._parts, self._reflected, self._least, self._silence = parts, reflected, least, silence
        self.recorded = 0  # samples of the recording so far
        self.samples = 0  # with silence

    def blocks(self, size: int) -> Iterator[Samples]:
        """Blocks of about `size` samples; the first and last have what is reflected."""
        count, edge = self._reflected, np.zeros(0, np.float32)
        for number, block in enumerate(_grouped(self._with_silence(), size)):
            self.samples += len(block)
            yield block if number else np.concatenate([block[count:0:-1], block])
            edge = np.concatenate([edge, block])[-count - 1 :]
        yield edge[-2::-1]

    def _with_silence(self) -> Iterator[Samples]:
        for part in self._parts:
            self.recorded += len(part)
            yield part
        if (missing := max(0, self._least - self.recorded) + self._silence) > 0:
            yield np.zeros(missing, np.float32)


def _grouped(parts: Iterable[Samples], size: int) -> Iterator[Samples]:
    """Parts of at least `size`; what is left at the end goes with the last."""
    held: list[Samples] = []
    ready: Samples | None = None
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= size:
            if ready is not None:
                yield ready
            ready, held, count = np.concatenate(held), [], 0
    rest = ([] if ready is None else [ready]) + held
    if rest:
        yield np.concatenate(rest)
