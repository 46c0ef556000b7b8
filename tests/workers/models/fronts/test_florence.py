"""Florence-2's front, held to transformers' vision tower and projector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from florence import florence_config
from transformers.models.florence2.modeling_florence2 import Florence2Model

from tandem.workers.distributed import Group
from tandem.workers.models.families import family_of, spec_of
from tandem.workers.models.fronts import make_front
from tandem.workers.models.layers import Placement
from tandem.workers.models.spec import FrontSpec, StackSpec

# Sides of images, and what is special about them.
SIZES = {
    "one window": (48, 48),
    "windows that zeros fill up": (72, 56),
    "a row of positions": (8, 104),
}


def _values(config: Any, size: tuple[int, int]) -> dict[str, Any]:
    """What a model's folder says: its config, and what images are resized to."""
    images = {"size": {"height": size[0], "width": size[1]}, "do_center_crop": False}
    return {**config.to_dict(), "image_processor": images}


def _front(
    config: Any, size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Florence2Model, Any, FrontSpec]:
    """transformers' model and our front, of the same random weights."""
    torch.manual_seed(3)
    model = Florence2Model(config).eval()
    for weight in model.parameters():
        weight.data.normal_(0.0, 0.3)
    values = _values(config, size)
    spec = spec_of(values)
    stack = spec.encoder
    assert isinstance(stack, StackSpec)
    assert stack.front is not None
    front = make_front("encoder.front", stack, Placement(torch.device("cpu"), dtype, Group()))
    assert front is not None
    names, theirs = family_of(values).names(values, spec), model.state_dict()
    for slot in front.slots():
        (name,) = (name for name in names[slot.name] if isinstance(name, str) and name in theirs)
        assert tuple(theirs[name].shape) == slot.shape
        slot.into.copy_(theirs.pop(name))
    assert all(name.startswith("language_model") for name in theirs)  # every weight is read
    return model.to(dtype), front, stack.front


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("qkv_bias", [True, False])
@torch.no_grad()
def test_images(size: tuple[int, int], qkv_bias: bool) -> None:
    model, front, spec = _front(florence_config(vision={"qkv_bias": qkv_bias}), size)
    pixels = torch.randn(5, 3, *size)  # more than are computed at once
    expected = model.get_image_features(pixels).pooler_output
    assert spec.features == (3, *size)
    assert expected.shape == (5, spec.positions, model.config.text_config.d_model)
    torch.testing.assert_close(front(pixels), expected.flatten(0, 1), rtol=1e-4, atol=1e-4)
    # No image depends on the others.
    torch.testing.assert_close(front(pixels[3:4]), expected[3], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_bfloat16() -> None:
    """As far from float32 as transformers in bfloat16 is, or nearer."""
    size = SIZES["windows that zeros fill up"]
    pixels = torch.randn(3, 3, *size)
    exact, *_ = _front(florence_config(), size)
    model, front, _ = _front(florence_config(), size, torch.bfloat16)
    expected = exact.get_image_features(pixels).pooler_output.flatten(0, 1)
    theirs = model.get_image_features(pixels).pooler_output.flatten(0, 1)
    made = front(pixels)
    assert made.dtype == torch.bfloat16
    error, bound = ((one.float() - expected).square().mean().sqrt() for one in (made, theirs))
    assert error < 1.2 * bound


@torch.no_grad()
def test_a_time_that_the_checkpoint_does_not_have() -> None:
    size = SIZES["one window"]
    _, front, _ = _front(florence_config(), size)
    stack = spec_of(_values(florence_config(), size)).encoder
    assert stack is not None
    fresh = make_front("encoder.front", stack, Placement(torch.device("cpu"), torch.float32, Group()))
    assert fresh is not None
    stored = {slot.name: slot.into for slot in front.slots()}
    for slot in fresh.slots():
        if not slot.filled:
            slot.into.copy_(stored[slot.name])
    pixels = torch.randn(1, 3, *size)
    torch.testing.assert_close(fresh(pixels), front(pixels))
