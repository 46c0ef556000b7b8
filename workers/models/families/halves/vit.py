"""ViT and DeiT, encoders of images: halves of vision encoder-decoder models (`encoder_decoder.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import (
    Config,
    Part,
    WeightNames,
    activation,
    affine,
    head_dim,
)
from tandem.workers.models.families.halves.half import EncoderHalf
from tandem.workers.models.spec import FrontSpec, PatchesSpec, PositionTable, StackSpec


def sides(config: Config, key: str) -> tuple[int, int]:
    """Height and width in pixels. The file may hold one number for both."""
    value: Any = config[key]
    height, width = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise ModelLoadError(f"must be pixels, or their height and width, got {value!r}", field=key)
    return height, width


def front_alone(front: FrontSpec, width: int, eps: float, *, normed: bool) -> StackSpec:
    """The stack behind a front that is a whole encoder: it has no layers, and at most a norm."""
    return StackSpec(
        vocab_size=None,
        front=front,
        layers=0,
        d_model=width,
        heads=1,
        head_dim=width,
        d_ff=width,
        activation="gelu",
        norm="layer",
        norm_eps=eps,
        post_norm=not normed,
        attention_scale=1.0,
        max_positions=front.positions,
    )


def _vit(leading: int) -> Callable[[Config], StackSpec]:
    """leading: vectors before the patches."""

    def stack(config: Config) -> StackSpec:
        width, heads = config["hidden_size"], config["num_attention_heads"]
        head = head_dim(width, heads, "num_attention_heads")
        image, patch = sides(config, "image_size"), sides(config, "patch_size")
        positions = leading + (image[0] // patch[0]) * (image[1] // patch[1])
        return StackSpec(
            vocab_size=None,
            front=FrontSpec(
                kind="image_patches",
                modality="image",
                placeholder_id=0,
                positions=positions,
                features=(config.get("num_channels", 3), *image),
                patches=PatchesSpec(size=patch, leading=leading),
            ),
            layers=config["num_hidden_layers"],
            d_model=width,
            heads=heads,
            head_dim=head,
            d_ff=config["intermediate_size"],
            activation=activation(config, "hidden_act", "gelu"),
            bias=True,
            norm="layer",
            norm_eps=config.get("layer_norm_eps", 1e-12),
            attention_scale=head**-0.5,
            max_positions=positions,
            positions=PositionTable("learned"),
        )

    return stack


def _vit_names(*leading: str) -> Callable[[StackSpec, str, str], WeightNames]:
    """leading: what the vectors before the patches are called."""

    def names(stack: StackSpec, side: str, prefix: str) -> WeightNames:
        names: WeightNames = {
            **affine(f"{side}.front.patches", f"{prefix}embeddings.patch_embeddings.projection"),
            f"{side}.positions": (Part(f"{prefix}embeddings.position_embeddings", row=True),),
            **affine(f"{side}.final_norm", f"{prefix}layernorm"),
        }
        for number, name in enumerate(leading):
            names[f"{side}.front.leading.{number}"] = (Part(f"{prefix}embeddings.{name}", row=True),)
        for i in range(stack.layers):
            for ours, theirs in LAYER.items():
                names |= affine(f"{side}.layers.{i}.{ours}", f"{prefix}encoder.layer.{i}.{theirs}")
            for part in "qkv":  # without `qkv_bias` there is none
                names[f"{side}.layers.{i}.self_attention.{part}.bias"] += (None,)
        return names

    return names


LAYER: Final = {
    "self_attention.q": "attention.attention.query",
    "self_attention.k": "attention.attention.key",
    "self_attention.v": "attention.attention.value",
    "self_attention.o": "attention.output.dense",
    "self_attention.norm": "layernorm_before",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward.norm": "layernorm_after",
}
UNUSED: Final = ("encoder.embeddings.mask_token",)
# By the `model_type` of a half's config.
HALVES: Final = {
    "vit": EncoderHalf(_vit(1), _vit_names("cls_token")),
    "deit": EncoderHalf(_vit(2), _vit_names("cls_token", "distillation_token")),
}
