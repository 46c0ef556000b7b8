"""What a GPU runs before the first request, so that no request waits while a kernel is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Final

import numpy as np
import torch

from tandem.workers.config import EngineConfig
from tandem.workers.execution.packet import (
    BEAM,
    ENCODE_HERE,
    SINGLE,
    Admissions,
    CrossSpans,
    MediaItems,
    NewPages,
    Packet,
    Rows,
)
from tandem.workers.models.spec import ModelSpec, StackSpec
from tandem.workers.request import EncoderInput

# More rows of one sequence than drafts or beams have, for which the kernels have larger tiles.
_PREFILL: Final = 80
_DRAFTS: Final = 8
_SOURCE: Final = 300  # tokens of an encoder input
GIVEN: Final = 0  # the handle of hidden states that come from elsewhere


def encoder_input(config: EngineConfig, stack: StackSpec) -> EncoderInput:
    """An input of each kind of position that the encoder has: an item of media, or tokens."""
    front = stack.front
    if front is not None:
        return EncoderInput(
            "", (front.placeholder_id,) * front.positions, features=torch.zeros(1, *front.features)
        )
    return EncoderInput("", (0,) * min(_SOURCE, config.max_encoder_length, stack.max_positions or _SOURCE))


def steps(config: EngineConfig, spec: ModelSpec, page_size: int, pages: int) -> Iterator[Packet]:
    """Steps with every kind of rows: of one position, of a few and of many, and beams. All are slot 0's,
    which reads the encoder input of entry 0; the first step admits it.

    Whatever they leave behind is overwritten by the sequences that get the slot.
    """
    nothing = Packet.from_ints(np.zeros(len(fields(Packet)), dtype=np.int64))
    longest = config.max_decoder_length
    prefill = min(_PREFILL, longest, spec.decoder.max_positions or longest)
    few = min(_DRAFTS, prefill)
    first = replace(
        nothing, new_pages=NewPages.of([(0, at, at % pages) for at in range(-(-prefill // page_size))])
    )
    if spec.encoder is not None:
        made = encoder_input(config, spec.encoder)
        ids = made.token_ids
        count = -(-len(ids) // page_size // spec.cross_planes)
        first = replace(
            first,
            admissions=Admissions.of([(0, len(ids), count, ENCODE_HERE if config.with_encoder else GIVEN)]),
            admission_pages=np.array([at % pages for at in range(count)], dtype=np.int64),
            admission_tokens=np.array(ids if config.with_encoder else [], dtype=np.int64),
            admission_media=MediaItems.of(made.item_keys if config.with_encoder else ()),
        )
        if spec.media_token_id is not None:
            first = replace(first, cross_spans=CrossSpans.of([(0, 0, 0, len(ids), 1)]))
    alone = (0, 0, 1, 0, 1, SINGLE, 0)
    yield _with_rows(first, [alone, (0, 0, prefill, 0, 1, SINGLE, 0)])
    beam = (0, 0, 1, 0, 1, BEAM, 0)
    mixed = _with_rows(nothing, [alone, beam, beam, (0, 0, few, 0, 1, SINGLE, 0)])
    yield replace(mixed, beam_slots=np.zeros(2, dtype=np.int64))


def _with_rows(packet: Packet, rows: list[tuple[int, ...]]) -> Packet:
    made = Rows.of(rows)
    return replace(packet, rows=made, row_tokens=np.zeros(int(made.count.sum()), dtype=np.int64))
