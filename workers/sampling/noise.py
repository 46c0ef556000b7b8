"""Noise from a counter, not from a generator's state: a hash of (seed, tokens generated so far). So a draw
depends neither on the batch nor on whether the request was preempted or moved.

The hash is SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
"""

from __future__ import annotations

import torch

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as a signed 64-bit integer


def uniform(seed: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Uniform noise, float64 [N] in [0, 1). seed, step: int64 [N]."""
    return _shift(_hash(seed, step), 11).double() * 2.0**-53


def gumbel(seed: torch.Tensor, step: torch.Tensor, count: int) -> torch.Tensor:
    """Independent standard Gumbel noise, float32 [N, count]. seed, step: int64 [N].

    The k greatest of log-probabilities with Gumbel noise added are k draws without replacement, in draw order
    (Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them", 2019).
    """
    index = torch.arange(1, count + 1, device=seed.device)
    bits = _shift(_mix(_hash(seed, step).unsqueeze(1) + index * _GOLDEN), 11)
    return -(-((bits.double() + 0.5) * 2.0**-53).log()).log().float()


def _hash(seed: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return _mix(_mix(seed) + (step + 1) * _GOLDEN)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
