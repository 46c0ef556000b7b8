"""Media in encoder inputs: what a request's items come to, in the ingress and on the worker that encodes.

Bytes travel. In the ingress a processor reads an item's header, to know how many encoder positions it takes;
the worker that encodes it decodes it and makes the features that the stack's front reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from struct import unpack
from typing import TYPE_CHECKING, Final, Protocol

from tandem.errors import InvalidRequest, RequestTooLarge, renaming_fields
from tandem.inputs import Media, Modality
from tandem.limits import Limits
from tandem.workers.models.spec import FrontSpec
from tandem.workers.request import EncoderInput, MediaKey
from tandem.workers.requests.media.audio import AudioProcessor
from tandem.workers.requests.media.flat_patches import FlatPatchesProcessor
from tandem.workers.requests.media.image import ImageProcessor
from tandem.workers.requests.media.tiled_image import TiledImageProcessor

if TYPE_CHECKING:
    import torch

__all__ = ["MediaProcessor", "check_items", "naming_item", "own_positions", "prepare_input", "read_processor"]


class MediaProcessor(Protocol):
    """One model's way with one modality. Its methods may be called from several threads at once."""

    def positions(self, media: Media, limits: Limits) -> int:
        """Encoder positions of an item, from its header: nothing is decoded. Raises InvalidRequest."""

    def features(self, media: Media) -> torch.Tensor:
        """float32 `FrontSpec.features`, on the CPU. Raises InvalidRequest for what cannot be decoded."""


# By `FrontSpec.kind`: what makes the features that this front reads.
_KINDS: Final[dict[str, Callable[[Path, FrontSpec], MediaProcessor]]] = {
    "audio_convolutions": AudioProcessor.read,
    "image_patches": ImageProcessor.read,
    "flat_patches": FlatPatchesProcessor.read,
    "beit": ImageProcessor.read,
    "swin": ImageProcessor.read,
    "davit": ImageProcessor.read,
    "siglip": ImageProcessor.read,
    "tiled_vision": TiledImageProcessor.read,
}


def read_processor(folder: Path, front: FrontSpec | None) -> MediaProcessor | None:
    """The processor in a model's folder; None for a model of text. Raises ModelLoadError."""
    return None if front is None else _KINDS[front.kind](folder, front)


@contextmanager
def naming_item(modality: Modality, number: int, items: int) -> Iterator[None]:
    """Adds to an error's field which of several items is at fault; `number` counts from 0."""
    field = f"multi_modal_data.{modality}"
    with renaming_fields({field: f"{field}.{number}"} if items > 1 else {}):
        yield


def check_items(media: Sequence[Media], limits: Limits, field: str) -> None:
    """Checks the number and the bytes of a request's items, which errors call `field`.

    Raises InvalidRequest and RequestTooLarge, naming the one of several that is at fault.
    """

    def check_size(size: int, name: str) -> None:
        if size > limits.media_bytes:
            raise RequestTooLarge(f"has {size} bytes, the limit is {limits.media_bytes}", field=name)

    if len(media) > limits.media_items:
        raise InvalidRequest(f"at most {limits.media_items} items, got {len(media)}", field=field)
    for number, one in enumerate(media):
        name = f"{field}.{number}" if len(media) > 1 else field
        if not one.data:
            raise InvalidRequest("has no bytes", field=name)
        check_size(len(one.data), name)
    check_size(sum(len(one.data) for one in media), field)


def own_positions(processor: MediaProcessor, media: Media, limits: Limits) -> int:
    """An item's encoder positions without its padding. Raises InvalidRequest."""
    if isinstance(processor, TiledImageProcessor):
        return processor.own_positions(media, limits)
    return processor.positions(media, limits)


def prepare_input(encoder: EncoderInput, processor: MediaProcessor | None) -> EncoderInput:
    """The input with features in its media's place, for the engine or encoder that encodes it. It takes
    milliseconds of CPU time for an item: not for an event loop or a step. Raises InvalidRequest."""
    if not encoder.media or encoder.hidden is not None:
        return encoder
    import torch

    assert processor is not None, "the validator lets media through for models that take them"
    features = []
    for number, item in enumerate(encoder.media):
        with naming_item(item.modality, number, len(encoder.media)):
            features.append(processor.features(item))
    keys = tuple(_key(item, encoder.owner) for item in encoder.media)
    return replace(encoder, features=torch.stack(features), media_keys=keys, media=())


def _key(item: Media, owner: str) -> MediaKey:
    digest = blake2b(f"{len(owner)}/{owner}".encode(), digest_size=16)
    digest.update(f"/{len(item.header_text)}/{item.header_text}".encode())
    digest.update(item.data)
    high, low = unpack("<qq", digest.digest())
    return high, low
