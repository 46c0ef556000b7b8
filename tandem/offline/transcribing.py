"""The transcriptions of an `LLM`."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from typing import Unpack, overload

from tandem.inputs import Audio, recording
from tandem.offline.running import progress_bar
from tandem.transcription import (
    Transcription,
    TranscriptionOptions,
    TranscriptionParams,
    TranscriptionProgress,
)
from tandem.workers.requests.media.audio_file import Watch
from tandem.workers.shared_engine import SharedEngine
from tandem.workers.transcription.builder import TranscriptionBuilder
from tandem.workers.transcription.local import Refused, transcribe_all
from tandem.workers.transcription.transcriber import Transcriber


class Transcribing:
    """What `LLM` inherits. It sets the fields."""

    _engine: SharedEngine
    _transcription_builder: TranscriptionBuilder
    _most_recordings: int  # under way at once

    @overload
    def transcribe(
        self, audio: Audio, *, use_tqdm: bool = True, **asked: Unpack[TranscriptionOptions]
    ) -> Transcription: ...

    @overload
    def transcribe(
        self, audio: list[Audio], *, use_tqdm: bool = True, **asked: Unpack[TranscriptionOptions]
    ) -> list[Transcription]: ...

    def transcribe(
        self, audio: Audio | list[Audio], *, use_tqdm: bool = True, **asked: Unpack[TranscriptionOptions]
    ) -> Transcription | list[Transcription]:
        """Transcribes recordings of any length with a speech model.

        A recording is decoded window by window, each after the one before, or with `chunking_strategy` in
        chunks between silences, many at once. The windows of all recordings share the batch, and no recording
        changes another's answer.

        Args:
            audio: a file's bytes, its path, or mono samples and their rate; or a list of them.
            use_tqdm: show a progress bar for more than a few recordings.
            asked: the fields of `TranscriptionParams`, as `language="en"`.

        Returns one answer for one recording, a list for a list. Raises InvalidRequest, naming the field: in a
        list "audio.0" is the first recording.
        """
        params, builder = TranscriptionParams(**asked), self._transcription_builder
        each = audio if isinstance(audio, list) else [audio]
        fields = [f"audio.{number}" if isinstance(audio, list) else "audio" for number in range(len(each))]
        how = builder.check(params)
        recordings = [(recording(one, field), field) for one, field in zip(each, fields, strict=True)]
        for media, field in recordings:
            builder.recording_s(media, field)
        begins = [partial(builder.begin, media, field, how, params.seed) for media, field in recordings]
        answers: dict[int, Transcription] = {}
        with (
            progress_bar(len(each), "Transcribing", "recording", use_tqdm=use_tqdm) as progress,
            closing(transcribe_all(self._engine, begins, self._most_recordings)) as steps,
        ):
            for step in steps:
                if isinstance(step, Refused):
                    raise step.error
                if step.transcriber.done:
                    answers[step.number] = step.transcriber.transcription()
                    progress.update()
        return [answers[number] for number in range(len(each))] if isinstance(audio, list) else answers[0]

    def transcribe_each(
        self, audio: Iterable[Audio], **asked: Unpack[TranscriptionOptions]
    ) -> Generator[TranscriptionProgress, None, None]:
        """Transcribes recordings as `transcribe` does, and says at each step of one how far that is.

        A recording is taken from `audio`, and read where it is a path, shortly before its turn, so that there
        may be any number. One that cannot be decoded has its error for an answer, and the others go on.
        Closing the iterator ends what is under way.

        Raises InvalidRequest at the first step, naming the field, for what no recording can be asked.
        """
        params, builder = TranscriptionParams(**asked), self._transcription_builder
        how = builder.check(params)

        def begin(one: Audio, watch: Watch) -> Transcriber:
            return builder.begin(recording(one, "audio"), "audio", how, params.seed, watch)

        begins = (partial(begin, one) for one in audio)
        with closing(transcribe_all(self._engine, begins, self._most_recordings)) as steps:
            for step in steps:
                if isinstance(step, Refused):
                    yield TranscriptionProgress(step.number, 0.0, 0.0, [], step.error)
                    continue
                number, one = step
                answer = one.transcription() if one.done else None
                yield TranscriptionProgress(number, one.seek_s, one.duration_s, one.segments, answer)
