"""The front of ViT and DeiT, held to transformers' modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DeiTConfig, DeiTModel, TrOCRConfig, ViTConfig, ViTModel

from tandem.errors import ModelLoadError
from tandem.workers.distributed import Group
from tandem.workers.models.families import spec_of
from tandem.workers.models.fronts import make_front
from tandem.workers.models.layers import Placement
from tandem.workers.models.spec import StackSpec

_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_NAMES = {"patches": "patch_embeddings.projection.weight", "patches.bias": "patch_embeddings.projection.bias",
          "leading.0": "cls_token", "leading.1": "distillation_token"}  # fmt: skip


def stack_of(config: Any) -> StackSpec:
    decoder = TrOCRConfig(d_model=16, decoder_attention_heads=2).to_dict()
    stack = spec_of(
        {"model_type": "vision-encoder-decoder", "encoder": config.to_dict(), "decoder": decoder}
    ).encoder
    assert stack is not None
    return stack


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize(
    ("config", "model", "positions"),
    [
        (ViTConfig(**_SIZES, image_size=24, patch_size=8), ViTModel, 1 + 9),
        (ViTConfig(**_SIZES, image_size=[21, 33], patch_size=[4, 8], num_channels=1), ViTModel, 1 + 20),
        (DeiTConfig(**_SIZES, image_size=[16, 30], patch_size=5), DeiTModel, 2 + 18),
    ],
)
@torch.no_grad()
def test_patches_and_leading_vectors(config: Any, model: Any, positions: int, items: int) -> None:
    stack = stack_of(config)
    assert stack.front is not None
    assert stack.front.positions == stack.max_positions == positions
    front = make_front("encoder.front", stack, Placement(torch.device("cpu"), torch.float32, Group()))
    assert front is not None
    embeddings = model(config, add_pooling_layer=False).embeddings.eval()
    theirs = dict(embeddings.named_parameters())
    for weight in theirs.values():
        weight.normal_()
    for slot in front.slots():
        weight = theirs[_NAMES[slot.name.removeprefix("encoder.front.")]]
        assert weight.numel() == slot.into.numel()
        slot.into.copy_(weight.view(slot.shape))
    pixels = torch.randn(items, *stack.front.features)
    made = front(pixels)
    assert made.shape == (items * positions, 16)
    # transformers adds its position vectors there, too.
    expected = embeddings(pixels) - embeddings.position_embeddings
    torch.testing.assert_close(made.view(items, positions, 16), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0, "24", [24], [24, 24, 24], [24, 0], 24.0])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    config = ViTConfig(**_SIZES, image_size=24, patch_size=8).to_dict() | {"image_size": size}
    decoder = TrOCRConfig().to_dict()
    with pytest.raises(ModelLoadError, match="must be pixels, or their height and width") as refused:
        spec_of({"model_type": "vision-encoder-decoder", "encoder": config, "decoder": decoder})
    assert refused.value.field == "image_size"
