"""Pictures of lines: one line of text each, and where its characters are."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from fonts import Face, font
from PIL import Image, ImageDraw, ImageFilter
from transformers import DonutImageProcessorPil

HEIGHT: Final = 32  # pixels of what the encoder takes
WIDTH: Final = 512
_SIZES: Final = tuple(range(14, 50, 2))  # pixels of an em


@dataclass(frozen=True)
class Line:
    image: Image.Image  # RGB
    text: str
    edges: list[float]  # where each character begins, and the last one's end, in pixels from the left

    def placed(self) -> list[float]:
        """The edges in the encoder's pixels."""
        left, width = place(*self.image.size)
        return [left + edge * width / self.image.width for edge in self.edges]


def image_processor() -> DonutImageProcessorPil:
    """Fits a picture into HEIGHT and WIDTH as it is, not squeezed, in the middle of black."""
    return DonutImageProcessorPil(
        size={"height": HEIGHT, "width": WIDTH}, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        resample=Image.Resampling.BILINEAR,
    )  # fmt: skip


def place(width: int, height: int) -> tuple[int, int]:
    """Left edge and width that the image processor gives a picture of such a width and height."""
    if width >= height:
        fitted = min(WIDTH, int(HEIGHT * width / height))
    else:
        fitted = int(HEIGHT * HEIGHT / int(HEIGHT * height / width))
    return (WIDTH - fitted) // 2, fitted


def render(text: str, face: Face, rng: random.Random, *, noisy: bool) -> Line:
    """A picture of a line in a font: of any size, upright or slanted, in any colours that differ enough.

    noisy: turned a little, blurred, grainy, unevenly lit, or compressed, too.
    """
    size = rng.choice(_SIZES)
    face_font = font(face, size)
    begins = [0.0]
    for one, following in zip(text, [*text[1:], ""], strict=True):  # which may be nearer than its width
        begins.append(begins[-1] + face_font.getlength(one + following) - face_font.getlength(following))
    left, top, right, bottom = face_font.getbbox(text)
    if rng.random() < 0.7:  # the height of the font, not of these characters
        ascent, descent = face_font.getmetrics()
        top, bottom = min(top, 0), max(bottom, ascent + descent)
    slant = rng.uniform(-0.1, 0.3) if rng.random() < 0.3 else 0.0
    turn = rng.gauss(0, 0.008) if noisy else 0.0
    stretch = rng.uniform(0.85, 1.2) if rng.random() < 0.5 else 1.0
    # What lies outside is cut off by neither.
    side = abs(slant) * (bottom - top) / 2 + rng.uniform(0.02, 0.5) * size
    above = abs(turn) * (right - left) / 2 + rng.uniform(0.0, 0.25) * size
    width = max(8, round((right - min(left, 0) + 2 * side) * stretch))
    height = max(8, round(bottom - top + 2 * above))
    drawn = Image.new("L", (round(width / stretch), height))
    x = side - min(left, 0)
    ImageDraw.Draw(drawn).text((x, above - top), text, fill=255, font=face_font)
    # Where each pixel of the result comes from.
    affine = (
        1 / stretch, slant, -slant * height / 2,
        turn / stretch, 1.0, -turn * width / stretch / 2,
    )  # fmt: skip
    if slant or turn or stretch != 1.0:
        drawn = drawn.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    if noisy and rng.random() < 0.5:
        drawn = drawn.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.05) * size))
    colored = _colored(np.asarray(drawn, np.float32) / 255, rng, noisy=noisy)
    image = Image.fromarray(colored)
    if noisy and rng.random() < 0.3:
        image = _compressed(image, rng.randint(15, 80))
    return Line(image, text, [(x + begin) * stretch for begin in begins])


def _colored(ink: npt.NDArray[np.float32], rng: random.Random, *, noisy: bool) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3] from the share of ink in each pixel."""
    height, width = ink.shape
    dark, light = rng.uniform(0, 90), rng.uniform(200, 255)
    if noisy:
        middle, half = rng.uniform(70, 185), rng.uniform(45, 127)
        dark, light = max(0.0, middle - half), min(255.0, middle + half)
    if rng.random() < 0.15:
        dark, light = light, dark
    tint = 25 if rng.random() < 0.4 else 0
    texts, paper = ([base + rng.uniform(-tint, tint) for _ in range(3)] for base in (dark, light))
    made = ink[..., None] * (np.float32(texts) - np.float32(paper)) + np.float32(paper)
    if noisy:
        generator = np.random.default_rng(rng.getrandbits(32))
        if rng.random() < 0.4:  # light from one side
            made += np.linspace(-1, 1, width, dtype=np.float32)[:, None] * rng.uniform(-25, 25)
        if rng.random() < 0.7:
            grain = generator.standard_normal((height, width, 1), np.float32)
            made += grain * rng.uniform(0, 0.12) * abs(light - dark)
    return made.clip(0, 255).astype(np.uint8)


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
