"""One recording's transcription: a loop of windows, each of them ordinary engine requests.

The loop neither waits nor knows who decodes: it says which requests are to be generated next, and is given
their deltas. So windows of many recordings, and any other requests, share an engine's batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from tandem.transcription import Transcription, TranscriptionSegment
from tandem.workers.request import Delta, EngineRequest
from tandem.workers.requests.detokenizer import Detokenizer, Vocabulary
from tandem.workers.requests.media.spectrogram import Spectrogram
from tandem.workers.requests.request_builder import sample_seed
from tandem.workers.transcription.answers import WindowAnswer, WindowAnswers
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.fallback import Attempt, ids_ratio, judged, text_ratio
from tandem.workers.transcription.history import history_of
from tandem.workers.transcription.segments import FRAMES_A_TIME, TIME_S, split
from tandem.workers.transcription.window_requests import Start, WindowRequests


@dataclass(slots=True)
class WindowCounts:
    """How a recording's windows were decoded. Counters."""

    windows: int = 0
    silent: int = 0  # of them, left out as nobody speaks there
    refused: int = 0  # answers that the thresholds refused, the last temperature's included
    tokens: int = 0  # generated, those of answers that were not kept included


Asking = Generator[list[EngineRequest], list[WindowAnswer], None]
Trying = Generator[list[EngineRequest], list[WindowAnswer], tuple[Attempt, bool]]


class Transcriber:
    """`start` it, and `push` the deltas of its requests until it is `done`.

    Windows, segments, seek and fallback are those of transformers' `WhisperForConditionalGeneration.generate`
    for a batch of one, or of openai-whisper's `transcribe`: see `TranscriptionParams`.
    """

    def __init__(
        self, asked: Asked, recording: Spectrogram, windows: WindowRequests, vocabulary: Vocabulary,
        seed: int | None,
    ) -> None:  # fmt: skip
        self.segments: list[TranscriptionSegment] = []  # so far
        self._asked, self._recording, self._windows = asked, recording, windows
        self._vocabulary = vocabulary
        self._seed, self._drawn = secrets.randbits(63) if seed is None else seed, 0
        self._seek = 0  # frames
        self._detokenizer, self._said = Detokenizer(vocabulary), ""  # text of all segments
        self.counts = WindowCounts()
        # A window's place cannot be told from text alone.
        self._timestamps = asked.segments or recording.frames > windows.frames
        self._opening = asked.opening(timestamps=self._timestamps)
        self._history = history_of(asked, windows.most_before)
        self.done = False
        self._flow = self._run()
        self._answers = WindowAnswers([])  # of the requests that are generated now

    @property
    def seek_s(self) -> float:
        """Up to where the recording is transcribed."""
        return min(self._seek * TIME_S / FRAMES_A_TIME, self.duration_s)

    @property
    def duration_s(self) -> float:
        return self._recording.duration_s

    def start(self) -> list[EngineRequest]:
        """The requests that are to be generated first; to be called once."""
        return self._wait_for(lambda: next(self._flow))

    def push(self, delta: Delta) -> list[EngineRequest]:
        """Takes in a delta of one of its requests. Returns those that are to be generated now, too.

        Raises the delta's error, or why its request was ended: DeadlineExceeded, Cancelled.
        """
        answers = self._answers.push(delta)
        return [] if answers is None else self._wait_for(lambda: self._flow.send(answers))

    @property
    def final_segments(self) -> list[TranscriptionSegment]:
        """Those so far that the answer has; there are none where no times were asked for."""
        return self.segments if self._asked.segments else []

    @property
    def text(self) -> str:
        """What is said so far. It only grows."""
        return self._said.strip()

    def transcription(self) -> Transcription:
        """What is transcribed so far."""
        return Transcription(
            text=self.text,
            language=self._language,
            duration_s=self.duration_s,
            segments=self.final_segments,
            encoder_tokens=self.counts.windows * self._windows.positions,
            generated_tokens=self.counts.tokens,
        )

    @property
    def _language(self) -> str:
        languages = self._asked.speech.languages
        if not languages:
            return "en"
        known = set(languages.values())
        said = [ids[0] for ids in self._opening if len(ids) == 1 and ids[0] in known]
        return self._asked.speech.code(said[0]) if said else ""

    def _wait_for(self, go_on: Callable[[], list[EngineRequest]]) -> list[EngineRequest]:
        try:
            requests = go_on()
        except StopIteration:
            requests, self.done = [], True
            self._said += self._detokenizer.flush()
        self._answers = WindowAnswers(requests)
        return requests

    # -- the loop

    def _run(self) -> Asking:
        asked, content = self._asked, self._recording.frames
        while self._seek < content:
            frames = min(self._windows.frames, content - self._seek)
            attempt, silent = yield from self._decode(frames)
            self.counts.windows += 1
            if silent:
                self.counts.silent += 1
                self._history.left_out(attempt.temperature)
                self._seek += frames
                continue
            pieces, advance = split(
                attempt.token_ids, self._seek, frames, asked.first_time_id, openai=asked.openai
            )
            kept = []
            for piece in pieces:
                text = self._text(piece.token_ids)
                if asked.openai and (piece.start_s == piece.end_s or not text.strip()):
                    continue
                kept.append(piece.token_ids)
                self._said += self._detokenizer.push(self._words(piece.token_ids))
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
                    )
                )
            self._history.extend(kept, attempt.temperature)
            # Tokens without the rules of times may say that nothing is done: the loop goes on all the same.
            self._seek += advance or frames

    def _decode(self, frames: int) -> Trying:
        """Decodes the next window, at one temperature after another; returns the last attempt, and whether it
        is left out."""
        stop = self._seek + frames
        encoder = self._windows.encoder_input(self._recording, self._seek, stop)
        before = self._history.before()
        if before and any(len(ids) > 1 for ids in self._opening):
            # The language is what follows the start token alone.
            (answer,) = yield [self._windows.detection(encoder, self._opening)]
            self._opened(answer)
        most = self._windows.max_tokens(len(before) + 1 + len(self._opening))
        for temperature in self._asked.temperatures:
            start = Start(before, self._opening, timestamps=self._timestamps)
            requests = self._windows.requests(encoder, start, temperature, most, self._seeds(temperature))
            answers = yield requests
            said = len(requests[0].decoding.opening_ids)
            if said:
                self._opened(answers[0])
            attempt = self._best(answers, said, temperature)
            again, silent = judged(attempt, self._asked)
            if not again:
                break
            self.counts.refused += 1
        return attempt, silent

    def _opened(self, answer: WindowAnswer) -> None:
        """The model has said the language."""
        at = next(number for number, ids in enumerate(self._opening) if len(ids) > 1)
        self._opening = (*self._opening[:at], (answer.token_ids[0],), *self._opening[at + 1 :])

    def _best(self, answers: Sequence[WindowAnswer], said: int, temperature: float) -> Attempt:
        """The likeliest of several samples, a token. said: tokens before the text."""
        attempts = [self._attempt(answer, said, temperature) for answer in answers]
        lengths = [max(1, len(attempt.token_ids)) for attempt in attempts]
        each = [answer.sum_logprob / length for answer, length in zip(answers, lengths, strict=True)]
        return attempts[each.index(max(each))]

    def _attempt(self, answer: WindowAnswer, said: int, temperature: float) -> Attempt:
        self.counts.tokens += len(answer.token_ids)
        ids = answer.token_ids[said:]
        text_ids = ids[:-1] if ids[-1] in self._windows.eos_ids else ids
        count = len(text_ids) + 1 if self._asked.openai else len(ids)
        return Attempt(
            token_ids=text_ids,
            temperature=temperature,
            avg_logprob=answer.sum_logprob / count,
            ids_ratio=ids_ratio(ids, self._windows.vocab_size),
            text_ratio=text_ratio(self._text(text_ids).strip()),
            no_speech_prob=answer.no_speech_prob,
        )

    def _seeds(self, temperature: float) -> list[int]:
        """One for each sample."""
        count = self._asked.best_of if temperature > 0 else 1
        first, self._drawn = self._drawn, self._drawn + count
        return [sample_seed(self._seed, number) for number in range(first, self._drawn)]

    def _words(self, ids: Sequence[int]) -> list[int]:
        """The ids without times."""
        return [token for token in ids if token < self._windows.text_end]

    def _text(self, ids: Sequence[int]) -> str:
        detokenizer = Detokenizer(self._vocabulary)
        return detokenizer.push(self._words(ids)) + detokenizer.flush()
