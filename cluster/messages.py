"""What routers and workers say to each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tandem.cluster.handoff import HiddenSlice
from tandem.inputs import Media
from tandem.workers.request import Delta, EncoderInput, EngineRequest, EngineStats

HEARTBEAT_S = 1.0  # an engine sends its stats at least this often, however long its step takes
# A router that is silent this long is gone: its requests are cancelled. Routers renew five times as often.
LEASE_S = 30.0
CALL_TIMEOUT_S = 30.0  # a router's calls to an engine take so long at most


def packed_input(encoder_input: EncoderInput) -> list[object]:
    """An input as it travels to an encoder: plain values, which Ray packs without pickle, and an array."""
    features = None if encoder_input.features is None else encoder_input.features.numpy()
    media = [list(each) for each in encoder_input.media]
    return [encoder_input.key, list(encoder_input.token_ids), media, features]


def read_input(packed: list[Any]) -> EncoderInput:
    key, token_ids, media, features = packed
    # Ray's array is read-only, and not the reader's to keep.
    made = None if features is None else torch.tensor(features)
    return EncoderInput(key, tuple(token_ids), media=tuple(Media(*each) for each in media), features=made)


class Submission(NamedTuple):
    """One request on its way to an engine. `request.encoder.hidden` is made there, from `hidden`; where there
    is `hidden`, `request.encoder` has no media and no features."""

    request: EngineRequest
    hidden: HiddenSlice | None  # None: the engine encodes by itself


class HandoffTotals(NamedTuple):
    """Hidden states that an engine has read from its node's object store. Counters."""

    reads: int = 0  # one read takes all that an encoder's batch holds for this engine
    nbytes: int = 0
    seconds: float = 0.0  # until all ranks have them, the rest of their encoding included


class StepMessage(NamedTuple):
    """What an engine tells one router: after a step, or as a heartbeat. It travels as lists of plain values,
    which Ray packs without pickle: every running sequence has a delta in every step."""

    accepting: bool  # False: draining, submissions are refused
    stats: EngineStats
    handoff: HandoffTotals
    deltas: list[Delta]


def packed_message(
    accepting: bool, stats: EngineStats, handoff: HandoffTotals, deltas: list[list[object]]
) -> list[object]:
    """A `StepMessage` as it travels. `deltas` are `list(delta)` of each."""
    return [accepting, list(stats), list(handoff), deltas]


def read_message(packed: list[Any]) -> StepMessage:
    accepting, stats, handoff, deltas = packed
    return StepMessage(
        accepting, EngineStats(*stats), HandoffTotals(*handoff), [Delta(*delta) for delta in deltas]
    )
