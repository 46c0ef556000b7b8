"""Pix2Struct's front, held to transformers' module, and the configs that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pix2struct import PATCHES, pix2struct_config, processor
from transformers.models.pix2struct.modeling_pix2struct import Pix2StructVisionEmbeddings

from tandem.errors import ModelLoadError
from tandem.workers.distributed import Group
from tandem.workers.models.families import spec_of
from tandem.workers.models.fronts import make_front
from tandem.workers.models.layers import Placement

_NAMES = {"patches": "patch_projection.weight", "patches.bias": "patch_projection.bias",
          "rows": "row_embedder.weight", "columns": "column_embedder.weight"}  # fmt: skip


def config(**more: Any) -> dict[str, Any]:
    return {**pix2struct_config().to_dict(), "image_processor": processor().to_dict(), **more}


@torch.no_grad()
def test_patches_with_their_places() -> None:
    stack = spec_of(config()).encoder
    assert stack is not None
    front = make_front("encoder.front", stack, Placement(torch.device("cpu"), torch.float32, Group()))
    assert front is not None
    module = Pix2StructVisionEmbeddings(pix2struct_config().vision_config).eval()
    theirs = dict(module.named_parameters())
    for weight in theirs.values():
        weight.normal_()
    for slot in front.slots():
        slot.into.copy_(theirs[_NAMES[slot.name.removeprefix("encoder.front.")]])
    features = torch.randn(3, PATCHES, 2 + 72)
    features[..., :2] = torch.randint(0, PATCHES + 1, (3, PATCHES, 2))
    torch.testing.assert_close(front(features), module(features).flatten(0, 1), rtol=0, atol=1e-5)


def test_what_the_files_leave_out_is_transformers() -> None:
    """A config without numbers is that of the published base models."""
    spec = spec_of({"model_type": "pix2struct"})
    assert spec.encoder is not None
    assert spec.encoder.front is not None
    assert (spec.encoder.front.positions, spec.encoder.front.features) == (2048, (2048, 770))
    full = type(pix2struct_config())()
    assert spec == spec_of({**full.to_dict(), "image_processor": {"max_patches": 2048}})


@pytest.mark.parametrize(
    ("values", "field", "why"),
    [
        (
            {"vision_config": {"hidden_size": 32}},
            "vision_config.hidden_size",
            "32 is not the width of the decoder, 768",
        ),
        ({"text_config": {"num_heads": 5}}, "text_config.num_heads", "5 heads of 64 are not the width 768"),
        ({"text_config": {"dense_act_fn": "mish"}}, "dense_act_fn", "unsupported"),
        ({"text_config": 3}, "text_config", "must be a JSON object"),
        ({"image_processor": {"max_patches": 0}}, "image_processor.max_patches", "positive"),
        ({"image_processor": {"patch_size": {"height": 8}}}, "image_processor.patch_size", "positive"),
        (
            {"image_processor": {"patch_size": {"height": 8, "width": 16}}},
            "vision_config.patch_embed_hidden_size",
            "768 is not what .* 3 x 8 x 16 = 384 values",
        ),
    ],
)
def test_configs_that_cannot_be_are_refused_by_name(values: Any, field: str, why: str) -> None:
    with pytest.raises(ModelLoadError, match=why) as refused:
        spec_of({"model_type": "pix2struct", **values})
    assert refused.value.field == field
