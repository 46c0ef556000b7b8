"""T5's bucketed relative position bias as a table over distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HIDDEN = -1e10


def relative_bias_table(weight: Tensor, bidirectional: bool, max_distance: int) -> Tensor:
    """The bias of every distance up to ``max_distance``; all distances from there on share a bucket.

    weight: [buckets, H], a T5 ``relative_attention_bias.weight`` or a rank's columns of it.
    Returns float32 [H, 2R + 1], index ``clamp(key - query, -R, R) + R``, when bidirectional; else [H, R + 1],
    index ``min(query - key, R)``; R = max_distance.

    With B buckets for one direction, half of them (E) hold one distance each, and distance ``d >= E`` falls
    in bucket ``E + floor(log(d / E) / log(R / E) (B - E))``, at most B - 1 (Raffel et al., 2020, section 2.1;
    ``T5Attention._relative_position_bucket`` in transformers). Raises ValueError unless 0 < E < R.
    """
    buckets = weight.shape[0] // 2 if bidirectional else weight.shape[0]
    exact = buckets // 2
    if not 0 < exact < max_distance:
        raise ValueError(f"{weight.shape[0]} buckets do not fit a maximum distance of {max_distance}")
    # On the CPU whatever the weight's device: float32 log differs between devices in the last bit, which
    # moves a distance to the next bucket.
    distance = torch.arange(max_distance + 1)
    large = exact + (
        torch.log(distance.float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    ).to(torch.long).clamp_(max=buckets - 1)
    # Distance 0 took log(0); it is below `exact` and never uses it.
    bucket = torch.where(distance < exact, distance, large.clamp(0, buckets - 1))
    if bidirectional:
        # Keys after the query (positive distances) use the upper half of the buckets.
        bucket = torch.cat([bucket.flip(0), bucket[1:] + buckets])
    return weight.float().index_select(0, bucket.to(weight.device)).t().contiguous()


def windowed_bias_table(table: Tensor, before: int, after: int | None) -> Tensor:
    """A bias table that hides the keys more than `before` positions before the query, or more than `after`
    after it.

    table: [H, 2R + 1], bidirectional, see `relative_bias_table`; returns [H, 2W + 1] with
    ``W = max(before, after) + 1``, whose ends serve all distances from W on. after = None: the table is
    causal, [H, R + 1], and [H, before + 2] is returned. A hidden key has bias -1e10 as in LongT5 (Guo et al.,
    2022): its exponential is 0, and unlike -inf it keeps a row's running maximum finite.
    """
    if after is None:
        distance = torch.arange(before + 1, device=table.device).clamp_(max=table.shape[1] - 1)
        return torch.nn.functional.pad(table[:, distance], (0, 1), value=_HIDDEN)
    reach, width = table.shape[1] // 2, max(before, after) + 1
    distance = torch.arange(-width, width + 1, device=table.device)
    hidden = (distance < -before) | (distance > after)
    return table[:, distance.clamp(-reach, reach) + reach].masked_fill_(hidden, _HIDDEN)
