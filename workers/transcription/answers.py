"""The engine's deltas of a transcription's requests → their whole answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem.errors import Cancelled, DeadlineExceeded
from tandem.workers.request import Delta, EngineRequest


@dataclass(slots=True)
class WindowAnswer:
    """One way to decode a window, or its language."""

    token_ids: list[int] = field(default_factory=list)  # EOS included
    sum_logprob: float = 0.0
    no_speech_prob: float = 0.0
    logprobs: list[float] = field(default_factory=list)  # those of token_ids, where they were asked for
    # The answer of a request that aligns: see `Delta.alignment`, and the tokens' probabilities.
    alignment: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)

    def push(self, delta: Delta) -> None:
        """Raises the delta's error, or why the request was ended: DeadlineExceeded, Cancelled."""
        if delta.error is not None:
            raise delta.error
        if delta.finish_reason == "deadline":
            raise DeadlineExceeded("the request's time was over before its recording was transcribed")
        if delta.finish_reason == "cancelled":
            raise Cancelled("the request was cancelled")
        if delta.probe_logprob is not None:
            self.no_speech_prob = math.exp(delta.probe_logprob)
        if delta.alignment is not None:
            self.alignment = delta.alignment
            self.probabilities = [math.exp(one.logprob) for one in delta.logprobs or ()]
        if delta.hypotheses:
            best = delta.hypotheses[0]
            self.token_ids, self.sum_logprob = best.token_ids, best.sum_logprob or 0.0
        else:
            self.token_ids += delta.token_ids
            self.logprobs += [one.logprob for one in delta.logprobs or ()]
            self.sum_logprob += delta.sum_logprob or 0.0


class WindowAnswers:
    """The answers of requests that a transcriber waits for, while they come."""

    def __init__(self, requests: Sequence[EngineRequest]) -> None:
        self._answers = {request.request_id: WindowAnswer() for request in requests}
        self._live = len(requests)

    def push(self, delta: Delta) -> list[WindowAnswer] | None:
        """All answers, in the requests' order, with the last delta of the last one; None before. Raises what
        `WindowAnswer.push` does."""
        self._answers[delta.request_id].push(delta)
        self._live -= delta.last
        return None if self._live else list(self._answers.values())
