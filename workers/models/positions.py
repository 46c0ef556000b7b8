"""Position vectors that are computed, not learned."""

from __future__ import annotations

import math

import torch

from tandem.workers.models.spec import Rotary


def sinusoidal(rows: int, width: int) -> torch.Tensor:
    """float32 [rows, width]: all sines, then all cosines (Vaswani et al., 2017, not interleaved).

    Entry j of either half turns by ``10000^(-2j / width)`` a position. The angles are taken in float64, as
    transformers' Marian does, whose models were trained with this layout.
    """
    angles = torch.arange(rows, dtype=torch.float64)[:, None] / 10000.0 ** (
        torch.arange(0, width, 2, dtype=torch.float64) / width
    )
    return torch.cat([angles.sin(), angles.cos()[:, : width // 2]], dim=1).float()


def sinusoidal_tensor2tensor(rows: int, width: int) -> torch.Tensor:
    """float32 [rows, width]: all sines, then all cosines, as in tensor2tensor and fairseq.

    Entry j of either half turns by ``10000^(-j / (width / 2 - 1))`` a position: the last is the slowest.
    In float32, as transformers' M2M100; an odd width ends with a zero.
    """
    half = width // 2
    speeds = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(rows).float()[:, None] * speeds
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(table, (0, width % 2))


def rotary_speeds(rotary: Rotary) -> torch.Tensor:
    """float32 [dimensions / 2]: the angle by which each pair turns from one position to the next (Su et
    al., 2021)."""
    speeds = 1.0 / rotary.base ** (torch.arange(0, rotary.dimensions, 2).float() / rotary.dimensions)
    if (long := rotary.long_waves) is None:
        return speeds / rotary.factor
    # In transformers' order, for its last bits.
    waves = 2 * math.pi / speeds
    shortest, longest = long.trained / long.high, long.trained / long.low
    slowed = torch.where(waves > longest, speeds / rotary.factor, speeds)
    share = (long.trained / waves - long.low) / (long.high - long.low)
    between = (1 - share) * slowed / rotary.factor + share * slowed
    return torch.where((waves >= shortest) & (waves <= longest), between, slowed)
