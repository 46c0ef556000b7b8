"""Speech that goes on, transcribed turn by turn.

While a turn goes on, hypotheses about all of its sound are made one after another; what two of them agree on
is final, and the next one goes on from it. Nothing final is taken back, and there is never more than one
hypothesis under way: where the engine is slow there are fewer of them. When a turn has ended, its text is
completed with openai-whisper's temperatures and thresholds.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Final

from tandem.live import LiveDelta, LiveParams
from tandem.workers.request import Delta, EncoderInput, EngineRequest
from tandem.workers.requests.answers.detokenizer import Detokenizer, Vocabulary
from tandem.workers.requests.media.audio import AudioProcessor
from tandem.workers.requests.media.audio_file import Samples
from tandem.workers.requests.media.voice_activity import RATE
from tandem.workers.requests.request_builder import sample_seed
from tandem.workers.requests.speech import language_of, opened
from tandem.workers.transcription.answers import WindowAnswer, WindowAnswers
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.fallback import Attempt, attempt_of, judged
from tandem.workers.transcription.history import history_of
from tandem.workers.transcription.live.agreement import agreed
from tandem.workers.transcription.live.turns import Turn, Turns
from tandem.workers.transcription.window_requests import Start, WindowRequests
from tandem.workers.transcription.words import WITHOUT_SPACES

_LONGEST: Final = 29 / 30  # the part of a window that a turn may take
_LEAST_S: Final = 0.1  # the shortest sound that is transcribed

Asking = Generator[list[EngineRequest], list[WindowAnswer], None]


class LiveTranscriber:
    """`feed` it sound; whenever there is more, and whenever requests have ended, ask what is `due`. `deltas`
    are to be taken from it. Its methods are called by one thread at a time."""

    def __init__(
        self, params: LiveParams, asked: Asked, processor: AudioProcessor, vocabulary: Vocabulary,
        windows: Callable[[int], WindowRequests],
    ) -> None:  # fmt: skip
        """windows: makes the requests of the turn with this number."""
        self.deltas: deque[LiveDelta] = deque()
        self._asked, self._processor, self._vocabulary = asked, processor, vocabulary
        self._windows_of = windows
        self._step = params.step_ms * RATE // 1000
        first = windows(-1)
        self._turns = Turns(params.turn_detection, first.frames * processor.frame_s * _LONGEST)
        self._opening = asked.opening(timestamps=False)
        self._history = history_of(asked, first.most_before)
        self._seed, self._drawn = secrets.randbits(63), 0
        self.hypotheses = 0  # so far, those that end turns included
        self.encoder_tokens = 0  # positions of encoder inputs so far
        self.generated_tokens = 0  # so far, those of answers that were not kept included
        self._ended = False
        self._flow: Asking | None = None
        self._answers = WindowAnswers([])
        self._turn: Turn | None = None  # that the following fields are about
        self._begin_turn()

    def feed(self, samples: Samples) -> None:
        """float32 [n] at 16 kHz, in [-1, 1]."""
        self._turns.feed(samples)

    def clear(self) -> None:
        """Forgets the turn that is under way."""
        self._turns.clear()

    def commit(self) -> None:
        """Ends the turn that is under way."""
        self._turns.end()

    def end(self) -> None:
        """There is no more sound."""
        self._turns.end()
        self._ended = True

    @property
    def heard_s(self) -> float:
        """Seconds of sound so far."""
        return self._turns.heard / RATE

    @property
    def done(self) -> bool:
        """Whether all sound is transcribed."""
        return self._ended and self._flow is None and not self._turns.turns

    @property
    def backlog(self) -> int:
        """Turns that have ended and are not transcribed: where there are any, more sound had better wait."""
        return sum(turn.ended for turn in self._turns.turns)

    def due(self) -> list[EngineRequest]:
        """The requests that are to be generated now: none while others are under way."""
        if self._flow is not None or not self._turns.turns:
            return []
        turn = self._turns.turns[0]
        if turn is not self._turn:  # the one before may have been cleared
            self._turn = turn
            self._begin_turn()
            self.deltas.append(self._delta("", ""))
        if turn.ended:
            return self._go(self._finish(turn))
        if turn.length - self._heard < self._step:
            return []
        return self._go(self._listen(turn))

    def push(self, delta: Delta) -> list[EngineRequest]:
        """Takes in a delta of one of its requests. Returns those that are to be generated now, too. Raises
        the delta's error, or why its request was ended."""
        answers = self._answers.push(delta)
        flow = self._flow
        if answers is None or flow is None:
            return []
        return self._step_flow(lambda: flow.send(answers))

    # -- within

    def _begin_turn(self) -> None:
        self._heard = 0  # samples of the turn that the last hypothesis heard
        self._final: list[int] = []  # ids
        self._last: list[int] = []  # what the last hypothesis went on with
        self._detokenizer = Detokenizer(self._vocabulary)
        self._said = ""  # text of the final ids

    def _go(self, flow: Asking) -> list[EngineRequest]:
        self._flow = flow
        return self._step_flow(lambda: next(flow))

    def _step_flow(self, go_on: Callable[[], list[EngineRequest]]) -> list[EngineRequest]:
        try:
            requests = go_on()
        except StopIteration:
            self._flow, requests = None, []
        self._answers = WindowAnswers(requests)
        return requests

    def _listen(self, turn: Turn) -> Asking:
        """A hypothesis about a turn that goes on."""
        windows = self._windows_of(turn.number)
        encoder = self._encoder_input(windows, turn)
        self._heard = turn.length
        (answer,), said = yield from self._asked_for(windows, encoder, 0.0)
        attempt = self._attempt(answer, said, 0.0, windows)
        again, silent = judged(attempt, self._asked)
        if again or silent:  # it repeats itself, or nobody speaks: the next one will have heard more
            return
        ids = _words(attempt, windows)
        count = agreed(self._last, ids, self._vocabulary.decode, spaced=self._language not in WITHOUT_SPACES)
        grown = self._finalize(ids[:count])
        self._last = ids[count:]
        self.deltas.append(self._delta(grown, self._text(self._last)))

    def _finish(self, turn: Turn) -> Asking:
        """The rest of a turn that has ended."""
        if turn.length >= _LEAST_S * RATE:
            windows = self._windows_of(turn.number)
            encoder = self._encoder_input(windows, turn)
            for temperature in self._asked.temperatures:
                answers, said = yield from self._asked_for(windows, encoder, temperature)
                attempts = [self._attempt(answer, said, temperature, windows) for answer in answers]
                attempt = max(attempts, key=lambda one: one.avg_logprob)
                again, silent = judged(attempt, self._asked)
                if not again:
                    break
            rest = [] if silent else _words(attempt, windows)
            self._history.extend([[*self._final, *rest]], attempt.temperature)
        else:
            rest = []
        grown = self._finalize(rest)
        grown += self._detokenizer.flush()
        end_s = (turn.start + turn.length) / RATE
        self.deltas.append(self._delta(grown, "", end_s))
        self._turns.turns.popleft()

    def _asked_for(
        self, windows: WindowRequests, encoder: EncoderInput, temperature: float
    ) -> Generator[list[EngineRequest], list[WindowAnswer], tuple[list[WindowAnswer], int]]:
        """The answers, which go on from the final ids, and how many tokens stand before their text."""
        before = self._history.before()
        if before and any(len(ids) > 1 for ids in self._opening):
            (answer,) = yield [windows.detection(encoder, self._opening)]
            self._opening = opened(self._opening, answer.token_ids[0])
        start = Start(before, self._opening, timestamps=False, said=tuple(self._final))
        most = windows.max_tokens(len(before) + 1 + len(self._opening) + len(self._final))
        count = self._asked.best_of if temperature > 0 else 1
        seeds = [sample_seed(self._seed, self._drawn + number) for number in range(count)]
        self._drawn += count
        requests = windows.requests(encoder, start, temperature, most, seeds)
        self.hypotheses += 1
        answers = yield requests
        self.generated_tokens += sum(len(answer.token_ids) for answer in answers)
        said = len(requests[0].decoding.opening_ids)
        if said:
            self._opening = opened(self._opening, answers[0].token_ids[0])
        return answers, said

    def _encoder_input(self, windows: WindowRequests, turn: Turn) -> EncoderInput:
        recording = self._processor.spectrogram_of(turn.samples)
        self.encoder_tokens += windows.positions
        return windows.encoder_input(recording, 0, min(recording.frames, windows.frames))

    def _attempt(
        self, answer: WindowAnswer, said: int, temperature: float, windows: WindowRequests
    ) -> Attempt:
        return attempt_of(answer, said, temperature, windows, self._asked, self._text)

    def _finalize(self, ids: Sequence[int]) -> str:
        """Makes ids final; returns what the turn's final text grows by."""
        self._final += ids
        grown = self._detokenizer.push(ids)
        if not self._said:
            grown = grown.lstrip()
        self._said += grown
        return grown

    def _text(self, ids: Sequence[int]) -> str:
        detokenizer = Detokenizer(self._vocabulary)
        return detokenizer.push(ids) + detokenizer.flush()

    @property
    def _language(self) -> str:
        return language_of(self._asked.speech, self._opening)

    def _delta(self, final: str, partial: str, end_s: float | None = None) -> LiveDelta:
        turn = self._turn
        assert turn is not None
        if not self._said:
            partial = partial.lstrip()
        return LiveDelta(turn.number, final, partial, turn.start / RATE, end_s, self._language)


def _words(attempt: Attempt, windows: WindowRequests) -> list[int]:
    """Its ids without times, which a model may say unasked."""
    return [token for token in attempt.token_ids if token < windows.text_end]
