"""A recording and parameters → its transcriber, for one model."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, replace
from itertools import count
from typing import Unpack

from tandem.errors import InvalidRequest, renaming_fields
from tandem.inputs import CallOptions, Media
from tandem.live import LiveParams
from tandem.transcription import TranscriptionParams
from tandem.workers.requests.media.audio import AudioProcessor
from tandem.workers.requests.media.audio_file import FIELD, Watch
from tandem.workers.requests.media.voice_activity import RATE, VoiceActivity
from tandem.workers.requests.parameters.options import check_options
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.chunked import ChunkedTranscriber
from tandem.workers.transcription.chunks import chunks
from tandem.workers.transcription.live.live_transcriber import LiveTranscriber
from tandem.workers.transcription.transcriber import SequentialTranscriber, Transcriber
from tandem.workers.transcription.window_requests import WindowRequests


@dataclass(frozen=True, slots=True)
class PreparedTranscription:
    """A recording that can be transcribed as it is asked for, as far as its header tells."""

    request_id: str
    media: Media
    field: str  # what errors call the recording
    asked: Asked
    seed: int | None
    audio_s: float | None  # the recording's by its header, None where that says nothing
    longest_s: float  # that a recording may have
    priority: int
    timeout_s: float  # from its arrival


@dataclass(frozen=True, slots=True)
class PreparedLive:
    """Speech that is to be transcribed while it goes on."""

    request_id: str
    transcriber: LiveTranscriber
    sample_rate: int  # that of the sound that will come
    priority: int


class TranscriptionBuilder:
    """Checks and begins transcriptions. Its methods may be called from several threads at once."""

    def __init__(self, requests: RequestBuilder) -> None:
        self._requests = requests

    def prepare(
        self, media: Media, params: TranscriptionParams, field: str, **options: Unpack[CallOptions]
    ) -> PreparedTranscription:
        """Checks everything there is to check before a recording is decoded.

        Raises InvalidRequest, naming the field, and ModelNotFound.
        """
        self._requests.check_model(options.get("model"))
        limits = self._requests.limits
        limits = replace(limits, timeout_s=limits.transcription_timeout_s)
        checked = check_options(limits, self._requests.tasks, **options)
        return PreparedTranscription(
            request_id=checked.request_id,
            media=media,
            field=field,
            asked=self.check(params),
            seed=params.seed,
            audio_s=self.recording_s(media, field),
            longest_s=limits.transcription_seconds,
            priority=checked.priority,
            timeout_s=limits.timeout_s if checked.timeout_s is None else checked.timeout_s,
        )

    def prepare_live(self, params: LiveParams, **options: Unpack[CallOptions]) -> PreparedLive:
        """Checks a request to transcribe speech while it goes on, with openai-whisper's semantics. Raises
        InvalidRequest, naming the field, and ModelNotFound."""
        requests = self._requests
        requests.check_model(options.get("model"))
        checked = check_options(requests.limits, requests.tasks, **options)
        asked = self.check(
            TranscriptionParams(
                language=params.language,
                task=params.task,
                prompt=params.prompt,
                timestamps=None,
                semantics="openai",
            )
        )
        if self._processor.rate != RATE:
            raise InvalidRequest(
                f"{requests.info.name!r} takes {self._processor.rate} samples a second, not {RATE}",
                field="model",
            )
        name, numbers = uuid.uuid4().hex, count()

        def windows(turn: int) -> WindowRequests:
            return WindowRequests(
                asked, requests.info, requests.max_decoder_tokens, f"{name} {turn}",
                lambda: f"{name}:{next(numbers)}",
            )  # fmt: skip

        live = LiveTranscriber(params, asked, self._processor, requests.vocabulary, windows)
        return PreparedLive(checked.request_id, live, params.sample_rate, checked.priority)

    def check(self, params: TranscriptionParams) -> Asked:
        """Raises InvalidRequest, naming the field, for what the model cannot do."""
        asked = Asked.of(params, self._requests.info, self._prompt_ids(params.prompt))
        if asked.vad is not None and self._processor.rate != RATE:
            raise InvalidRequest(
                f"is for {RATE} samples a second, {self._requests.info.name!r} takes {self._processor.rate}",
                field="chunking_strategy",
            )
        return asked

    def recording_s(self, media: Media, field: str) -> float | None:
        """Seconds of a recording by its header, None where that says nothing. Raises InvalidRequest, which
        calls it `field`."""
        with renaming_fields({FIELD: field}):
            return self._processor.recording_s(media, self._requests.limits.transcription_seconds)

    def begin(
        self, media: Media, field: str, asked: Asked, seed: int | None, watch: Watch | None = None
    ) -> Transcriber:
        """Decodes the recording, which is work for another thread than an event loop's.

        Raises InvalidRequest, which calls it `field`, for one that cannot be decoded or is too long; what
        `watch` raises, which is called with the seconds so far, some times a second.
        """
        info, longest_s = self._requests.info, self._requests.limits.transcription_seconds
        voice = None if asked.vad is None else VoiceActivity()
        with renaming_fields({FIELD: field}):
            recording = self._processor.spectrogram(
                media, longest_s, followed_by_silence=asked.openai, voice=voice, watch=watch
            )
        digest = hashlib.blake2b(
            f"{info.revision}\0{asked.openai}\0{asked.vad is None}\0".encode(), digest_size=16
        )
        digest.update(media.data)
        name, numbers = uuid.uuid4().hex, count()

        def windows() -> WindowRequests:
            return WindowRequests(
                asked, info, self._requests.max_decoder_tokens, digest.hexdigest(),
                lambda: f"{name}:{next(numbers)}",
            )  # fmt: skip

        vocabulary = self._requests.vocabulary
        if asked.vad is None or voice is None:
            return SequentialTranscriber(asked, recording, windows(), vocabulary, seed)
        cut = chunks(voice.probabilities, recording.frames, windows().frames, asked.vad)
        return ChunkedTranscriber(asked, recording, cut, windows, vocabulary, seed)

    @property
    def _processor(self) -> AudioProcessor:
        processor = self._requests.processor
        if not isinstance(processor, AudioProcessor):
            raise InvalidRequest(f"{self._requests.info.name!r} reads no audio", field="model")
        return processor

    def _prompt_ids(self, prompt: str | None) -> tuple[int, ...]:
        if prompt is None or not prompt.strip():
            return ()
        ids = self._requests.decoder_ids(f" {prompt.strip()}", "prompt", self._requests.max_decoder_tokens)
        if special := [token for token in ids if token >= min(self._requests.info.eos_ids)]:
            token = self._requests.vocabulary.decode(special[:1])
            raise InvalidRequest(f"has {token}, which is no text", field="prompt")
        return tuple(ids)
