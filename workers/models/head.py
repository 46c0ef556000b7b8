"""Decoder output to logits and to scores of given tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch

from tandem import kernels
from tandem.kernels.token_scores import banned
from tandem.workers.models.batch import Targets
from tandem.workers.models.layers import (
    Placement,
    Replicated,
    Vocabulary,
    VocabularyBias,
    WeightSlot,
    stack_norm,
    weights_of,
)
from tandem.workers.models.spec import ModelSpec

# Rows of logits that scoring holds at a time: with a large vocabulary they take far more memory than the
# rest of a step.
_SCORED_AT_ONCE: Final = 256


class TargetScores(NamedTuple):
    """Scores of T tokens under the model's own distribution, or among some ids; ranks and top where
    `Targets.top` asks for them."""

    logprobs: torch.Tensor  # float32 [T]
    ranks: torch.Tensor | None = None  # int64 [T]: 1 for the likeliest
    top: torch.Tensor | None = None  # float32 [T, k]: the likeliest tokens' log-probabilities
    top_ids: torch.Tensor | None = None  # int64 [T, k]
    # For each aligned target that the step completes, float32 [positions, encoder positions]: how much each
    # attends to each. The runner sets it.
    attention: Sequence[torch.Tensor] = ()


class Head:
    """The output projection, and what some models do before and after it."""

    def __init__(self, spec: ModelSpec, embedding: Vocabulary, tied: bool, place: Placement) -> None:
        """tied: the output projection is the decoder's `embedding`."""
        stack = spec.decoder
        self.scale, self.softcap, self.tied = spec.logit_scale, spec.logit_softcap, tied
        self.projection = (
            embedding if tied else Vocabulary("decoder.output", spec.vocab_size, stack.d_model, place)
        )
        self.bias = (
            VocabularyBias("decoder.output.bias", spec.vocab_size, place) if spec.output_bias else None
        )
        self.transform = self.norm = None
        if spec.output_transform is not None:
            self.transform = Replicated("decoder.transform", stack.d_model, stack.d_model, place)
            self.norm = stack_norm("decoder.transform_norm", stack, place)
            self._activation = spec.output_transform

    def __call__(self, x: torch.Tensor) -> torch.Tensor | None:
        """[N, d_model] → float32 [N, vocabulary] on rank 0, None elsewhere."""
        if self.transform is not None and self.norm is not None:
            x = self.norm(kernels.activate(self.transform(x), self._activation))
        logits = self.projection.logits(kernels.scale(x, self.scale))
        return logits if logits is None else kernels.soft_capped(logits, self.softcap)

    def scores(self, x: torch.Tensor, targets: Targets) -> TargetScores | None:
        """Decoder output [N, d_model] → the targets' scores on rank 0, None elsewhere."""
        parts = []
        for start in range(0, len(targets.rows), _SCORED_AT_ONCE):
            some = slice(start, start + _SCORED_AT_ONCE)
            ids, logits = targets.ids[some], self(x[targets.rows[some]])
            if logits is not None:
                below = None if targets.below is None else targets.below[some]
                norm, own = kernels.logsumexp(logits, below), logits.gather(1, ids.unsqueeze(1))
                if below is not None:
                    own = own + banned(ids >= below).unsqueeze(1)
                part = [(own - norm).squeeze(1)]
                if targets.top >= 0:
                    if below is not None:
                        every = torch.arange(logits.shape[1], device=logits.device)
                        logits = logits.masked_fill(every >= below.unsqueeze(1), -torch.inf)
                    top, top_ids = logits.topk(targets.top, dim=1)
                    part += [(logits > own).sum(1) + 1, top - norm, top_ids]
                parts.append(part)
        if not parts:
            return None
        logprobs, *others = (torch.cat(part) for part in zip(*parts, strict=True))
        if not others:
            return TargetScores(logprobs)
        ranks, top, top_ids = others
        return TargetScores(logprobs, ranks, top, top_ids)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(None if self.tied else self.projection, self.bias, self.transform, self.norm)

    def prepare(self) -> None:
        """All weights are loaded. Most models that may have a bias have one of zeros, which is dropped."""
        if self.bias is not None and not self.bias.weight.any():
            self.bias = None
        self.projection.prepare_logits(self.bias, embeds=self.tied)
