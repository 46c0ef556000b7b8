"""The features of media that a step's encoder inputs bring, from rank 0 to all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from tandem.workers.device import Streams
from tandem.workers.distributed import Group
from tandem.workers.execution.packet import Ints, by_length
from tandem.workers.models.spec import FrontSpec
from tandem.workers.scheduling.plan import Admission, StepPlan


class StepMedia(NamedTuple):
    """float32 [items, *FrontSpec.features] on the CPU, in the packet's order; None where there are none.

    They are no integers, so they do not travel in the packet: every rank sees from the packet's ids how many
    items there are, and rank 0 broadcasts them.
    """

    admitted: torch.Tensor | None = None  # for `Packet.admission_tokens`
    overlapped: torch.Tensor | None = None  # for `Packet.overlapped_tokens`

    @classmethod
    def of(cls, plan: StepPlan) -> StepMedia:
        here = [one for one in plan.admissions if not one.overlapped and one.request.encoder.hidden is None]
        return cls(_features(here), _features(plan.overlapped))


NO_MEDIA = StepMedia()


def share(
    token_ids: Ints, own: torch.Tensor | None, front: FrontSpec | None, device: torch.device, group: Group,
    streams: Streams,
) -> torch.Tensor | None:  # fmt: skip
    """The features for encoder inputs of these ids, on the device of every rank; None for inputs of text.

    own: rank 0's; None on the others.
    """
    items = 0 if front is None else int(front.holds_media(token_ids).sum()) // front.positions
    if front is None or not items:
        return None
    if group.rank == 0:
        assert own is not None, "features are made before a request is submitted"
        features = streams.bring(own, device, own.dtype).wait()
    else:
        features = torch.empty(items, *front.features, device=device)
    return group.broadcast(features)


def _features(admissions: Iterable[Admission]) -> torch.Tensor | None:
    inputs = (admission.request.encoder for admission in by_length(admissions))
    found = [one.features for one in inputs if one.features is not None]
    return torch.cat(found) if found else None
