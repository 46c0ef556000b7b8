"""Ops on the scores of a vocabulary's tokens, between the logits and the choice of a token.

Adding, gathering and scattering run at the memory's speed; on CPUs `where` and `masked_fill` take ten times
as long, and so does torch's `logsumexp` where tokens are banned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tandem.kernels.values import TimeIds


def banned(where: Tensor) -> Tensor:
    """What is added to scores: float32 of the same shape, minus infinity where `where` holds, else 0."""
    return torch.where(where, -torch.inf, 0.0)


def logsumexp(x: Tensor, stops: Tensor | None = None) -> Tensor:
    """The logarithm of what the exponentials of each row add up to: float32 [R, N] → [R, 1]; NaN, which
    exceeds nothing, where all are minus infinity.

    stops: int64 [R], so many of a row's first numbers count, at least one; None: all do.
    """
    if stops is not None:
        x = x.masked_fill(torch.arange(x.shape[1], device=x.device) >= stops.unsqueeze(1), -torch.inf)
    return x.amax(1, keepdim=True) - x.log_softmax(1).amax(1, keepdim=True)


def ban_tokens(scores: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Makes scores minus infinity, in place.

    scores: float32 [R, vocabulary]. ids: int64 [S, N], lists of tokens, -1 being none. rows: int64 [R], the
    list of each row of scores; below 0 it has none.
    """
    banned_ids = ids[rows.clamp(min=0)]
    scores.scatter_add_(1, banned_ids.clamp(min=0), banned((banned_ids >= 0) & (rows >= 0).unsqueeze(1)))


def apply_timestamp_rules(
    scores: Tensor, history: Tensor, slots: Tensor, begins: Tensor, counts: Tensor, last_initial: Tensor,
    ids: TimeIds,
) -> None:  # fmt: skip
    """Bans, in place, the tokens that may not come next where times stand in pairs around each stretch of
    text and never decrease: transformers' `WhisperTimeStampLogitsProcessor`.

    Args:
        scores: float32 [R, vocabulary].
        history: int64 [S, T], the tokens of sequences.
        slots: int64 [R], each row's sequence.
        begins, counts: int64 [R, 1], where the tokens among which times count begin, and how many there are
            so far; 0 or fewer: there are none. A row whose `begins` is below 0 stays as it is.
        last_initial: int64 [R, 1], the latest time that may come first.
    """
    own = begins >= 0
    tokens, lengths = history[slots], begins + counts
    position = torch.arange(tokens.shape[1], device=tokens.device)
    there = (position >= begins) & (position < lengths) & (tokens >= ids.first)
    at = torch.where(there, position, -1).amax(1, keepdim=True)
    latest, last, before = (
        tokens.gather(1, place.clamp(0, tokens.shape[1] - 1)) for place in (at, lengths - 1, lengths - 2)
    )
    latest = torch.where(at < 0, -1, latest)
    ended = (counts >= 1) & (last >= ids.first)
    paired = (counts < 2) | (before >= ids.first)
    initial = counts == 0
    # Text may follow a pair of times, and a time or the end must follow the first of a pair.
    no_text, no_special = initial | (ended & ~paired), initial
    vocabulary = scores.shape[1]
    earliest = torch.where(latest < 0, ids.first, latest + ~(ended & ~paired))
    earliest = torch.where(ended & paired, vocabulary, earliest)
    most = torch.where(initial, last_initial, vocabulary)
    text, special, times = scores.tensor_split((ids.text_end, ids.first), dim=1)
    time_ids = torch.arange(ids.first, vocabulary, device=scores.device)
    times += banned(own & ((time_ids < earliest) | (time_ids > most)))
    scores[:, ids.without, None] += banned(own)
    # A time comes where all times together are likelier than any one other token.
    likeliest = torch.maximum(
        text.amax(1, keepdim=True) + banned(no_text), special.amax(1, keepdim=True) + banned(no_special)
    )
    only_times = logsumexp(times) > likeliest
    text += banned(own & (no_text | only_times))
    special += banned(own & (no_special | only_times))
