"""Pixel values, against transformers' image processors for Pillow."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.donut.image_processing_pil_donut import DonutImageProcessorPil
from transformers.models.nougat.image_processing_pil_nougat import NougatImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.inputs import Media
from tandem.limits import Limits
from tandem.workers.models.spec import FrontSpec
from tandem.workers.requests.media import read_processor

LANDSCAPE, PORTRAIT = (61, 34), (35, 62)
SIZE = {"height": 48, "width": 32}


def front(height: int, width: int) -> FrontSpec:
    return FrontSpec(
        kind="image_patches", modality="image", placeholder_id=0, positions=7, features=(3, height, width)
    )


def picture(size: tuple[int, int]) -> bytes:
    """A page with a margin, for Nougat to crop."""
    rng, made = np.random.default_rng(size[0]), io.BytesIO()
    page = np.full((size[1], size[0], 3), 250, np.uint8)
    page[5:-7, 4:-3] = rng.integers(0, 256, page[5:-7, 4:-3].shape)
    Image.fromarray(page).save(made, "PNG")
    return made.getvalue()


PROCESSORS = [
    (ViTImageProcessorPil(size=SIZE, image_mean=[0.1, 0.2, 0.3]), (48, 32)),
    (ViTImageProcessorPil(size=SIZE, do_normalize=False), (48, 32)),
    (ViTImageProcessorPil(size=SIZE, resample=3, rescale_factor=0.01), (48, 32)),
    (DeiTImageProcessorPil(size=SIZE, crop_size={"height": 30, "width": 30}), (30, 30)),
    (BeitImageProcessorPil(size=SIZE, do_center_crop=False), (48, 32)),
    (CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 38, "width": 38}), (38, 38)),
    (DonutImageProcessorPil(size=SIZE), (48, 32)),
    (DonutImageProcessorPil(size=SIZE, do_align_long_axis=True), (48, 32)),
    (NougatImageProcessorPil(size=SIZE), (48, 32)),
]


@pytest.mark.parametrize(("peer", "made"), PROCESSORS, ids=lambda one: type(one).__name__)
def test_pixel_values_are_those_of_the_checkpoints_processor(
    peer: Any, made: tuple[int, int], tmp_path: Path
) -> None:
    peer.save_pretrained(tmp_path)
    processor = read_processor(tmp_path, front(*made))
    assert processor is not None
    for size in (LANDSCAPE, PORTRAIT):
        media = Media("image", picture(size))
        values = processor.features(media)
        wanted = peer(images=Image.open(io.BytesIO(media.data)), return_tensors="pt")["pixel_values"][0]
        assert str(values.dtype) == "torch.float32"
        assert np.array_equal(values.numpy(), wanted.float().numpy())
        assert processor.positions(media, Limits()) == 7


@pytest.mark.parametrize(
    "config",
    [
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 32},  # as older checkpoints have it
        {"image_processor_type": "ViTImageProcessorFast", "size": 32},
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    ],
)
def test_older_files_mean_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = read_processor(tmp_path, front(32, 32))
    assert processor is not None
    media = Media("image", picture(LANDSCAPE))
    peer = ViTImageProcessorPil(size={"height": 32, "width": 32})
    wanted = peer(images=Image.open(io.BytesIO(media.data)), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(processor.features(media).numpy(), wanted)


def test_an_image_with_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    ViTImageProcessorPil(size=SIZE).save_pretrained(tmp_path)
    processor = read_processor(tmp_path, front(48, 32))
    assert processor is not None
    with pytest.raises(InvalidRequest, match="has 61 x 34 = 2074 pixels, the limit is 2073"):
        processor.positions(Media("image", picture(LANDSCAPE)), Limits(image_pixels=2073))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (None, "has no image processor that can be read"),
        ("{", "has no image processor that can be read"),
        ({"image_processor_type": "NoSuchProcessor"}, "has no image processor that can be read"),
        ({"image_processor_type": "Emu3ImageProcessor"}, "has no edition of Emu3ImageProcessor for Pillow"),
        ({"image_processor_type": "ViTImageProcessor", "size": 30}, r"makes pixel values \[3, 30, 30\]"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 32}}, "makes pixel values"),
    ],
)
def test_a_folder_whose_processor_does_not_fit_is_refused(config: Any, why: str, tmp_path: Path) -> None:
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=why):
        read_processor(tmp_path, front(32, 32))


@pytest.mark.parametrize(
    "peer",
    [
        DonutImageProcessorPil(size=SIZE),
        NougatImageProcessorPil(size=SIZE, do_crop_margin=False),
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SIZE),
    ],
)
def test_a_line_of_pixels_does_not_become_a_huge_square(peer: Any, tmp_path: Path) -> None:
    peer.save_pretrained(tmp_path)
    processor = read_processor(tmp_path, front(48, 32))
    assert processor is not None
    line = Media("image", picture((100_000, 1)))
    with pytest.raises(
        InvalidRequest,
        match=r"^multi_modal_data.image: is too long .* edge of \d+ pixels it has \d+, the limit is 67108864",
    ):
        processor.features(line)


def test_an_image_that_leaves_no_pixel_is_refused(tmp_path: Path) -> None:
    NougatImageProcessorPil(size=SIZE, do_crop_margin=False).save_pretrained(tmp_path)
    processor = read_processor(tmp_path, front(48, 32))
    assert processor is not None
    with pytest.raises(InvalidRequest, match="of 4000 x 1 pixels cannot be resized to what the model reads"):
        processor.features(Media("image", picture((4_000, 1))))
