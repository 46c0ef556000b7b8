"""Images as flat patches, as Pix2Struct reads them: below a question, where it answers questions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.inputs import Media
from tandem.limits import Limits
from tandem.workers.models.hub import Repository
from tandem.workers.models.model_folder import FONT
from tandem.workers.models.spec import FlatPatchesSpec, FrontSpec
from tandem.workers.requests.media.image import ImageProcessor, read_pil_processor
from tandem.workers.requests.media.image_file import FIELD, image_size

if TYPE_CHECKING:
    from PIL.Image import Image

_FONTS: Final = "ybelkada/fonts"  # the hub's repository from which transformers has the font


class FlatPatchesProcessor(ImageProcessor):
    """transformers' image processor of Pix2Struct: an image is scaled, its shape kept, to as many patches as
    fit into a number."""

    def __init__(self, processor: Any, front: FrontSpec, font: bytes | None = None) -> None:
        """font: a TrueType file, with which texts are drawn above images; None: there are none."""
        assert front.header == (font is not None)
        self._font = font
        super().__init__(processor, front)

    @classmethod
    def read(cls, folder: Path, front: FrontSpec) -> Self:
        """As `ImageProcessor.read`. Raises ModelLoadError, also where a font is needed and not there."""
        return cls(read_pil_processor(folder), front, _font(folder) if front.header else None)

    def positions(self, media: Media, limits: Limits) -> int:
        """Encoder positions of an item, from its file's header and its text. Raises InvalidRequest."""
        size = image_size(media.data, limits.image_pixels)
        if self._font is not None:
            size = self._with_text(size, media.header_text, limits.image_pixels)
        rows, columns = self._grid(*size)
        if max(rows, columns) >= self._spec.rows:
            raise InvalidRequest(
                f"is too long for its width: it has {columns} x {rows} patches, and the model "
                f"{self._spec.rows - 1} in a row or a column at most",
                field=FIELD,
            )
        return rows * columns

    def image(self, media: Media) -> Image:
        """The item's image as RGB, below its text; `positions` has admitted both. Raises InvalidRequest."""
        image = super().image(media)
        if self._font is None:
            return image
        from PIL import Image as Pillow

        pixels = np.moveaxis(np.asarray(image), -1, 0)
        drawn = self.processor.render_header(pixels, media.header_text, font_bytes=self._font)
        return Pillow.fromarray(np.ascontiguousarray(np.moveaxis(drawn, 0, -1)))

    def values(self, image: Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """An RGB image's patches, float32 [patches, 2 + values]: row and column, from 1 on, and the pixel
        values of each; after them zeros, up to the most patches."""
        made = self.processor(images=image, is_vqa=False, return_tensors="np")["flattened_patches"][0]
        return np.ascontiguousarray(made, dtype=np.float32)

    def _with_text(self, size: tuple[int, int], text: str, most_pixels: int) -> tuple[int, int]:
        """Width and height of an image of this size below a text, as `render_header` makes it: both equally
        wide, so a narrow image grows. Raises InvalidRequest."""
        from transformers.models.pix2struct.image_processing_pil_pix2struct import render_text

        try:
            above = render_text(text, font_bytes=self._font).size
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"the text above it cannot be drawn: {error}", field=FIELD) from None
        width = max(above[0], size[0])
        height = sum(int(one[1] * (width / one[0])) for one in (above, size))
        if width * height > most_pixels:
            raise InvalidRequest(
                f"is too long for its width: with the text above, and both equally wide, it has {width} x "
                f"{height} = {width * height} pixels, the limit is {most_pixels}",
                field=FIELD,
            )
        return width, height

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of patches, as `extract_flattened_patches` counts them."""
        (patch_height, patch_width), most = self._spec.size, self.front.positions
        scale = (most * (patch_height / height) * (patch_width / width)) ** 0.5
        rows = max(min(int(scale * height / patch_height), most), 1)
        return rows, max(min(int(scale * width / patch_width), most), 1)

    @property
    def _spec(self) -> FlatPatchesSpec:
        assert self.front.flat_patches is not None
        return self.front.flat_patches


def _font(folder: Path) -> bytes:
    """The font that texts are drawn with: the folder's own, or transformers'. Raises ModelLoadError."""
    from PIL import ImageFont

    path = folder / FONT
    try:
        if not path.is_file():
            path = Repository(_FONTS).fetch() / FONT
        data = path.read_bytes()
        ImageFont.truetype(io.BytesIO(data))
    except (ModelLoadError, OSError) as error:
        raise ModelLoadError(
            f"{folder} is of a model whose questions are drawn above the image, and a font is not there: put "
            f"{FONT} into it, that of the hub's {_FONTS}, which transformers takes and the models have seen, "
            f"or another TrueType font of this name, with which answers may differ ({error})",
            field="model",
        ) from None
    return data
