"""Pix2Struct: pages and screenshots in as many patches as keep their shape, a stack of their own and T5's
decoder."""

from __future__ import annotations

from typing import Any, Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import (
    Config,
    Family,
    WeightNames,
    activation,
    affine,
    ids,
    token_id,
)
from tandem.workers.models.spec import FlatPatchesSpec, FrontSpec, ModelSpec, RelativeBias, StackSpec

_CHANNELS: Final = 3  # images are read as RGB


def _spec(config: Config) -> ModelSpec:
    text, vision = _inner(config, "text_config"), _inner(config, "vision_config")
    encoder, decoder = _encoder(vision, _front(config, vision)), _decoder(text)
    if encoder.d_model != decoder.d_model:
        raise ModelLoadError(
            f"{encoder.d_model} is not the width of the decoder, {decoder.d_model}, which reads it as it is",
            field="vision_config.hidden_size",
        )
    pad = token_id(text, "pad_token_id", 0)
    return ModelSpec(
        family="pix2struct",
        encoder=encoder,
        decoder=decoder,
        decoder_start_id=token_id(text, "decoder_start_token_id", pad),
        pad_id=pad,
        eos_ids=ids(text, "eos_token_id", 1),
    )


def _inner(config: Config, key: str) -> Config:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ModelLoadError(f"must be a JSON object, got {type(value).__name__}", field=key)
    return value


def _front(config: Config, vision: Config) -> FrontSpec:
    images = _inner(config, "image_processor")
    most = _positive(images.get("max_patches", 2048), "image_processor.max_patches")
    patch: Any = images.get("patch_size") or 16
    height, width = (patch.get("height"), patch.get("width")) if isinstance(patch, dict) else (patch, patch)
    height, width = (_positive(side, "image_processor.patch_size") for side in (height, width))
    values = _CHANNELS * height * width
    if (read := vision.get("patch_embed_hidden_size", 768)) != values:
        raise ModelLoadError(
            f"{read} is not what the image processor makes of a patch: {_CHANNELS} x {height} x {width} = "
            f"{values} values",
            field="vision_config.patch_embed_hidden_size",
        )
    return FrontSpec(
        kind="flat_patches",
        modality="image",
        placeholder_id=0,
        positions=most,
        varying=True,
        features=(most, 2 + values),
        header=bool(images.get("is_vqa")),
        flat_patches=FlatPatchesSpec(
            size=(height, width), rows=_positive(vision.get("seq_len", 4096), "vision_config.seq_len")
        ),
    )


def _positive(value: Any, field: str) -> int:
    if type(value) is not int or value < 1:
        raise ModelLoadError(f"must be a positive integer, got {value!r}", field=field)
    return value


def _encoder(vision: Config, front: FrontSpec) -> StackSpec:
    return StackSpec(
        vocab_size=None,
        front=front,
        layers=vision.get("num_hidden_layers", 12),
        d_model=vision.get("hidden_size", 768),
        heads=vision.get("num_attention_heads", 12),
        head_dim=vision.get("d_kv", 64),
        d_ff=vision.get("d_ff", 2048),
        activation=activation(vision, "dense_act_fn", "gelu_new"),
        gated=True,
        norm="rms",
        norm_eps=vision.get("layer_norm_eps", 1e-6),
        attention_scale=1.0,
        max_positions=front.positions,
    )


def _decoder(text: Config) -> StackSpec:
    width, heads, head = text.get("hidden_size", 768), text.get("num_heads", 12), text.get("d_kv", 64)
    if heads * head != width:
        raise ModelLoadError(
            f"{heads} heads of {head} are not the width {width}", field="text_config.num_heads"
        )
    return StackSpec(
        vocab_size=text.get("vocab_size", 50_244),
        layers=text.get("num_layers", 12),
        d_model=width,
        heads=heads,
        head_dim=head,
        d_ff=text.get("d_ff", 2048),
        activation=activation(text, "dense_act_fn", "gelu_new"),
        gated=True,
        norm="rms",
        norm_eps=text.get("layer_norm_epsilon", 1e-6),
        attention_scale=1.0,
        relative_bias=RelativeBias(
            buckets=text.get("relative_attention_num_buckets", 32),
            max_distance=text.get("relative_attention_max_distance", 128),
            per_layer=False,
        ),
    )


_FEED_FORWARD: Final = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
_ATTENTION: Final = {"q": "query", "k": "key", "v": "value", "o": "output"}


def _names(_: Config, spec: ModelSpec) -> WeightNames:
    assert spec.encoder is not None
    names: WeightNames = {
        **affine("encoder.front.patches", "encoder.embeddings.patch_projection"),
        "encoder.front.rows": ("encoder.embeddings.row_embedder.weight",),
        "encoder.front.columns": ("encoder.embeddings.column_embedder.weight",),
        "encoder.final_norm": ("encoder.layernorm.weight",),
        "decoder.embedding": ("decoder.embed_tokens.weight",),
        "decoder.output": ("decoder.lm_head.weight", "decoder.embed_tokens.weight"),
        "decoder.final_norm": ("decoder.final_layer_norm.weight",),
        "decoder.layers.0.self_attention.bias": (
            "decoder.layer.0.self_attention.attention.relative_attention_bias.weight",
        ),
    }
    for i in range(spec.encoder.layers):
        ours, theirs = f"encoder.layers.{i}", f"encoder.encoder.layer.{i}"
        names[f"{ours}.self_attention.norm"] = (f"{theirs}.pre_attention_layer_norm.weight",)
        names[f"{ours}.feed_forward.norm"] = (f"{theirs}.pre_mlp_layer_norm.weight",)
        for part, stored in _ATTENTION.items():
            names[f"{ours}.self_attention.{part}"] = (f"{theirs}.attention.{stored}.weight",)
        for part, stored in _FEED_FORWARD.items():
            names[f"{ours}.feed_forward.{part}"] = (f"{theirs}.mlp.{stored}.weight",)
    for i in range(spec.decoder.layers):
        ours, theirs = f"decoder.layers.{i}", f"decoder.layer.{i}"
        for kind, module in (
            ("self_attention", "self_attention"),
            ("cross_attention", "encoder_decoder_attention"),
        ):
            names[f"{ours}.{kind}.norm"] = (f"{theirs}.{module}.layer_norm.weight",)
            for part, stored in _ATTENTION.items():
                names[f"{ours}.{kind}.{part}"] = (f"{theirs}.{module}.attention.{stored}.weight",)
        names[f"{ours}.feed_forward.norm"] = (f"{theirs}.mlp.layer_norm.weight",)
        for part, stored in _FEED_FORWARD.items():
            names[f"{ours}.feed_forward.{part}"] = (f"{theirs}.mlp.DenseReluDense.{stored}.weight",)
    return names


FAMILIES = {"pix2struct": Family(_spec, _names)}
