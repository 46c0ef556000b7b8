"""One recording's transcription: a loop of windows, each of them ordinary engine requests.

The loop neither waits nor knows who decodes: it says which requests are to be generated next, and is given
their deltas. So windows of many recordings, and any other requests, share an engine's batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from tandem.transcription import Transcription, TranscriptionMode, TranscriptionSegment
from tandem.workers.request import Delta, EngineRequest
from tandem.workers.requests.answers.detokenizer import Vocabulary
from tandem.workers.requests.media.spectrogram import Spectrogram
from tandem.workers.requests.request_builder import sample_seed
from tandem.workers.requests.speech import language_of, opened
from tandem.workers.transcription.answers import WindowAnswer, WindowAnswers
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.chunks import Chunk
from tandem.workers.transcription.fallback import Attempt, attempt_of, judged
from tandem.workers.transcription.history import history_of
from tandem.workers.transcription.said import Said, text_of
from tandem.workers.transcription.segments import FRAMES_A_TIME, TIME_S, Split, split
from tandem.workers.transcription.window_requests import Start, WindowRequests
from tandem.workers.transcription.word_times import TimedWindow, Window, word_times_of


@dataclass(slots=True)
class WindowCounts:
    """How a recording's windows were decoded. Counters."""

    windows: int = 0
    encoder_tokens: int = 0  # positions of their encoder inputs
    silent: int = 0  # windows left out, as nobody speaks there
    refused: int = 0  # answers that the thresholds refused, the last temperature's included
    tokens: int = 0  # generated, those of answers that were not kept included


Asking = Generator[list[EngineRequest], list[WindowAnswer], None]
Trying = Generator[list[EngineRequest], list[WindowAnswer], tuple[Attempt, bool]]
Timing = Generator[list[EngineRequest], list[WindowAnswer], TimedWindow]


class Transcriber(Protocol):
    """`start` it, and `push` the deltas of its requests until it is `done`."""

    mode: ClassVar[TranscriptionMode]
    segments: list[TranscriptionSegment]  # so far; those that are there stay
    counts: WindowCounts

    @property
    def done(self) -> bool: ...

    @property
    def seek_s(self) -> float:
        """Up to where the recording is transcribed."""

    @property
    def duration_s(self) -> float:
        """Seconds of the recording."""

    @property
    def text(self) -> str:
        """What is said so far. It only grows."""

    @property
    def final_segments(self) -> list[TranscriptionSegment]:
        """Those so far that the answer has; there are none where no times were asked for."""

    def start(self) -> list[EngineRequest]:
        """The requests that are to be generated first, all at once; to be called once."""

    def push(self, delta: Delta) -> list[EngineRequest]:
        """Takes in a delta of one of its requests. Returns those that are to be generated now, too.

        Raises the delta's error, or why its request was ended: DeadlineExceeded, Cancelled. Its other
        requests may be under way then.
        """

    def transcription(self) -> Transcription:
        """What is transcribed so far."""


class SequentialTranscriber:
    """A `Transcriber` of one window after another.

    Windows, segments, seek and fallback are those of transformers' `WhisperForConditionalGeneration.generate`
    for a batch of one, or of openai-whisper's `transcribe`: see `TranscriptionParams`.
    """

    mode: ClassVar[TranscriptionMode] = "sequential"

    def __init__(
        self, asked: Asked, recording: Spectrogram, windows: WindowRequests, vocabulary: Vocabulary,
        seed: int | None, chunk: Chunk | None = None, language_id: int | None = None,
        counts: WindowCounts | None = None,
    ) -> None:  # fmt: skip
        """chunk: what is transcribed; None: all of the recording. language_id: the token of the language,
        where that is detected already. counts: to be counted in; None: a chunk's own."""
        self.segments: list[TranscriptionSegment] = []
        self._asked, self._recording, self._windows = asked, recording, windows
        self._vocabulary = vocabulary
        self._seed, self._drawn = secrets.randbits(63) if seed is None else seed, 0
        self._chunk = chunk or Chunk(0, recording.frames, recording.frames)
        self._seek = self._chunk.start  # frames
        self._said = Said(vocabulary, windows.text_end)
        self.counts = WindowCounts() if counts is None else counts
        # A window's place cannot be told from text alone.
        self._timestamps = asked.segments or self._chunk.stop - self._chunk.start > windows.frames
        self._opening = asked.opening(timestamps=self._timestamps)
        if language_id is not None:
            self._opening = opened(self._opening, language_id)
        self._history = history_of(asked, windows.most_before)
        self._words = word_times_of(asked, recording, self._chunk, windows, vocabulary)
        self.done = False
        self._flow = self._run()
        self._answers = WindowAnswers([])  # those of the requests that are generated now

    @property
    def seek_s(self) -> float:
        return min(self._seek * TIME_S / FRAMES_A_TIME, self.duration_s)

    @property
    def duration_s(self) -> float:
        return self._recording.duration_s

    def start(self) -> list[EngineRequest]:
        return self._wait_for(lambda: next(self._flow))

    def push(self, delta: Delta) -> list[EngineRequest]:
        answers = self._answers.push(delta)
        return [] if answers is None else self._wait_for(lambda: self._flow.send(answers))

    @property
    def final_segments(self) -> list[TranscriptionSegment]:
        return self.segments if self._asked.segments else []

    @property
    def text(self) -> str:
        return self._said.text

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

    def _wait_for(self, go_on: Callable[[], list[EngineRequest]]) -> list[EngineRequest]:
        try:
            requests = go_on()
        except StopIteration:
            requests, self.done = [], True
            self._said.flush()
        self._answers = WindowAnswers(requests)
        return requests

    # -- the loop

    def _run(self) -> Asking:
        asked, chunk = self._asked, self._chunk
        while self._seek < chunk.speech_stop:
            frames = min(self._windows.frames, chunk.stop - self._seek)
            attempt, silent = yield from self._decode(frames)
            self.counts.windows += 1
            self.counts.encoder_tokens += self._windows.positions
            if silent:
                self.counts.silent += 1
                self._history.left_out(attempt.temperature)
                self._seek += frames
                continue
            parts = split(attempt.token_ids, self._seek, frames, asked.first_time_id, openai=asked.openai)
            timed = None
            if self._words is not None:
                parts, timed = yield from self._timed(attempt, parts, frames)
            kept, at = [], 0
            for number, piece in enumerate(parts.pieces):
                text = self._text(piece.token_ids)
                first, at = at, at + len(piece.token_ids)
                if asked.openai and (piece.start_s == piece.end_s or not text.strip()):
                    continue
                kept.append(piece.token_ids)
                self._said.push(piece.token_ids)
                self.segments.append(
                    TranscriptionSegment(
                        id=len(self.segments),
                        seek_s=self._seek * TIME_S / FRAMES_A_TIME,
                        start_s=piece.start_s,
                        end_s=piece.end_s,
                        text=text,
                        token_ids=piece.token_ids,
                        temperature=attempt.temperature,
                        avg_logprob=attempt.avg_logprob,
                        compression_ratio=attempt.text_ratio,
                        no_speech_prob=attempt.no_speech_prob,
                        logprobs=attempt.logprobs and attempt.logprobs[first:at],
                        words=None if timed is None else timed[number],
                    )
                )
            self._history.extend(kept, attempt.temperature)
            # Tokens without the rules of times may say that nothing is done: the loop goes on all the same.
            self._seek += parts.advance or frames

    def _decode(self, frames: int) -> Trying:
        """Decodes the next window, at one temperature after another; returns the last attempt, and whether it
        is left out."""
        stop = self._seek + frames
        encoder = self._windows.encoder_input(self._recording, self._seek, stop)
        before = self._history.before()
        if before and any(len(ids) > 1 for ids in self._opening):
            # The language is what follows the start token alone.
            (answer,) = yield [self._windows.detection(encoder, self._opening)]
            self._opening = opened(self._opening, answer.token_ids[0])
        most = self._windows.max_tokens(len(before) + 1 + len(self._opening))
        for temperature in self._asked.temperatures:
            start = Start(before, self._opening, timestamps=self._timestamps)
            requests = self._windows.requests(encoder, start, temperature, most, self._seeds(temperature))
            answers = yield requests
            said = len(requests[0].decoding.opening_ids)
            if said:
                self._opening = opened(self._opening, answers[0].token_ids[0])
            attempt = self._best(answers, said, temperature)
            again, silent = judged(attempt, self._asked)
            if not again:
                break
            self.counts.refused += 1
        return attempt, silent

    def _timed(self, attempt: Attempt, parts: Split, frames: int) -> Timing:
        """The window's segments and their words, timed by one more request."""
        assert self._words is not None
        start = [*self._history.before(), self._windows.start_id, *(ids[0] for ids in self._opening)]
        language = language_of(self._asked.speech, self._opening)
        window = Window(self._seek, frames, start, attempt.token_ids, attempt.ended, language, parts)
        if (reading := self._words.reading(window)) is None:
            return self._words.timed(window, WindowAnswer())
        encoder = self._windows.encoder_input(self._recording, self._seek, self._seek + frames)
        (answer,) = yield [self._windows.alignment(encoder, *reading)]
        return self._words.timed(window, answer)

    def _best(self, answers: Sequence[WindowAnswer], said: int, temperature: float) -> Attempt:
        """The likeliest of several samples, a token. said: tokens before the text."""
        attempts = [self._attempt(answer, said, temperature) for answer in answers]
        lengths = [max(1, len(attempt.token_ids)) for attempt in attempts]
        each = [answer.sum_logprob / length for answer, length in zip(answers, lengths, strict=True)]
        return attempts[each.index(max(each))]

    def _attempt(self, answer: WindowAnswer, said: int, temperature: float) -> Attempt:
        self.counts.tokens += len(answer.token_ids)
        return attempt_of(answer, said, temperature, self._windows, self._asked, self._text)

    def _seeds(self, temperature: float) -> list[int]:
        """One for each sample."""
        count = self._asked.best_of if temperature > 0 else 1
        first, self._drawn = self._drawn, self._drawn + count
        return [sample_seed(self._seed, number) for number in range(first, self._drawn)]

    def _text(self, ids: Sequence[int]) -> str:
        return text_of(ids, self._windows.text_end, self._vocabulary)
