"""Flat patches, against transformers' image processor of Pix2Struct, and how many an image takes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import hub
import numpy as np
import pytest
from huggingface_hub import constants
from pix2struct import drawing, font
from transformers.models.pix2struct.image_processing_pil_pix2struct import Pix2StructImageProcessorPil
from vision import picture, png

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.inputs import Media
from tandem.limits import Limits
from tandem.workers.models.model_folder import FONT
from tandem.workers.models.spec import FlatPatchesSpec, FrontSpec
from tandem.workers.request import EncoderInput
from tandem.workers.requests.media import prepare_input, read_processor
from tandem.workers.requests.media.flat_patches import FlatPatchesProcessor
from tandem.workers.requests.model_info import revision_of


def made(
    folder: Path, most: int = 24, patch: tuple[int, int] = (4, 6), *, header: bool = False, rows: int = 4096
) -> tuple[FlatPatchesProcessor, Any]:
    """Ours and transformers', of images that come to so many patches at most."""
    size = {"height": patch[0], "width": patch[1]}
    said: dict[str, Any] = {"max_patches": most, "patch_size": size, "is_vqa": header}
    peer = Pix2StructImageProcessorPil(**said)
    peer.save_pretrained(folder)
    spec = FrontSpec(
        kind="flat_patches", modality="image", placeholder_id=0, positions=most, varying=True, header=header,
        features=(most, 2 + 3 * patch[0] * patch[1]), flat_patches=FlatPatchesSpec(size=patch, rows=rows),
    )  # fmt: skip
    found = read_processor(folder, spec)
    assert isinstance(found, FlatPatchesProcessor)
    return found, peer


def test_any_size_is_transformers_and_counted_before_it_is_decoded(tmp_path: Path) -> None:
    """Values bit for bit; as many positions as there are patches, at every most and every patch size."""
    rng = random.Random(3)
    for most, patch in ((24, (4, 6)), (1, (16, 16)), (37, (5, 3)), (128, (16, 16)), (2048, (2, 2))):
        processor, peer = made(tmp_path, most, patch)
        sizes = [(1, 1), (1, 900), (900, 1), (2000, 3)]
        sides = [rng.randint(1, 2 ** rng.randint(1, 8)) for _ in range(80)]
        sizes += zip(sides[::2], sides[1::2], strict=True)
        for number, size in enumerate(sizes):
            media = Media("image", png(picture(number, size)))
            wanted = peer(images=picture(number, size), return_tensors="pt")
            features = processor.features(media)
            assert features.shape == processor.front.features
            assert np.array_equal(features.numpy(), wanted["flattened_patches"][0].numpy())
            assert processor.positions(media, Limits()) == wanted["attention_mask"].sum() <= most


TEXTS = [
    "What is it?", "a", "W" * 300, "i " * 200, "two\nlines\tand a tab", "\u200b", "e\u0301\u0302",
    "漢字 ﷽ 🙂", "שלום", "x" * 79 + " y", "\x00\x07", " leading", "-" * 81,
]  # fmt: skip


def test_any_question_is_drawn_as_transformers_does(tmp_path: Path) -> None:
    (tmp_path / FONT).write_bytes(font())
    processor, peer = made(tmp_path, header=True)
    sizes = [(1, 1), (30, 77), (700, 90), (300, 7), (5, 3)]
    for number, text in enumerate(TEXTS):
        image = picture(number, sizes[number % len(sizes)])
        media = Media("image", png(image), text)
        with drawing(tmp_path / FONT):
            wanted = peer(images=image, header_text=text, return_tensors="pt")
        assert np.array_equal(processor.features(media).numpy(), wanted["flattened_patches"][0].numpy())
        assert processor.positions(media, Limits()) == wanted["attention_mask"].sum()


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 65_000)])
def test_a_line_of_pixels_below_a_question_does_not_become_huge(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FONT).write_bytes(font())
    processor, _ = made(tmp_path, header=True)
    media = Media("image", png(picture(0, size)), "What is it, and why is it as long as it is?")
    monkeypatch.setattr(processor.processor, "render_header", None)  # not reached
    with pytest.raises(InvalidRequest, match=r"is too long for its width.*the limit is 40000000") as refused:
        processor.positions(media, Limits())
    assert refused.value.field == "multi_modal_data.image"


def test_the_question_counts_as_part_of_the_image(tmp_path: Path) -> None:
    (tmp_path / FONT).write_bytes(font())
    processor, _ = made(tmp_path, header=True)
    media = Media("image", png(picture(0, (30, 40))), "W" * 60)
    width, height = processor.image(media).size
    assert width > 30
    assert processor.positions(media, Limits(image_pixels=width * height))
    with pytest.raises(InvalidRequest, match=f"= {width * height} pixels, the limit is"):
        processor.positions(media, Limits(image_pixels=width * height - 1))


def test_limits_hold_before_anything_is_decoded(tmp_path: Path) -> None:
    processor, _ = made(tmp_path, rows=25)
    tall = Media("image", png(picture(0, (1, 300))))
    assert processor.positions(tall, Limits()) == 24
    with pytest.raises(InvalidRequest, match="300 pixels, the limit is 299"):
        processor.positions(tall, Limits(image_pixels=299))
    narrow, _ = made(tmp_path, rows=24)
    with pytest.raises(InvalidRequest, match=r"1 x 24 patches, and the model 23 in a row or a column"):
        narrow.positions(tall, Limits())
    assert narrow.positions(Media("image", png(picture(0))), Limits()) == 16


def test_equal_images_with_other_questions_are_other_items(tmp_path: Path) -> None:
    processor, _ = made(tmp_path)
    image = png(picture(0))
    asked = [("", ""), ("a", ""), ("b", ""), ("ab", ""), ("", "a")]
    keys = set()
    for text, owner in asked:
        media = (Media("image", image, text),)
        keys.add(prepare_input(EncoderInput("", (0,), media=media, owner=owner), processor).media_keys)
    assert len(keys) == len(asked)


def test_without_a_font_questions_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match=rf"put {FONT} into it, that of the hub's ybelkada/fonts"):
        made(tmp_path, header=True)
    (tmp_path / FONT).write_bytes(b"no font")
    with pytest.raises(ModelLoadError, match=f"put {FONT} into it"):
        made(tmp_path, header=True)
    made(tmp_path)  # nothing is drawn


def test_the_hubs_font_is_transformers(tmp_path: Path) -> None:
    """It is fetched once."""
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    (fonts / FONT).write_bytes(font())
    with hub.running(tmp_path / "cache") as running:
        running.add("ybelkada/fonts", fonts, **{"README.md": b"Fonts"})
        media = Media("image", png(picture(1)), "What?")
        found = made(tmp_path, header=True)[0].features(media)
        assert running.fetched == {FONT}
        running.status = 503
        again = made(tmp_path, header=True)[0].features(media)
        (tmp_path / FONT).write_bytes(font())
        assert np.array_equal(found, again)
        assert np.array_equal(found, made(tmp_path, header=True)[0].features(media))


def test_the_font_is_part_of_a_models_revision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = revision_of(tmp_path)
    (tmp_path / FONT).write_bytes(font())
    assert revision_of(tmp_path) != before
