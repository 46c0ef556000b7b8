"""Image files to pixels. Pillow decodes; its wheel brings the libraries."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tandem.errors import InvalidRequest

FIELD: Final = "multi_modal_data.image"
# What is opened. Pillow knows dozens of formats more; of PostScript it would run a program.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_ON_THE_SIDE: Final = (5, 6, 7, 8)  # EXIF's orientations that exchange width and height
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def image_size(data: bytes, most_pixels: int) -> tuple[int, int]:
    """Width and height of what `read_image` gives, from the file's header and EXIF: nothing is decoded.
    Raises InvalidRequest where it is no image or has too many pixels."""
    with _opened(_without_pixels(data), most_pixels) as image:
        width, height = image.size
        if image.format == "TIFF":  # its size is the upright one
            return width, height
        # That of PngImageFile decodes the image, in case EXIF comes after it.
        exif = Image.Image.getexif(image)
        return (height, width) if exif.get(ExifTags.Base.Orientation) in _ON_THE_SIDE else (width, height)


def read_image(data: bytes) -> Image.Image:
    """The image as RGB, upright as its EXIF says; of an animation the first picture. It is what transformers'
    `load_image` makes of the file.

    It takes memory for as many pixels as the header says, which `image_size` checks. Raises InvalidRequest
    for what is no image of the formats that are read, is damaged or incomplete.
    """
    with _opened(data, None) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def _opened(data: bytes, most_pixels: int | None) -> Iterator[Image.Image]:
    try:
        if (size := _webp_size(data)) is not None:  # opening one takes memory for two pictures
            _check_size(*size, most_pixels)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(*image.size, most_pixels)
            yield image
    except InvalidRequest:
        raise
    except UnidentifiedImageError:
        raise InvalidRequest(
            f"is no image of a format that is read: {', '.join(_FORMATS)}", field=FIELD
        ) from None
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise InvalidRequest(f"cannot be decoded as an image: {error}", field=FIELD) from None


def _check_size(width: int, height: int, most_pixels: int | None) -> None:
    if most_pixels is not None and width * height > most_pixels:
        raise InvalidRequest(
            f"has {width} x {height} = {width * height} pixels, the limit is {most_pixels}", field=FIELD
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a WebP file; None for any other file."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return tuple(int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))  # type: ignore[return-value]


def _without_pixels(data: bytes) -> bytes:
    """A PNG file with one chunk of pixels, after all other chunks, so that EXIF is found wherever it is; any
    other file as it is."""
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept, end, at = [_PNG_SIGNATURE], b"", len(_PNG_SIGNATURE)
    while at < len(data):
        chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]  # length, type, content, CRC
        match chunk[4:8]:
            case b"IDAT":
                end = end or chunk
            case b"acTL" | b"fcTL" | b"fdAT":  # an animation's
                pass
            case b"IEND":
                break
            case _:
                kept.append(chunk)
        at += len(chunk)
    return b"".join([*kept, end])
