"""What routers and workers say to each other."""

from __future__ import annotations

from typing import Any, NamedTuple

from tandem.cluster.handoff import HiddenSlice
from tandem.errors import TandemError
from tandem.outputs import FinishReason, TokenLogprobs
from tandem.workers.request import Delta, EncoderInput, EngineRequest, EngineStats, Hypothesis

HEARTBEAT_S = 1.0  # an idle engine still sends its stats this often
# A router that is silent this long is gone: its requests are cancelled. It renews five times as often.
LEASE_S = 30.0
# An engine that is silent this long is lost to the router; its requests go elsewhere. It exceeds the
# pauses that a machine under load causes, and a killed engine is noticed at once anyway.
SILENCE_S = 30.0


def packed_input(encoder_input: EncoderInput) -> list[object]:
    """An input as it travels to an encoder: plain values, which Ray packs without pickle."""
    return [encoder_input.key, list(encoder_input.token_ids)]


def read_input(packed: list[Any]) -> EncoderInput:
    key, token_ids = packed
    return EncoderInput(key, tuple(token_ids))


class Submission(NamedTuple):
    """One request on its way to an engine. `request.encoder.hidden` is made there, from `hidden`."""

    request: EngineRequest
    hidden: HiddenSlice | None  # None: the engine encodes by itself


class WireDelta(NamedTuple):
    """A `Delta` as a router gets it. It travels as a list, see `StepMessage`."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | None
    error: TandemError | None
    queued_s: float | None
    hypotheses: list[Hypothesis] | None
    prompt_logprobs: list[TokenLogprobs] | None


class HandoffTotals(NamedTuple):
    """Hidden states that an engine has read from its node's object store. These only grow."""

    reads: int = 0  # one reads what a batch of the encoder holds for this engine at once
    nbytes: int = 0
    seconds: float = 0.0  # until all ranks have them, what is left of their encoding included


class StepMessage(NamedTuple):
    """What an engine tells one router: after a step, or as a heartbeat. It travels as lists of plain values,
    which Ray packs without pickle: there is a delta for every running sequence and step."""

    accepting: bool  # False: draining, submissions are refused
    stats: EngineStats
    handoff: HandoffTotals
    deltas: list[WireDelta]


def packed_message(
    accepting: bool, stats: EngineStats, handoff: HandoffTotals, deltas: list[list[object]]
) -> list[object]:
    """A `StepMessage` as it travels."""
    return [accepting, list(stats), list(handoff), deltas]


def read_message(packed: list[Any]) -> StepMessage:
    accepting, stats, handoff, deltas = packed
    return StepMessage(
        accepting, EngineStats(*stats), HandoffTotals(*handoff), [WireDelta(*delta) for delta in deltas]
    )


def packed_delta(delta: Delta) -> list[object]:
    """A `WireDelta` as it travels."""
    return [
        delta.request_id,
        delta.token_ids,
        delta.logprobs,
        delta.finish_reason,
        delta.stop_reason,
        delta.error,
        delta.queued_s,
        delta.hypotheses,
        delta.prompt_logprobs,
    ]
