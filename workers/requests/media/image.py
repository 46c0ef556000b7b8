"""Images: an item of a request to the pixel values its encoder reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.inputs import Media
from tandem.limits import Limits
from tandem.workers.models.spec import FrontSpec
from tandem.workers.requests.media.image_file import FIELD, image_size, read_image

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_PROBE: Final = (53, 37)  # width and height of an image that is no model's size
# Pixels of an image that is resized by its shorter edge. Its longer edge grows with it: one row of pixels
# would become a large square for each.
_MOST_RESIZED: Final = 2**26


class ImageProcessor:
    """transformers' image processor of a checkpoint, in the edition that uses Pillow: its pixel values are
    the same on every machine.

    Its methods may be called from several threads at once.
    """

    def __init__(self, processor: Any, front: FrontSpec) -> None:
        """Raises ModelLoadError where the processor does not make what the encoder reads."""
        from PIL import Image

        self.processor, self.front = processor, front
        self._table = _table(processor, front.features[0])
        made = self.values(Image.new("RGB", _PROBE))
        if made.shape != front.features:
            raise ModelLoadError(
                f"its image processor makes pixel values {list(made.shape)}, its encoder reads "
                f"{list(front.features)}",
                field="model",
            )

    @classmethod
    def read(cls, folder: Path, front: FrontSpec) -> Self:
        """The processor that preprocessor_config.json or processor_config.json describes. Raises
        ModelLoadError."""
        return cls(read_pil_processor(folder), front)

    def positions(self, media: Media, limits: Limits) -> int:
        """Encoder positions of an item, from its header alone. Raises InvalidRequest."""
        image_size(media.data, limits.image_pixels)
        return self.front.positions

    def features(self, media: Media) -> torch.Tensor:
        """float32 [channels, height, width]. Raises InvalidRequest for what cannot be decoded."""
        import torch

        image = self.image(media)
        try:
            return torch.from_numpy(self.values(image))
        except InvalidRequest:
            raise
        except ValueError as error:  # a processor that resizes in two steps may leave no pixel between them
            width, height = image.size
            raise InvalidRequest(
                f"of {width} x {height} pixels cannot be resized to what the model reads: {error}",
                field=FIELD,
            ) from None

    def image(self, media: Media) -> Image:
        """The item's image as RGB. Raises InvalidRequest for what cannot be decoded."""
        return read_image(media.data)

    def values(self, image: Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Pixel values of an RGB image, float32 [channels, height, width]."""
        if self._table is None:
            return np.ascontiguousarray(_values(self.processor, image), dtype=np.float32)
        levels = _values(self.processor, image, do_rescale=False, do_normalize=False)
        made = np.empty(levels.shape, np.float32)
        for of_levels, channel, out in zip(self._table, levels, made, strict=True):
            np.take(
                of_levels, channel, out=out, mode="clip"
            )  # the default mode would write to a copy of `out`
        return made


def _values(processor: Any, image: Image, **options: bool) -> np.ndarray[Any, Any]:
    """[channels, height, width]"""
    made: np.ndarray[Any, Any] = processor(images=image, return_tensors="np", **options)["pixel_values"][0]
    return made


def _table(processor: Any, channels: int) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """What the processor makes of each of the 256 levels, float32 [channels, 256]: looking a pixel up takes a
    fraction of the time of scaling it. None for a processor whose last steps are others than that."""
    from PIL import Image
    from transformers.image_processing_backends import PilBackend

    if type(processor)._preprocess is not PilBackend._preprocess or channels != 3:
        return None
    resized = _values(processor, Image.new("RGB", _PROBE), do_rescale=False, do_normalize=False)
    if resized.dtype != np.uint8 or getattr(processor, "do_pad", None):
        return None
    levels = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(np.stack([levels] * channels, axis=1)[None])
    made = _values(processor, image, do_resize=False, do_center_crop=False)
    return np.ascontiguousarray(made[:, 0], dtype=np.float32)


def read_pil_processor(folder: Path) -> Any:
    """The checkpoint's image processor, in transformers' edition for Pillow. Raises ModelLoadError."""
    # transformers itself has it for those with torchvision, until a later version than bench/gpu.py's oldest.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from_pretrained: Any = AutoImageProcessor.from_pretrained
    try:
        made = from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ModelLoadError(
            f"{folder} has no image processor that can be read: {error}", field="model"
        ) from None
    if getattr(made, "backend", None) != "pil":
        raise ModelLoadError(
            f"transformers has no edition of {type(made).__name__} for Pillow: not supported", field="model"
        )
    made.resize = _bounded(made)
    return made


def _bounded(processor: Any) -> Callable[..., Any]:
    """The processor's `resize`, which refuses what would become too large."""
    from transformers.models.nougat.image_processing_pil_nougat import NougatImageProcessorPil

    resize = processor.resize
    by_either = isinstance(processor, NougatImageProcessorPil)  # its sizes do not say which edge counts

    def bounded(image: Any, size: Any, *further: Any, **options: Any) -> Any:
        edge = min(size.height, size.width) if by_either else size.shortest_edge
        if edge and not size.longest_edge:
            short, long = sorted(image.shape[1:])
            if (pixels := edge**2 * long // short) > _MOST_RESIZED:
                raise InvalidRequest(
                    f"is too long for its width: with a shorter edge of {edge} pixels it has {pixels}, "
                    f"the limit is {_MOST_RESIZED}",
                    field=FIELD,
                )
        return resize(image, size, *further, **options)

    return bounded
