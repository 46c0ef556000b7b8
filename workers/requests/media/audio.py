"""Audio: an item of a request to the log-mel spectrogram its encoder reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tandem.errors import ModelLoadError
from tandem.inputs import Media
from tandem.limits import Limits
from tandem.workers.models.spec import FrontSpec
from tandem.workers.requests.media.audio_file import (
    Samples,
    Watch,
    check_audio,
    decode_audio,
    read_audio,
)
from tandem.workers.requests.media.spectrogram import LogMel, Spectrogram
from tandem.workers.requests.media.voice_activity import VoiceActivity

if TYPE_CHECKING:
    import torch
    from transformers import WhisperFeatureExtractor

CONFIG = "preprocessor_config.json"
# Codecs pad the ends of a recording. What goes beyond the window by no more than that is cut off.
_PADDING_S = 0.1


class AudioProcessor:
    """transformers' feature extractor, as a checkpoint's preprocessor_config.json describes it.

    Its methods may be called from several threads at once.
    """

    def __init__(self, extractor: WhisperFeatureExtractor, front: FrontSpec) -> None:
        """Raises ModelLoadError where the extractor does not make what the encoder reads."""
        self._extractor, self._front = extractor, front
        made = extractor.feature_size, extractor.nb_max_frames
        if made != front.features:
            raise ModelLoadError(
                f"{CONFIG} makes {made[0]} mel bins of {made[1]} frames, the encoder reads "
                f"{front.features[0]} of {front.features[1]}",
                field="model",
            )

    @classmethod
    def read(cls, folder: Path, front: FrontSpec) -> AudioProcessor:
        """Raises ModelLoadError where the folder has no feature extractor."""
        from transformers import WhisperFeatureExtractor

        try:
            extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelLoadError(
                f"{folder} has no {CONFIG} that can be read: {error}", field="model"
            ) from None
        return cls(extractor, front)

    def positions(self, media: Media, limits: Limits) -> int:
        """Encoder positions of an item, from its header alone. Raises InvalidRequest."""
        check_audio(media.data, min(limits.audio_seconds, self._window_s), _PADDING_S)
        return self._front.positions

    def features(self, media: Media) -> torch.Tensor:
        """float32 [mel bins, frames]; audio shorter than the frames is followed by silence.

        Raises InvalidRequest for what cannot be decoded, and for more audio than the frames hold.
        """
        import torch

        samples = read_audio(media.data, self._extractor.sampling_rate, self._window_s, _PADDING_S)
        made = self._extractor(samples, sampling_rate=self._extractor.sampling_rate, return_tensors="np")
        return torch.from_numpy(np.ascontiguousarray(made["input_features"][0], dtype=np.float32))

    def recording_s(self, media: Media, longest_s: float) -> float | None:
        """Seconds of a recording of any number of windows, as its header says; None where it says nothing.
        Raises InvalidRequest."""
        return check_audio(media.data, longest_s)

    def spectrogram(
        self,
        media: Media,
        longest_s: float,
        *,
        followed_by_silence: bool,
        voice: VoiceActivity | None = None,
        watch: Watch | None = None,
    ) -> Spectrogram:
        """The whole recording, decoded once.

        Args:
            followed_by_silence: a window of silence comes after it, as openai-whisper has it, whose frames
                are left out; else a recording shorter than a window is filled up with silence, whose frames
                are there.
            voice: it listens to the recording, if its rate is this model's.
            watch: see `decode_audio`. It is called some times a second, listening and transforming included.

        Raises InvalidRequest for what cannot be decoded, and as soon as more than `longest_s` is; and what
        `watch` raises.
        """
        parts = decode_audio(media.data, self._extractor.sampling_rate, longest_s, watch=watch)
        if voice is not None:
            parts = voice.listen(parts)
        least, silence = self._extractor.n_samples, 0
        if followed_by_silence:
            least, silence = silence, least
        return LogMel(self._extractor)(parts, least=least, silence=silence)

    def spectrogram_of(self, samples: Samples) -> Spectrogram:
        """As `spectrogram` with `followed_by_silence`, of samples float32 [n] at `rate`."""
        return LogMel(self._extractor)([samples], silence=self._extractor.n_samples)

    @property
    def rate(self) -> int:
        """Samples a second."""
        return self._extractor.sampling_rate

    @property
    def frame_s(self) -> float:
        """Seconds from one frame to the next."""
        return float(self._extractor.hop_length / self._extractor.sampling_rate)

    @property
    def _window_s(self) -> float:
        """Seconds of audio that the frames hold."""
        return float(self._extractor.n_samples / self._extractor.sampling_rate)
