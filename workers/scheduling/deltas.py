"""Whether a sequence's new tokens end it, why, and the delta that tells its reader."""

from __future__ import annotations

from typing import Literal

from tandem.outputs import TokenLogprobs
from tandem.workers.request import Decoding, Delta, Hypothesis
from tandem.workers.scheduling.plan import Found, Sequence

Reason = Literal["stop", "length"]


def finish_reason(sequence: Sequence) -> Reason | None:
    """Why the sequence's last token ends it; None if it goes on."""
    decoding = sequence.request.decoding
    if sequence.tokens[-1] in decoding.stop_ids and sequence.generated > decoding.min_tokens:
        return "stop"
    return "length" if sequence.generated >= decoding.max_tokens else None


def token_delta(
    sequence: Sequence,
    tokens: list[int],
    reason: Reason | None,
    logprobs: list[TokenLogprobs] | None = None,
    sum_logprob: float | None = None,
) -> Delta:
    """
    Args:
        tokens: the sequence's last ones.
        logprobs: one for each of `tokens`, or empty where they were not asked for.
        sum_logprob: that of `tokens`, where it was asked for.
    """
    first = sequence.generated == len(tokens)
    wants_prompt = sequence.request.decoding.prompt_logprobs is not None
    return Delta(
        sequence.request.request_id,
        tokens,
        logprobs=logprobs or None,
        finish_reason=reason,
        stop_reason=_stop_reason(sequence.request.decoding, sequence.tokens[-1], reason),
        queued_s=sequence.queued_s if first else None,
        prompt_logprobs=sequence.scores if first and wants_prompt else None,
        sum_logprob=sum_logprob,
        probe_logprob=_probe_logprob(sequence) if first else None,
    )


def score_delta(sequence: Sequence, alignment: list[int] | None) -> Delta:
    return Delta(
        sequence.request.request_id,
        [],
        logprobs=sequence.scores,
        finish_reason="length",
        queued_s=sequence.queued_s,
        alignment=alignment,
    )


def beam_delta(sequence: Sequence, found: Found) -> Delta:
    decoding = sequence.request.decoding
    hypotheses = []
    for ids, score, sum_logprob in found:
        reason: Reason = "stop" if ids[-1] in decoding.stop_ids else "length"
        stop_reason = _stop_reason(decoding, ids[-1], reason)
        hypotheses.append(Hypothesis(ids, score, reason, stop_reason, sum_logprob))
    return Delta(
        sequence.request.request_id,
        [],
        finish_reason=hypotheses[0].finish_reason,
        stop_reason=hypotheses[0].stop_reason,
        queued_s=sequence.queued_s,
        hypotheses=hypotheses,
        probe_logprob=_probe_logprob(sequence),
    )


def _probe_logprob(sequence: Sequence) -> float | None:
    return None if sequence.request.decoding.probe is None else sequence.scores[0].logprob


def _stop_reason(decoding: Decoding, last: int, reason: Reason | None) -> int | None:
    """The request's own stop id, if that and not the model's EOS ended the sequence."""
    return last if reason == "stop" and last not in decoding.eos_ids else None
