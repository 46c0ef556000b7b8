"""What routers and workers tell each other arrives as it was, and travels as plain values."""

from __future__ import annotations

import torch

from tandem.cluster.messages import (
    HandoffTotals,
    StepMessage,
    packed_input,
    packed_message,
    read_input,
    read_message,
)
from tandem.inputs import Media
from tandem.workers.request import Delta, EncoderInput, EngineStats

STATS = EngineStats(*range(len(EngineStats._fields)))


def test_a_step_arrives_as_it_was() -> None:
    deltas = [Delta("a", [5]), Delta("b", [1], finish_reason="stop", queued_s=0.5)]
    packed = packed_message(True, STATS, HandoffTotals(1, 2, 0.5), [list(delta) for delta in deltas])
    assert read_message(packed) == StepMessage(True, STATS, HandoffTotals(1, 2, 0.5), deltas)


def test_an_encoder_input_arrives_as_it_was() -> None:
    encoder_input = EncoderInput("key", (3, 1, 1), media=(Media("image", b"12", "a"), Media("audio", b"3")))
    assert read_input(packed_input(encoder_input)) == encoder_input
    assert read_input(packed_input(EncoderInput("key", ()))) == EncoderInput("key", ())
    features = torch.arange(6.0).reshape(1, 2, 3)
    found = read_input(packed_input(EncoderInput("key", (3, 3), features=features))).features
    assert found is not None
    assert torch.equal(found, features)


def plain(value: object) -> bool:
    if type(value) is list:
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str, bytes)


def test_an_encoder_input_travels_without_pickle() -> None:
    assert plain(packed_input(EncoderInput("key", (3, 1), media=(Media("image", b"12", "a"),))))


def test_a_token_travels_without_pickle() -> None:
    assert plain(packed_message(True, STATS, HandoffTotals(), [list(Delta("a", [5], queued_s=0.5))]))
