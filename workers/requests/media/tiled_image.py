"""Images in tiles, as mllama reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tandem.inputs import Media
from tandem.limits import Limits
from tandem.workers.models.spec import TiledVision
from tandem.workers.requests.media.image import ImageProcessor
from tandem.workers.requests.media.image_file import image_size

if TYPE_CHECKING:
    from PIL.Image import Image


class TiledImageProcessor(ImageProcessor):
    """transformers' image processor of mllama: it chooses how many tiles, and how they lie, by the image's
    size."""

    def own_positions(self, media: Media, limits: Limits) -> int:
        """Encoder positions of an item without its padding, from its header alone. Raises InvalidRequest."""
        from transformers.models.mllama.image_processing_pil_mllama import get_optimal_tiled_canvas

        vision = self._vision
        width, height = image_size(media.data, limits.image_pixels)
        canvas = get_optimal_tiled_canvas(height, width, vision.tiles, vision.tile_size)
        return int(np.prod(canvas)) // vision.tile_size**2 * vision.tile_positions

    def values(self, image: Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """An RGB image's tiles, float32 [tiles, pixels + 1]: the pixel values of each, channels first, and
        after them the number of the image's arrangement."""
        made = self.processor(images=image, return_tensors="np")
        tiles = made["pixel_values"][0, 0]
        tiles = tiles.reshape(len(tiles), -1)
        numbers = np.full((len(tiles), 1), made["aspect_ratio_ids"][0, 0])
        return np.concatenate([tiles, numbers], axis=1, dtype=np.float32)

    @property
    def _vision(self) -> TiledVision:
        assert self.front.vision is not None
        return self.front.vision
