"""What comes before a stack: a front turns the features of media items into vectors, one an encoder position.

A front is a layer kind like any other, with weight slots. It is the same on every rank of a group: fronts are
small, and every rank needs their whole output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import torch

from tandem.workers.models.fronts.audio import AudioConvolutions
from tandem.workers.models.fronts.beit import Beit
from tandem.workers.models.fronts.flat_patches import FlatPatches
from tandem.workers.models.fronts.florence import FlorenceVision
from tandem.workers.models.fronts.patches import ImagePatches
from tandem.workers.models.fronts.siglip import Siglip
from tandem.workers.models.fronts.swin import Swin
from tandem.workers.models.fronts.tiled_vision import TiledVisionModel
from tandem.workers.models.layers import Placement, WeightSlot
from tandem.workers.models.spec import StackSpec

__all__ = ["Front", "make_front"]


class Front(Protocol):
    def slots(self) -> Iterator[WeightSlot]: ...

    def __call__(self, features: torch.Tensor, own: Sequence[int] = (), /) -> torch.Tensor:
        """[items, *FrontSpec.features], on the device → [items * FrontSpec.positions, d_model].

        own: how many positions of each item are not padding (`FrontSpec.own_positions`), for a front that
        pads; to ask the features would be to wait for the device.
        """


_KINDS: Final[dict[str, Callable[[str, StackSpec, Placement], Front]]] = {
    "audio_convolutions": AudioConvolutions,
    "davit": FlorenceVision,
    "flat_patches": FlatPatches,
    "image_patches": ImagePatches,
    "beit": Beit,
    "siglip": Siglip,
    "swin": Swin,
    "tiled_vision": TiledVisionModel,
}


def make_front(name: str, stack: StackSpec, place: Placement) -> Front | None:
    """The stack's front, whose weights are named `name.…`; None for a stack of tokens alone."""
    return None if stack.front is None else _KINDS[stack.front.kind](name, stack, place)
