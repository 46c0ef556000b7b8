"""SigLIP's vision tower and Gemma 3's projector, which T5Gemma 2 reads images with."""

from __future__ import annotations

from math import isqrt
from typing import Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import Config, Part, WeightNames, activation, affine
from tandem.workers.models.spec import FrontSpec, SiglipSpec

_KIND: Final = "siglip_vision_model"
_LAYER: Final = {
    "self_attention.q": "self_attn.q_proj",
    "self_attention.k": "self_attn.k_proj",
    "self_attention.v": "self_attn.v_proj",
    "self_attention.o": "self_attn.out_proj",
    "self_attention.norm": "layer_norm1",
    "feed_forward.up": "mlp.fc1",
    "feed_forward.down": "mlp.fc2",
    "feed_forward.norm": "layer_norm2",
}


def siglip(vision: Config, tokens: int, placeholder: int) -> FrontSpec:
    """The front of a `vision_config`, where an image is to take so many tokens. Raises ModelLoadError."""
    if (kind := vision.get("model_type", _KIND)) != _KIND:
        raise ModelLoadError(
            f"{kind!r} is not supported, only {_KIND!r}", field="encoder.vision_config.model_type"
        )
    side, patch = _pixels(vision, "image_size", 224), _pixels(vision, "patch_size", 16)
    grid, pool = side // patch, side // patch // max(1, isqrt(tokens))
    if not pool or (grid // pool) ** 2 != tokens:
        raise ModelLoadError(
            f"{tokens} is not what {grid} x {grid} patches come to when squares of them are averaged",
            field="encoder.mm_tokens_per_image",
        )
    width, heads = vision.get("hidden_size", 768), vision.get("num_attention_heads", 12)
    if width % heads:
        raise ModelLoadError(
            f"{heads} heads do not divide the width {width}",
            field="encoder.vision_config.num_attention_heads",
        )
    return FrontSpec(
        kind="siglip",
        modality="image",
        placeholder_id=placeholder,
        positions=tokens,
        features=(vision.get("num_channels", 3), side, side),
        within_text=True,
        siglip=SiglipSpec(
            patch=patch,
            width=width,
            layers=vision.get("num_hidden_layers", 12),
            heads=heads,
            d_ff=vision.get("intermediate_size", 3072),
            activation=activation(vision, "hidden_act", "gelu_new"),
            norm_eps=vision.get("layer_norm_eps", 1e-6),
            pool=pool,
        ),
    )


def _pixels(vision: Config, key: str, default: int) -> int:
    value: int = vision.get(key, default)
    if type(value) is not int or value < 1:
        raise ModelLoadError(
            f"must be pixels, one number for height and width, got {value!r}",
            field=f"encoder.vision_config.{key}",
        )
    return value


def siglip_names(front: str, prefix: str, spec: SiglipSpec) -> WeightNames:
    """front: our name of it; prefix: of the checkpoint's names."""
    towers = f"{prefix}vision_tower.", f"{prefix}vision_tower.vision_model."

    def tower(ours: str, theirs: str) -> WeightNames:
        return affine(f"{front}.{ours}", *(one + theirs for one in towers))

    projector = f"{prefix}multi_modal_projector"
    names: WeightNames = {
        **tower("patches", "embeddings.patch_embedding"),
        f"{front}.positions": tuple(f"{one}embeddings.position_embedding.weight" for one in towers),
        **tower("norm", "post_layernorm"),
        f"{front}.projection.norm": (f"{projector}.mm_soft_emb_norm.weight",),
        f"{front}.projection": (Part(f"{projector}.mm_input_projection_weight", transposed=True),),
    }
    for layer in range(spec.layers):
        for ours, theirs in _LAYER.items():
            names |= tower(f"layers.{layer}.{ours}", f"encoder.layers.{layer}.{theirs}")
    return names
