"""Stacks of random weights, and sequences that are decoded on them without an engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from tandem.kernels import RowGroups
from tandem.workers.distributed import Group
from tandem.workers.models.batch import AttentionRows, DecoderBatch
from tandem.workers.models.kv_pool import KVPool
from tandem.workers.models.layers import Placement, WeightSlot
from tandem.workers.models.spec import ModelSpec, StackSpec
from tandem.workers.models.stacks import DecoderStack

PLACE = Placement(torch.device("cpu"), torch.float32, Group())
PAGE, LONGEST, VOCAB = 4, 24, 13
HEAD_DIM = 4

# A small model whose stacks differ in width.
STACK = StackSpec(
    vocab_size=11, layers=2, d_model=6, heads=2, head_dim=3, d_ff=8, activation="relu", bias=True,
    norm="layer", norm_eps=1e-5, attention_scale=1.0,
)  # fmt: skip
MODEL = ModelSpec(
    family="test",
    encoder=replace(STACK, d_model=4),
    decoder=STACK,
    decoder_start_id=0,
    pad_id=0,
    eos_ids=(1,),
)


def fill(block: Any) -> dict[str, torch.Tensor]:
    """Random weights, by their names."""
    slots: Iterable[WeightSlot] = block.slots()
    found = {}
    for slot in slots:
        slot.into.copy_(torch.randn(slot.into.shape))
        found[slot.name] = slot.into.clone()
    return found


def norm(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[name], weights[f"{name}.bias"], 1e-5)


def filled(stack: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for slot in stack.slots():
        slot.into.copy_(0.6 * torch.randn(slot.into.shape, generator=generator))
    stack.prepare()
    return stack


def tokens(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (length,), generator=generator) for length in lengths]


class Sequences:
    """Some sequences and their pages, which steps of any numbers of their tokens are made from."""

    def __init__(
        self, decoder: DecoderStack, spec: ModelSpec, hidden: list[torch.Tensor], count: int
    ) -> None:
        self.decoder = decoder
        each = -(-LONGEST // PAGE)
        stack = spec.decoder
        self.pool = KVPool(spec.kv_planes, 2 * count * each, stack.shared_heads, PAGE, HEAD_DIM,
                           PLACE.device, PLACE.dtype)  # fmt: skip
        pages = torch.randperm(2 * count * each, generator=torch.Generator().manual_seed(2))
        self.own, self.cross = pages.int().view(2, count, each)
        self.written = [0] * count
        self.cross_lengths = torch.tensor([len(one) for one in hidden] or [0] * count, dtype=torch.int32)
        for number, states in enumerate(hidden):
            decoder.admit(states, self.places(self.cross[number], 0, len(states)), self.pool)

    def places(self, pages: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        positions = torch.arange(start, stop)
        return pages[positions // PAGE].long() * PAGE + positions % PAGE

    def step(self, parts: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """The sequences' next tokens, by their numbers → the logits after each of them."""
        counts = [len(ids) for ids in parts.values()]
        starts = [self.written[number] for number in parts]
        for number, count in zip(parts, counts, strict=True):
            self.written[number] += count
        chosen = list(parts)
        borders = torch.tensor([0, *counts]).cumsum(0).int()
        groups = RowGroups(borders, max(counts))
        rows = int(borders[-1])
        slots = [
            self.places(self.own[number], start, start + count)
            for number, start, count in zip(chosen, starts, counts, strict=True)
        ]
        attention = AttentionRows(
            0, rows, self.own[chosen], torch.tensor([self.written[n] for n in chosen], dtype=torch.int32),
            groups, self.cross[chosen], self.cross_lengths[chosen], groups,
        )  # fmt: skip
        positions = [torch.arange(s, s + c) for s, c in zip(starts, counts, strict=True)]
        batch = DecoderBatch(
            torch.cat(list(parts.values())), torch.cat(positions), torch.cat(slots), [attention]
        )
        logits, _ = self.decoder(batch, self.pool)
        assert logits is not None
        return [logits[a:b] for a, b in pairwise(borders.tolist())]
