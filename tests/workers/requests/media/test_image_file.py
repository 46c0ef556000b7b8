"""What clients send as images, against transformers' `load_image`: every format, and what is none."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from transformers.image_utils import load_image

from tandem.errors import InvalidRequest
from tandem.inputs import split_prompt
from tandem.workers.requests.media.image_file import image_size, read_image

PIXELS = 50_000_000


def picture(mode: str = "RGB", size: tuple[int, int] = (23, 14)) -> Image.Image:
    """An image of this mode with many values, alpha and palette entries among them."""
    width, height = size
    rng = np.random.default_rng(len(mode) + width)
    match mode:
        case "I;16":
            return Image.fromarray(rng.integers(0, 2**16, (height, width), np.uint16))
        case "I":
            return Image.fromarray(rng.integers(-70_000, 70_000, (height, width), np.int32))
        case "F":
            return Image.fromarray(rng.normal(100, 100, (height, width)).astype(np.float32))
        case "P":
            return picture("RGB", size).quantize(17)
        case "1":
            return picture("L", size).convert("1")
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = rng.integers(0, 256, (height, width, channels), np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def loaded(data: bytes, folder: Path) -> Image.Image:
    path = folder / "image"
    path.write_bytes(data)
    return load_image(str(path))


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def animated(kind: str) -> bytes:
    frames = [picture(size=(30, 20)), Image.new("RGB", (30, 20), "red"), picture("RGB", (30, 20)).rotate(90)]
    return file(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def exif_after_the_pixels() -> bytes:
    """A PNG file whose eXIf chunk comes last, as some cameras' software writes it."""
    data = file(picture(), "PNG")
    content = b"eXIf" + exif(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return data[:-12] + chunk + data[-12:]


FILES = {
    **{f"png-{mode}": (picture(mode), "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "png-transparent-colour": (picture("P"), "PNG", {"transparency": 3}),
    **{f"jpeg-{mode}": (picture(mode), "JPEG", {}) for mode in ("L", "RGB", "CMYK", "YCbCr")},
    "jpeg-progressive": (picture(), "JPEG", {"progressive": True}),
    **{f"webp-{mode}": (picture(mode), "WEBP", {}) for mode in ("RGB", "RGBA")},
    "webp-lossless": (picture("RGBA"), "WEBP", {"lossless": True}),
    **{f"gif-{mode}": (picture(mode), "GIF", {}) for mode in ("L", "P", "RGBA")},
    **{f"bmp-{mode}": (picture(mode), "BMP", {}) for mode in ("1", "L", "P", "RGB", "RGBA")},
    **{
        f"tiff-{mode}": (picture(mode), "TIFF", {})
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "I;16", "F")
    },
    "tiff-lzw": (picture(), "TIFF", {"compression": "tiff_lzw"}),
    "tiff-g4": (picture("1"), "TIFF", {"compression": "group4"}),
    "one-pixel": (picture(size=(1, 1)), "PNG", {}),
    "one-row": (picture(size=(301, 1)), "JPEG", {}),
}


@pytest.mark.parametrize("name", FILES)
def test_any_format_and_mode_is_what_transformers_makes_of_it(name: str, tmp_path: Path) -> None:
    image, kind, options = FILES[name]
    data = file(image, kind, **options)
    made, wanted = read_image(data), loaded(data, tmp_path)
    assert made.mode == "RGB"
    assert np.array_equal(np.asarray(made), np.asarray(wanted))
    assert image_size(data, PIXELS) == wanted.size == image.size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(kind: str, orientation: int, tmp_path: Path) -> None:
    data = file(picture(), kind, exif=exif(orientation))
    made, wanted = read_image(data), loaded(data, tmp_path)
    assert np.array_equal(np.asarray(made), np.asarray(wanted))
    assert image_size(data, PIXELS) == wanted.size == ((23, 14) if orientation < 5 else (14, 23))


def test_exif_after_the_pixels_counts(tmp_path: Path) -> None:
    data = exif_after_the_pixels()
    assert image_size(data, PIXELS) == read_image(data).size == loaded(data, tmp_path).size == (14, 23)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_picture_is_read(kind: str, tmp_path: Path) -> None:
    data = animated(kind)
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(loaded(data, tmp_path)))
    assert image_size(data, PIXELS) == (30, 20)


def huge_png(width: int, height: int, rows: int = 0) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + 3 * width) * rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def huge_webp(width: int, height: int, kind: bytes) -> bytes:
    small = {"VP8X": picture("RGBA"), "VP8L": picture(), "VP8 ": picture()}[kind.decode()]
    data = bytearray(file(small, "WEBP", lossless=kind == b"VP8L"))
    assert data[12:16] == kind
    match kind:
        case b"VP8X":
            data[24:27], data[27:30] = (width - 1).to_bytes(3, "little"), (height - 1).to_bytes(3, "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little") & ~0xFFFFFFF | (height - 1) << 14 | (width - 1)
            data[21:25] = bits.to_bytes(4, "little")
        case _:
            data[26:30] = struct.pack("<HH", width, height)
    return bytes(data)


def huge_gif(width: int, height: int) -> bytes:
    """Its screen is small; the first picture is not."""
    data = bytearray(file(picture("L"), "GIF"))
    at = data.index(b",", 13 + 3 * (2 << (data[10] & 7)))
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        huge_png(8_000, 8_000, rows=8_000),
        huge_png(2**31 - 1, 2**31 - 1),
        huge_webp(16_000, 16_000, b"VP8X"),
        huge_webp(16_000, 16_000, b"VP8L"),
        huge_webp(16_000, 16_000, b"VP8 "),
        huge_gif(60_000, 60_000),
        huge_gif(9_000, 9_000),
        file(picture(), "BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + file(picture(), "BMP")[26:],
    ],
    ids=["png", "largest-png", "webp-x", "webp-lossless", "webp", "largest-gif", "gif", "bmp"],
)
def test_a_bomb_is_refused_by_its_header(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="pixels") as refused:
        image_size(data, PIXELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.field == "multi_modal_data.image"
    assert peak < 2**20 + 2 * len(data)


def test_the_limit_of_pixels_is_inclusive() -> None:
    data = file(picture(size=(20, 10)), "PNG")
    assert image_size(data, 200) == (20, 10)
    with pytest.raises(InvalidRequest, match=r"has 20 x 10 = 200 pixels, the limit is 199$"):
        image_size(data, 199)


def tag_bomb(tags: int, size: int) -> bytes:
    """A TIFF file whose tags all point to the same bytes; with it an image."""
    names = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    names += [(278, 3, 1, 4), (279, 4, 1, 16), *((40_000 + n, 1, size, 24) for n in range(tags))]
    entries = b"".join(struct.pack("<HHLL", *entry) for entry in names)
    at = 24 + size
    return (
        b"II*\0"
        + struct.pack("<L", at)
        + bytes(16 + size)
        + struct.pack("<H", len(names))
        + entries
        + bytes(4)
    )


def exif_bomb(tags: int, size: int) -> bytes:
    content = b"eXIf" + tag_bomb(tags, size)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    data = file(picture(), "PNG")
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("make", [tag_bomb, exif_bomb])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of each tag
def test_tags_that_point_to_the_same_bytes_are_not_copied_each(make: Callable[[int, int], bytes]) -> None:
    data = make(100, 2**20)
    tracemalloc.start()
    assert read_image(data).size == image_size(data, PIXELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20


def text_bomb() -> bytes:
    content = b"zTXtnote\0\0" + zlib.compress(bytes(2**26))
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    data = file(picture(), "PNG")
    return data[:33] + chunk + data[33:]


CODE = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n/x (a) def\nshowpage\n"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no image of a format that is read: PNG, JPEG, WEBP, GIF, BMP, TIFF"),
        (b"no image", "no image of a format"),
        (CODE, "no image of a format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a format"),
        (file(picture("RGB", (16, 16)), "ICO"), "no image of a format"),
        (file(picture(), "PPM"), "no image of a format"),
        (file(picture(), "PNG")[:20], "cannot be decoded as an image"),
        (file(picture(), "PNG")[:8], "no image of a format"),
        (text_bomb(), "cannot be decoded as an image"),
    ],
    ids=["empty", "text", "postscript", "svg", "ico", "ppm", "cut-header", "signature", "text-bomb"],
)
def test_what_is_no_image_is_refused_by_its_header(data: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        image_size(data, PIXELS)
    assert refused.value.field == "multi_modal_data.image"
    with pytest.raises(InvalidRequest):
        read_image(data)


def halves(kind: str) -> bytes:
    data = file(picture(size=(200, 200)), kind)
    return data[: len(data) // 2]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_that_was_cut_off_is_refused(kind: str) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot be decoded|no image of a format") as refused:
        read_image(halves(kind))
    assert refused.value.field == "multi_modal_data.image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage that it can live with
def test_a_damaged_file_is_read_or_refused(kind: str) -> None:
    """Whatever bytes are wrong, it is one of the two, and the header has said the size."""
    whole, rng = file(picture(size=(40, 30)), kind), np.random.default_rng(5)
    read = 0
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, min(len(data), 300), 3):
            data[at] = rng.integers(256)
        with suppress(InvalidRequest):
            size = image_size(bytes(data), 10_000)
            assert read_image(bytes(data)).size == size
            read += 1
    assert read < 60


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]
)
def test_a_pillow_image_travels_as_what_transformers_makes_of_it(mode: str) -> None:
    image = picture(mode)
    image.getexif()[0x0112] = 6
    [(modality, data, _)] = media(image)
    assert modality == "image"
    assert data.startswith(b"\x89PNG")
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(load_image(image)))


def media(value: Any) -> tuple[tuple[str, bytes], ...]:
    return split_prompt({"prompt": "", "multi_modal_data": {"image": value}}).encoder.media


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3), (7, 9, 4)])
def test_an_array_travels_as_the_image_that_pillow_makes_of_it(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    [(_, data, _)] = media([array])
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(Image.fromarray(array).convert("RGB")))


def test_the_same_image_travels_as_the_same_bytes(tmp_path: Path) -> None:
    """So its encoding is found again."""
    image = picture()
    ImageDraw.Draw(image).text((1, 1), "a")
    image.info["note"] = "not seen"
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert media([image, image.copy(), np.asarray(image)])[0] == media(opened)[0]
    assert len({one.data for one in media([image, image.copy(), np.asarray(image)])}) == 1


def a_cut_off_file(folder: Path) -> Image.Image:
    path = folder / "a.png"
    path.write_bytes(halves("PNG"))
    return Image.open(path)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _: np.zeros((7, 9), np.float32), r"got float32 \[7, 9\]"),
        (lambda _: np.zeros((3, 7, 9), np.uint8), r"got uint8 \[3, 7, 9\]"),
        (lambda _: np.zeros((1, 7, 9, 3), np.uint8), r"got uint8 \[1, 7, 9, 3\]"),
        (lambda _: np.zeros((0, 9, 3), np.uint8), "has no pixels"),
        (lambda _: 5, "must be a file's bytes or path, a PIL.Image or an array, got int"),
        (a_cut_off_file, "cannot be read"),
        (lambda _: Image.new("RGB", (0, 5)), "cannot be read"),
    ],
)
def test_what_is_no_image_is_refused_by_the_client(
    make: Callable[[Path], Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        media(make(tmp_path))
    assert refused.value.field == "multi_modal_data.image"
