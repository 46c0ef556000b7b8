"""The policies' arithmetic, and that Serve accepts them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from tandem.cluster.config import ServeConfig
from tandem.cluster.replicas.autoscaling import (
    DecoderPolicy,
    EncoderPolicy,
    decoder_autoscaling,
    encoder_autoscaling,
)


def context(replicas: int, **metrics: list[float]) -> Any:
    by_replica = {name: dict(enumerate(values)) for name, values in metrics.items()}
    return SimpleNamespace(target_num_replicas=replicas, aggregated_metrics=by_replica)


@pytest.mark.parametrize(
    ("queued", "running", "wanted"),
    [
        ([0, 0], [10, 0], 1),
        ([0, 0], [0, 0], 0),  # Serve raises it to the minimum
        ([900, 1000], [500, 500], 2),  # both know the whole queue
        ([5000], [1000], 6),
    ],
)
def test_encoders_follow_the_tokens(queued: list[float], running: list[float], wanted: int) -> None:
    ctx = context(2, queued_tokens=queued, running_tokens=running)
    assert EncoderPolicy(tokens_per_replica=1000)(ctx) == (wanted, {})


@pytest.mark.parametrize(
    ("slots", "pages", "wanted"),
    [
        ([0.1, 0.1], [0.0, 0.0], 1),
        ([0.6, 0.7], [0.1, 0.1], 2),
        ([0.2, 0.2], [0.9, 0.9], 3),  # few long sequences
        ([2.1, 2.1], [0.5, 0.5], 6),  # a queue behind every slot
    ],
)
def test_decoders_follow_the_fuller_of_slots_and_pages(
    slots: list[float], pages: list[float], wanted: int
) -> None:
    assert DecoderPolicy()(context(2, slots=slots, pages=pages)) == (wanted, {})


@pytest.mark.parametrize("policy", [EncoderPolicy(1000), DecoderPolicy()])
def test_without_reports_nothing_changes(policy: EncoderPolicy | DecoderPolicy) -> None:
    assert policy(context(3)) == (3, {})


def test_a_stage_of_fixed_size_does_not_autoscale() -> None:
    config = ServeConfig(min_decoder_replicas=2, max_encoder_replicas=3)
    assert decoder_autoscaling(config) is None
    encoders = encoder_autoscaling(config)
    assert encoders is not None
    assert (encoders.min_replicas, encoders.max_replicas) == (1, 3)


def test_serve_finds_the_policies() -> None:
    config = ServeConfig(max_encoder_replicas=2, max_decoder_replicas=2, max_encoder_tokens=123)
    for autoscaling in (encoder_autoscaling(config), decoder_autoscaling(config)):
        assert isinstance(autoscaling, AutoscalingConfig)
        decide = autoscaling.policy.get_policy()(**autoscaling.policy.policy_kwargs)
        assert decide(context(2))[0] == 2
