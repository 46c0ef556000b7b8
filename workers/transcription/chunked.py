"""One recording's transcription, chunk by chunk: what is said between silences is transcribed by itself."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Final, NamedTuple

from tandem.transcription import Transcription, TranscriptionMode, TranscriptionSegment
from tandem.workers.request import Delta, EngineRequest
from tandem.workers.requests.answers.detokenizer import Vocabulary
from tandem.workers.requests.media.spectrogram import Spectrogram
from tandem.workers.requests.request_builder import sample_seed
from tandem.workers.requests.speech import language_of, opened
from tandem.workers.transcription.answers import WindowAnswers
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.chunks import Chunk
from tandem.workers.transcription.said import Said
from tandem.workers.transcription.segments import FRAMES_A_TIME, TIME_S
from tandem.workers.transcription.transcriber import SequentialTranscriber, WindowCounts
from tandem.workers.transcription.window_requests import WindowRequests

LIVE: Final = 32  # chunks that are under way at once


class _Begun(NamedTuple):
    chunk: Chunk
    transcriber: SequentialTranscriber


class ChunkedTranscriber:
    """A `Transcriber` whose chunks are under way at once, each transcribed as a recording is by a
    `SequentialTranscriber`. Only the language is detected once, from the first chunk."""

    mode: ClassVar[TranscriptionMode] = "chunked"

    def __init__(
        self, asked: Asked, recording: Spectrogram, chunks: Sequence[Chunk],
        windows: Callable[[], WindowRequests], vocabulary: Vocabulary, seed: int | None,
    ) -> None:  # fmt: skip
        """chunks: in order. windows: makes what makes a chunk's requests."""
        self.segments: list[TranscriptionSegment] = []
        self.duration_s = recording.duration_s
        self._asked, self._recording, self._windows = asked, recording, windows
        self._vocabulary = vocabulary
        # What is the same for all chunks is asked of the first one's.
        self._first, self.counts = windows(), WindowCounts()
        self._said = Said(vocabulary, self._first.text_end)
        self._seed = secrets.randbits(63) if seed is None else seed
        self._opening = asked.opening(timestamps=True)
        self._detecting: WindowAnswers | None = None  # those of the request whose answer is the language
        self._detected: int | None = None  # the language's token
        self._waiting = deque(enumerate(chunks))
        self._begun: deque[_Begun] = deque()  # in order, from the first on that is not done
        self._owners: dict[str, SequentialTranscriber] = {}  # by the ids of the requests under way
        self._live = 0  # chunks that are begun and not done
        self._given = 0  # segments of the first of these that are given out

    @property
    def done(self) -> bool:
        return not self._waiting and not self._begun

    @property
    def seek_s(self) -> float:
        """All before is transcribed."""
        if self._begun:
            return self._begun[0].transcriber.seek_s
        return 0.0 if self._waiting else self.duration_s

    @property
    def text(self) -> str:
        return self._said.text

    @property
    def final_segments(self) -> list[TranscriptionSegment]:
        return self.segments if self._asked.segments else []

    def start(self) -> list[EngineRequest]:
        if self._waiting and any(len(ids) > 1 for ids in self._opening):
            first = self._waiting[0][1]
            stop = min(first.stop, first.start + self._first.frames)
            encoder = self._first.encoder_input(self._recording, first.start, stop)
            request = self._first.detection(encoder, self._opening)
            self._detecting = WindowAnswers([request])
            return [request]
        return self._begin()

    def push(self, delta: Delta) -> list[EngineRequest]:
        if self._detecting is not None:
            answers = self._detecting.push(delta)
            if answers is None:
                return []
            self._detecting, self._detected = None, answers[0].token_ids[0]
            self._opening = opened(self._opening, self._detected)
            return self._begin()
        owner = self._owners.pop(delta.request_id) if delta.last else self._owners[delta.request_id]
        requests = self._wait_for(owner, owner.push(delta))
        if owner.done:
            self._live -= 1
        self._give_out()
        return requests + self._begin()

    def transcription(self) -> Transcription:
        return Transcription(
            text=self.text,
            language=language_of(self._asked.speech, self._opening),
            duration_s=self.duration_s,
            segments=self.final_segments,
            encoder_tokens=self.counts.encoder_tokens,
            generated_tokens=self.counts.tokens,
            mode=self.mode,
        )

    def _begin(self) -> list[EngineRequest]:
        requests: list[EngineRequest] = []
        while self._waiting and self._live < LIVE:
            number, chunk = self._waiting.popleft()
            transcriber = SequentialTranscriber(
                self._asked, self._recording, self._windows(), self._vocabulary,
                sample_seed(self._seed, number), chunk, self._detected, self.counts,
            )  # fmt: skip
            self._begun.append(_Begun(chunk, transcriber))
            self._live += 1
            requests += self._wait_for(transcriber, transcriber.start())
        return requests

    def _wait_for(self, owner: SequentialTranscriber, requests: list[EngineRequest]) -> list[EngineRequest]:
        self._owners.update((request.request_id, owner) for request in requests)
        return requests

    def _give_out(self) -> None:
        """What a chunk says is given out when all chunks before it are done."""
        while self._begun:
            chunk, transcriber = self._begun[0]
            stop_s = chunk.stop * TIME_S / FRAMES_A_TIME
            for segment in transcriber.segments[self._given :]:
                # The model may hear speech go on in what a window is filled up with.
                start_s, end_s = min(segment.start_s, stop_s), min(segment.end_s, stop_s)
                self._said.push(segment.token_ids)
                words = segment.words and [
                    replace(word, start_s=min(word.start_s, stop_s), end_s=min(word.end_s, stop_s))
                    for word in segment.words
                ]
                self.segments.append(
                    replace(segment, id=len(self.segments), start_s=start_s, end_s=end_s, words=words)
                )
            self._given = len(transcriber.segments)
            if not transcriber.done:
                return
            self._begun.popleft()
            self._given = 0
        if self.done:
            self._said.flush()
