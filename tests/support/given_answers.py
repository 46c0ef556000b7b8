"""Answers of windows that are given to a transcriber, instead of an engine's."""

from __future__ import annotations

import math

from whisper import EOS

from tandem.workers.request import Delta, EngineRequest
from tandem.workers.transcription.answers import WindowAnswer


def said(ids: list[int], mean: float = -0.1, silent: float = 0.0) -> WindowAnswer:
    """mean: log-probability of a token. silent: probability that nobody speaks."""
    return WindowAnswer([*ids, EOS], mean * (len(ids) + 1), silent)


def ended(request: EngineRequest, answer: WindowAnswer) -> Delta:
    silent = math.log(answer.no_speech_prob) if answer.no_speech_prob else -math.inf
    return Delta(
        request.request_id, answer.token_ids, finish_reason="stop", sum_logprob=answer.sum_logprob,
        probe_logprob=silent,
    )  # fmt: skip
