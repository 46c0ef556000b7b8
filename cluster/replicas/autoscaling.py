"""How many replicas each stage needs: Serve calls these policies with what the replicas report.

Serve itself averages the reports over `look_back_period_s` and applies the delays and the bounds.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from tandem.cluster.config import ServeConfig

# The share of the decoders' slots or pages that should be in use: the rest takes up bursts while another
# replica starts.
DECODER_TARGET = 0.7

Decision = tuple[float, dict[str, Any]]  # replicas, state for the next call


class EncoderPolicy:
    """As many encoders as there are full batches in the tokens that are queued at the routers or running."""

    def __init__(self, tokens_per_replica: int) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, ctx: AutoscalingContext) -> Decision:
        running = _reports(ctx, "running_tokens")
        if not running:
            return ctx.target_num_replicas, {}
        # A router reports its whole queue to whichever replica it sends a batch to, so under load every
        # replica knows it.
        queued = max(_reports(ctx, "queued_tokens"), default=0.0)
        return math.ceil((queued + sum(running)) / self._tokens_per_replica), {}


class DecoderPolicy:
    """As many decoders as keep the fuller of slots and pages at the target. Waiting sequences count as slots,
    so the fill can exceed 1."""

    def __init__(self, target: float = DECODER_TARGET) -> None:
        self._target = target

    def __call__(self, ctx: AutoscalingContext) -> Decision:
        slots, pages = _reports(ctx, "slots"), _reports(ctx, "pages")
        if not slots:
            return ctx.target_num_replicas, {}
        # The quotient is rounded first, so that 4.2 / 0.7 is 6.
        return math.ceil(round(max(sum(slots), sum(pages)) / self._target, 6)), {}


def _reports(ctx: AutoscalingContext, name: str) -> list[float]:
    metrics = ctx.aggregated_metrics or {}
    return list(metrics.get(name, {}).values())


def encoder_autoscaling(config: ServeConfig) -> AutoscalingConfig | None:
    """None where the number of encoders is fixed."""
    kwargs = {"tokens_per_replica": config.max_encoder_tokens}
    return _autoscaling(config, config.encoder_replicas, EncoderPolicy, kwargs)


def decoder_autoscaling(config: ServeConfig) -> AutoscalingConfig | None:
    """None where the number of decoders is fixed."""
    return _autoscaling(config, config.decoder_replicas, DecoderPolicy, {})


def _autoscaling(
    config: ServeConfig, replicas: tuple[int, int], policy: type, kwargs: dict[str, Any]
) -> AutoscalingConfig | None:
    low, high = replicas
    if low == high:
        return None
    return AutoscalingConfig(
        min_replicas=low,
        max_replicas=high,
        look_back_period_s=config.look_back_s,
        upscale_delay_s=config.upscale_delay_s,
        downscale_delay_s=config.downscale_delay_s,
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function=f"{policy.__module__}:{policy.__name__}", policy_kwargs=kwargs
        ),
    )
