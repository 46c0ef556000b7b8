"""Images in tiles, held to transformers' processor of mllama."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from mllama import TEXT, VISION, image
from transformers import MllamaConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.inputs import Media
from tandem.limits import DEFAULT_LIMITS, Limits
from tandem.workers.models.families import spec_of
from tandem.workers.models.spec import FrontSpec
from tandem.workers.requests.media import own_positions, read_processor

SIZES = [(14, 14), (1, 1), (200, 3), (3, 200), (29, 15), (15, 29), (43, 14), (14, 57), (60, 60), (999, 998)]


def front() -> FrontSpec:
    spec = spec_of(MllamaConfig(vision_config=VISION, text_config=TEXT).to_dict())
    assert spec.encoder is not None
    assert spec.encoder.front is not None
    return spec.encoder.front


def media(width: int, height: int) -> Media:
    file = io.BytesIO()
    image(width, width, height).save(file, "PNG")
    return Media("image", file.getvalue())


@pytest.mark.parametrize("size", SIZES)
def test_tiles_and_positions(size: tuple[int, int], tmp_path: Path) -> None:
    theirs = MllamaImageProcessorPil(size={"height": 14, "width": 14})
    theirs.save_pretrained(tmp_path)
    ours = read_processor(tmp_path, front())
    assert ours is not None
    expected = theirs(images=image(size[0], *size), return_tensors="pt")
    features = ours.features(media(*size))
    assert torch.equal(features[:, :-1].reshape(1, 1, 4, 3, 14, 14), expected["pixel_values"])
    assert set(features[:, -1].tolist()) == {float(expected["aspect_ratio_ids"])}
    # A tile of 14 pixels with patches of 7 has five positions.
    assert own_positions(ours, media(*size), DEFAULT_LIMITS) == 5 * expected["num_tiles"][0][0]
    assert ours.positions(media(*size), DEFAULT_LIMITS) == 20


def test_a_processor_of_another_number_of_tiles_is_refused(tmp_path: Path) -> None:
    MllamaImageProcessorPil(size={"height": 14, "width": 14}, max_image_tiles=3).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="3"):
        read_processor(tmp_path, front())


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    MllamaImageProcessorPil(size={"height": 14, "width": 14}).save_pretrained(tmp_path)
    ours = read_processor(tmp_path, front())
    assert ours is not None
    with pytest.raises(InvalidRequest):
        own_positions(ours, media(40, 40), Limits(image_pixels=1000))
