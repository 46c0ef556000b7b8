"""Whether a window's answer is good enough, and whether it is left out."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tandem.workers.transcription.answers import WindowAnswer
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.window_requests import WindowRequests


class Attempt(NamedTuple):
    """A window, decoded at one temperature."""

    token_ids: list[int]  # times included, EOS excluded
    temperature: float
    avg_logprob: float
    ids_ratio: float  # how well its ids are compressed, EOS included
    text_ratio: float  # how well its text is
    no_speech_prob: float
    ended: bool = True  # by EOS
    logprobs: list[float] | None = None  # those of token_ids, where they were asked for


class Verdict(NamedTuple):
    again: bool  # at the next temperature, if there is one
    silent: bool  # it is left out


def attempt_of(
    answer: WindowAnswer,
    said: int,
    temperature: float,
    windows: WindowRequests,
    asked: Asked,
    text: Callable[[Sequence[int]], str],
) -> Attempt:
    """An answer as an attempt. said: tokens of it that stand before the text. text: what ids say."""
    ids = answer.token_ids[said:]
    text_ids = ids[:-1] if ids[-1] in windows.eos_ids else ids
    count = len(text_ids) + 1 if asked.openai else len(ids)
    return Attempt(
        token_ids=text_ids,
        temperature=temperature,
        avg_logprob=answer.sum_logprob / count,
        ids_ratio=ids_ratio(ids, windows.vocab_size),
        text_ratio=text_ratio(text(text_ids).strip()),
        no_speech_prob=answer.no_speech_prob,
        ended=len(text_ids) < len(ids),
        logprobs=answer.logprobs[said:] or None,
    )


def judged(attempt: Attempt, asked: Asked) -> Verdict:
    """By the thresholds: `_need_fallback` of transformers, or `decode_with_fallback` of openai-whisper and
    what follows it there."""
    ratio = attempt.text_ratio if asked.openai else attempt.ids_ratio
    unlikely = _below(attempt.avg_logprob, asked.logprob_threshold)
    again = unlikely or _above(ratio, asked.compression_ratio_threshold)
    if not _above(attempt.no_speech_prob, asked.no_speech_threshold):
        return Verdict(again, silent=False)
    if unlikely:
        return Verdict(again=False, silent=True)
    likely = asked.logprob_threshold is not None and attempt.avg_logprob > asked.logprob_threshold
    return Verdict(again, silent=asked.openai and not likely)


def _above(value: float, threshold: float | None) -> bool:
    return threshold is not None and value > threshold


def _below(value: float, threshold: float | None) -> bool:
    return threshold is not None and value < threshold


def ids_ratio(ids: Sequence[int], vocab_size: int) -> float:
    """transformers' `_retrieve_compression_ratio`. ids: one at least."""
    size = int(math.log2(vocab_size) / 8) + 1
    return _ratio(b"".join(token.to_bytes(size, "little") for token in ids))


def text_ratio(text: str) -> float:
    """openai-whisper's `compression_ratio`."""
    return _ratio(text.encode())


def _ratio(data: bytes) -> float:
    return len(data) / len(zlib.compress(data))
