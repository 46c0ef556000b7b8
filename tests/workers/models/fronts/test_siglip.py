"""T5Gemma 2's front, held to transformers' SigLIP and projector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from t5gemma2 import VISION, fill_images, t5gemma2_config
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

from tandem.errors import ModelLoadError
from tandem.workers.distributed import Group
from tandem.workers.models.families import family_of, spec_of
from tandem.workers.models.fronts import make_front
from tandem.workers.models.layers import Placement
from tandem.workers.models.spec import FrontSpec

# Images, and the tokens that they take.
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "an edge is left out": ({}, 9),
    "all patches": ({"image_size": 24}, 36),
    "their mean": ({"image_size": 24, "hidden_act": "gelu", "layer_norm_eps": 1e-3}, 1),
    "with a pooling head": ({"vision_use_head": True, "num_channels": 1}, 9),
}


def _front(
    vision: dict[str, Any], tokens: int, dtype: torch.dtype = torch.float32
) -> tuple[T5Gemma2Encoder, Any, FrontSpec]:
    """transformers' encoder and our front, of the same random weights."""
    config = t5gemma2_config(vision, mm_tokens_per_image=tokens)
    model = T5Gemma2Encoder(config.encoder).eval()
    fill_images(model, 3)
    values = {**config.to_dict(), "image_processor": {}}
    spec, family = spec_of(values), family_of(values)
    assert spec.encoder is not None
    assert spec.encoder.front is not None
    front = make_front("encoder.front", spec.encoder, Placement(torch.device("cpu"), dtype, Group()))
    assert front is not None
    theirs = {f"model.encoder.{name}": weight for name, weight in model.state_dict().items()}
    names = family.names(values, spec)
    for slot in front.slots():
        parts = [one for one in names[slot.name] if one is not None]
        (part,) = (one for one in parts if getattr(one, "name", one) in theirs)
        weight = theirs.pop(part if isinstance(part, str) else part.name)
        slot.into.copy_((weight if isinstance(part, str) else weight.T) + slot.plus)
    left = [name for name in theirs if ".text_model." not in name]
    assert all(".vision_tower.head." in name for name in left)  # every other weight is read
    return model.to(dtype), front, spec.encoder.front


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_images(shape: tuple[dict[str, Any], int]) -> None:
    model, front, spec = _front(*shape)
    vision = VISION | {"num_channels": 3} | shape[0]
    assert spec.features == (vision["num_channels"], vision["image_size"], vision["image_size"])
    pixels = torch.randn(5, *spec.features)  # more than are computed at once
    expected = model.get_image_features(pixels).pooler_output
    assert expected.shape == (5, spec.positions, 32)
    torch.testing.assert_close(front(pixels), expected.flatten(0, 1), rtol=1e-4, atol=1e-5)
    # No image depends on the others.
    torch.testing.assert_close(front(pixels[3:4]), expected[3], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bfloat16() -> None:
    """As far from float32 as transformers in bfloat16 is, or nearer."""
    pixels = torch.randn(3, 3, 30, 30)
    exact, *_ = _front({}, 9)
    model, front, _ = _front({}, 9, torch.bfloat16)
    expected = exact.get_image_features(pixels).pooler_output.flatten(0, 1)
    theirs = model.get_image_features(pixels.bfloat16()).pooler_output.flatten(0, 1)
    made = front(pixels)
    assert made.dtype == torch.bfloat16
    error, bound = ((one.float() - expected).square().mean().sqrt() for one in (made, theirs))
    assert error < 1.2 * bound


@pytest.mark.parametrize(
    ("vision", "encoder", "image_token", "words", "field"),
    [
        ({}, {"mm_tokens_per_image": 10}, 67, "7 x 7 patches", "encoder.mm_tokens_per_image"),
        ({}, {"mm_tokens_per_image": 64}, 67, "7 x 7 patches", "encoder.mm_tokens_per_image"),
        ({"image_size": [30, 24]}, {}, 67, "one number", "encoder.vision_config.image_size"),
        ({"num_attention_heads": 5}, {}, 67, "do not divide", "encoder.vision_config.num_attention_heads"),
        ({"model_type": "clip_vision_model"}, {}, 67, "siglip", "encoder.vision_config.model_type"),
        ({"hidden_act": "tanh"}, {}, 67, "unsupported", "hidden_act"),
        ({}, {}, 300, "300 is not in the vocabulary", "image_token_index"),
    ],
)
def test_configs_that_cannot_be(
    vision: dict[str, Any], encoder: dict[str, Any], image_token: int, words: str, field: str
) -> None:
    values = {**t5gemma2_config().to_dict(), "image_processor": {}, "image_token_index": image_token}
    values["encoder"] = values["encoder"] | encoder
    values["encoder"]["vision_config"] = values["encoder"]["vision_config"] | vision
    with pytest.raises(ModelLoadError, match=words) as refused:
        spec_of(values)
    assert refused.value.field == field
