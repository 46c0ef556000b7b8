"""Florence-2's spec and weights at the published sizes, held to transformers' model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Florence2Config, Florence2ForConditionalGeneration

from tandem.errors import ModelLoadError
from tandem.workers.distributed import Group
from tandem.workers.models.families import family_of, spec_of
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import DecoderStack, EncoderStack

# What their config.json says.
TEXT: dict[str, Any] = {"model_type": "bart", "vocab_size": 51328, "scale_embedding": False}
BASE = Florence2Config(
    vision_config={"projection_dim": 768},
    text_config={
        **TEXT, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12,
        "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
        "max_position_embeddings": 1024,
    },
)  # fmt: skip
LARGE = Florence2Config(
    vision_config={
        "embed_dim": [256, 512, 1024, 2048], "num_heads": [8, 16, 32, 64], "num_groups": [8, 16, 32, 64],
    },
    text_config={**TEXT, "max_position_embeddings": 4096},
)  # fmt: skip


@pytest.mark.parametrize("config", [BASE, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_every_weight_has_its_place(config: Florence2Config, prefix: str) -> None:
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(config)
    theirs = {
        name if name.startswith("lm_head") else prefix + name.removeprefix("model."): tuple(weight.shape)
        for name, weight in model.state_dict().items()
    }
    spec = spec_of(config.to_dict())
    assert spec.encoder is not None
    assert spec.encoder.front is not None
    assert (spec.encoder.front.positions, spec.encoder.front.features) == (577, (3, 768, 768))
    assert spec.encoder.front.placeholder_id == 51289
    assert (spec.decoder_start_id, spec.pad_id, spec.eos_ids) == (2, 1, (2,))
    names = family_of(config.to_dict()).names(config.to_dict(), spec)
    place = Placement(torch.device("meta"), torch.bfloat16, Group())
    slots = [*EncoderStack(spec.encoder, place).slots(), *DecoderStack(spec, True, place).slots()]
    read = set()
    for slot in slots:
        found = [name for name in names[slot.name] if name in theirs]
        assert theirs[found[0]] == slot.shape
        read |= set(found)
    assert theirs.keys() - read <= {"lm_head.weight"}  # tied
    assert all(name in theirs for name in read)
    assert "lm_head.weight" in names["decoder.output"]


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"vision_config": {"depths": [1, 1]}}, "vision_config.depths: must have one value for each of 4"),
        ({"vision_config": {"num_heads": [3, 8, 16, 32]}}, "vision_config.num_heads: do not divide"),
        ({"vision_config": {"num_groups": [3, 8, 16, 32]}}, "vision_config.num_groups: do not divide"),
        ({"vision_config": {"projection_dim": 96}}, "96 is not the language model's d_model, 1024"),
        ({"vision_config": 7}, "vision_config: must be an object"),
        ({"text_config": {**TEXT, "model_type": "t5"}}, "text_config.model_type: 't5'"),
        ({"image_processor": {"crop_size": {"height": 16, "width": 2000}}}, "vectors for 1 to 50"),
        (
            {"image_processor": {"size": {"shortest_edge": 9}, "do_center_crop": False}},
            "a height and a width",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(edit: dict[str, Any], why: str) -> None:
    values: dict[str, Any] = {
        "model_type": "florence2", "vision_config": {}, "text_config": LARGE.text_config.to_dict(),
        "image_processor": {"size": {"height": 768, "width": 768}, "do_center_crop": False},
    }  # fmt: skip
    assert spec_of(values).encoder is not None
    with pytest.raises(ModelLoadError, match=why):
        spec_of({**values, **edit})
