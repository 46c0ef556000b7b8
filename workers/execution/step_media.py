"""The features of media that a step's encoder inputs bring, on rank 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from tandem.workers.execution.packet import by_length
from tandem.workers.request import EncoderInput
from tandem.workers.scheduling.plan import Admission, StepPlan


class StepMedia(NamedTuple):
    """For each input that has some, float32 [items, *FrontSpec.features] on the CPU, in the packet's order.

    They are no integers, so they do not travel in the packet: it has the items' keys, by which every rank
    knows which of them rank 0 broadcasts (`front_cache.FrontCache`).
    """

    admitted: Sequence[torch.Tensor] = ()  # for `Packet.admission_tokens`
    overlapped: Sequence[torch.Tensor] = ()  # for `Packet.overlapped_tokens`

    @classmethod
    def of(cls, plan: StepPlan) -> StepMedia:
        here = [one for one in plan.admissions if not one.overlapped and one.request.encoder.hidden is None]
        return cls(_features(here), _features(plan.overlapped))


NO_MEDIA = StepMedia()


def features_of(inputs: Iterable[EncoderInput]) -> list[torch.Tensor]:
    """The features of those inputs that have some, in order."""
    return [one.features for one in inputs if one.features is not None]


def _features(admissions: Iterable[Admission]) -> list[torch.Tensor]:
    return features_of(admission.request.encoder for admission in by_length(admissions))
