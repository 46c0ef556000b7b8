"""Images within a text, held to transformers' `Gemma3Processor`."""

from __future__ import annotations

import random
from typing import Any

import pytest
from t5gemma2 import IMAGE_TEXT, POSITIONS, SIDE, image, processor, tokenizer

from tandem.errors import InvalidRequest
from tandem.workers.models.spec import FrontSpec
from tandem.workers.requests.prompts.image_places import ImagePlaces
from tandem.workers.requests.prompts.tokenizer import TextTokenizer

TOKENIZER = tokenizer()
FRONT = FrontSpec(
    kind="siglip", modality="image", placeholder_id=TOKENIZER.convert_tokens_to_ids("<image_soft_token>"),
    positions=POSITIONS, features=(3, SIDE, SIDE), within_text=True,
)  # fmt: skip
PIECES = ["\n", "\n\n", " ", "a", "bc", "<end_of_image>", "<bos>", "<", "é"]


@pytest.fixture(scope="module")
def places() -> ImagePlaces:
    return ImagePlaces(FRONT, TOKENIZER)


def test_any_text_is_the_processors(places: ImagePlaces) -> None:
    """Lines before and after an image join those around it, as the tokenizer sees the whole text."""
    rng, theirs, ours = random.Random(1), processor(), TextTokenizer(TOKENIZER)
    pictures = [image(seed, 5, 4) for seed in range(4)]
    for _ in range(150):
        images = rng.randrange(5)
        pieces = [IMAGE_TEXT] * images + rng.choices(PIECES, k=rng.randrange(9))
        rng.shuffle(pieces)
        if not (text := "".join(pieces)) and not images:
            continue
        given: Any = theirs(text=text, images=pictures[:images] or None)
        ids = ours.encode(places.text(text, images, "prompt"), "prompt", 999, special=True)
        found = places.spread(ids, images, "prompt")
        assert found == given["input_ids"][0], text
        places.check_ids(found, images, "prompt")


def test_images_alone(places: ImagePlaces) -> None:
    given: Any = processor()(images=[[image(1), image(2)]])
    ids = TextTokenizer(TOKENIZER).encode(places.text("", 2, "prompt"), "prompt", 99, special=True)
    assert places.spread(ids, 2, "prompt") == given["input_ids"][0]


def test_a_model_whose_media_come_first_has_no_places() -> None:
    assert ImagePlaces.of(None, TOKENIZER) is None
    before = FrontSpec(kind="davit", modality="image", placeholder_id=1, positions=2, features=(3, 1, 1))
    assert ImagePlaces.of(before, TOKENIZER) is None


def test_as_many_tokens_as_images(places: ImagePlaces) -> None:
    for images in (0, 2):
        with pytest.raises(InvalidRequest, match=f"1 times, for {images} media items"):
            places.text(f"a{IMAGE_TEXT}", images, "prompt")
    with pytest.raises(InvalidRequest, match=f"write {IMAGE_TEXT}"):
        places.spread([FRONT.placeholder_id], 0, "prompt")
    with pytest.raises(InvalidRequest, match="take 18 positions"):
        places.check_ids([FRONT.placeholder_id] * 17, 2, "prompt_token_ids")
