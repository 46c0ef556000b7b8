"""Llama 3.2 Vision (mllama): Llama's decoder, in which listed layers attend to images, not to the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import (
    Config,
    Family,
    WeightNames,
    activation,
    affine,
    head_dim,
    ids,
    token_id,
)
from tandem.workers.models.spec import FrontSpec, LongWaves, ModelSpec, Rotary, StackSpec, TiledVision

# Rows of the embedding that the output projection does not have: the image token's and some that are unused.
_READ_ONLY: Final = 8
_PLACEHOLDER, _PADDING = 0, 1  # in `EncoderInput.token_ids`, where there are no tokens


def _decoder(config: Config) -> StackSpec:
    if config.get("tie_word_embeddings"):
        raise ModelLoadError("is not supported", field="tie_word_embeddings")
    width, heads = config.get("hidden_size", 4096), config.get("num_attention_heads", 32)
    head = head_dim(width, heads, "num_attention_heads")
    layers = config.get("num_hidden_layers", 40)
    crossing = config.get("cross_attention_layers")
    crossing = tuple([3, 8, 13, 18, 23, 28, 33, 38] if crossing is None else crossing)
    if not crossing or not set(crossing) < set(range(layers)):
        raise ModelLoadError(
            f"must be some of the {layers} layers, and not all", field="cross_attention_layers"
        )
    return StackSpec(
        vocab_size=config.get("vocab_size", 128_256) + _READ_ONLY,
        layers=layers,
        d_model=width,
        heads=heads,
        kv_heads=config.get("num_key_value_heads", 8),
        head_dim=head,
        d_ff=config.get("intermediate_size", 14_336),
        activation=activation(config, "hidden_act", "silu"),
        gated=True,
        norm="rms",
        norm_eps=config.get("rms_norm_eps", 1e-5),
        cross_qk_norm=True,
        attention_scale=head**-0.5,
        cross_layers=crossing,
        cross_gates=True,
        max_positions=config.get("max_position_embeddings", 131_072),
        rotary=_rotary(config, head),
    )


def _rotary(config: Config, head: int) -> Rotary:
    # transformers 5 writes `rope_parameters`; older files hold its values at the top level.
    values: dict[str, Any] = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta"),
        **(config.get("rope_scaling") or {}),
    }
    base = values.get("rope_theta") or 500_000.0
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return Rotary(dimensions=head, base=base)
    if kind != "llama3":
        raise ModelLoadError(f"rope_type {kind!r} is not supported", field="rope_parameters")
    long = LongWaves(
        trained=values["original_max_position_embeddings"],
        low=float(values["low_freq_factor"]),
        high=float(values["high_freq_factor"]),
    )
    return Rotary(dimensions=head, base=base, factor=float(values["factor"]), long_waves=long)


def _vision(config: Config) -> TiledVision:
    size, patch = config.get("image_size", 448), config.get("patch_size", 14)
    if type(size) is not int or type(patch) is not int:
        raise ModelLoadError("must be one number: tiles and patches are squares", field="image_size")
    width, heads = config.get("hidden_size", 1280), config.get("attention_heads", 16)
    kept = config.get("intermediate_layers_indices")
    found = config.get("supported_aspect_ratios")
    made = TiledVision(
        tiles=config.get("max_num_tiles", 4),
        tile_size=size,
        channels=config.get("num_channels", 3),
        patch_size=patch,
        arrangements=tuple(
            (across, down)
            for across, down in (
                [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]] if found is None else found
            )
        ),
        layers=config.get("num_hidden_layers", 32),
        global_layers=config.get("num_global_layers", 8),
        kept_layers=tuple([3, 7, 15, 23, 30] if kept is None else kept),
        d_model=width,
        heads=heads,
        head_dim=head_dim(width, heads, "attention_heads"),
        d_ff=config.get("intermediate_size", 5120),
        activation=activation(config, "hidden_act", "gelu"),
        norm_eps=config.get("norm_eps", 1e-5),
    )
    if config.get("vision_output_dim", made.output_width) != made.output_width:
        raise ModelLoadError(
            f"must be {made.output_width}: the width of the last layer and of those kept",
            field="vision_output_dim",
        )
    return made


def _spec(config: Config) -> ModelSpec:
    text = config["text_config"]
    vision, decoder = _vision(config["vision_config"]), _decoder(text)
    front = FrontSpec(
        kind="tiled_vision",
        modality="image",
        placeholder_id=_PLACEHOLDER,
        padding_id=_PADDING,
        positions=vision.tiles * vision.tile_positions,
        features=(vision.tiles, vision.channels * vision.tile_size**2 + 1),
        vision=vision,
    )
    encoder = StackSpec(
        vocab_size=None, front=front, layers=0, d_model=decoder.d_model, heads=decoder.heads,
        head_dim=decoder.head_dim, d_ff=0, activation="gelu", norm="layer", norm_eps=vision.norm_eps,
        post_norm=True, attention_scale=1.0,
    )  # fmt: skip
    return _model("mllama", text, encoder, decoder, config.get("image_token_index", 128_256))


def _text_spec(config: Config) -> ModelSpec:
    """The text model alone, without its cross-attention layers, which text does not use."""
    stack = _decoder(config)
    assert stack.cross_layers is not None
    alone = replace(
        stack, layers=stack.layers - len(stack.cross_layers), cross_layers=None, cross_gates=False
    )
    return _model("mllama_text_model", config, None, alone, None)


def _model(
    family: str, text: Config, encoder: StackSpec | None, decoder: StackSpec, media_token: int | None
) -> ModelSpec:
    return ModelSpec(
        family=family,
        encoder=encoder,
        decoder=decoder,
        decoder_start_id=None,
        pad_id=token_id(text, "pad_token_id", 128_004),
        eos_ids=ids(text, "eos_token_id", 128_001),
        media_token_id=media_token,
        read_only_ids=_READ_ONLY,
    )


def _names(_: Config, spec: ModelSpec) -> WeightNames:
    assert spec.encoder is not None
    assert spec.encoder.front is not None
    assert spec.encoder.front.vision is not None
    layers = [(i, i, "cross" in spec.attentions(i)) for i in range(spec.decoder.layers)]
    return {**_text("language_model.", layers), **_front(spec.encoder.front.vision)}


def _text_names(config: Config, spec: ModelSpec) -> WeightNames:
    crossing = _crossing(config)
    kept = (i for i in range(spec.decoder.layers + len(crossing)) if i not in crossing)
    return _text("", ((ours, theirs, False) for ours, theirs in enumerate(kept)))


def _text_unread(config: Config) -> tuple[str, ...]:
    return tuple(f"model.layers.{i}.*" for i in _crossing(config))


def _crossing(config: Config) -> tuple[int, ...]:
    return _decoder(config).cross_layers or ()


def _text(prefix: str, layers: Iterable[tuple[int, int, bool]]) -> WeightNames:
    """layers: our number of each, its number in the checkpoint, and whether it attends to images."""
    model = f"{prefix}model."
    names: WeightNames = {
        "decoder.embedding": (f"{model}embed_tokens.weight",),
        "decoder.output": (f"{prefix}lm_head.weight",),
        "decoder.final_norm": (f"{model}norm.weight",),
    }
    for ours, theirs, crosses in layers:
        layer, stored = f"decoder.layers.{ours}", f"{model}layers.{theirs}"
        kind, module = ("cross_attention", "cross_attn") if crosses else ("self_attention", "self_attn")
        names |= {f"{layer}.{kind}.{part}": (f"{stored}.{module}.{part}_proj.weight",) for part in "qkvo"}
        names |= {
            f"{layer}.feed_forward.{part}": (f"{stored}.mlp.{part}_proj.weight",)
            for part in ("gate", "up", "down")
        }
        names |= {
            f"{layer}.{kind}.norm": (f"{stored}.input_layernorm.weight",),
            f"{layer}.feed_forward.norm": (f"{stored}.post_attention_layernorm.weight",),
        }
        if crosses:
            names |= {
                f"{layer}.{kind}.q_norm": (f"{stored}.cross_attn.q_norm.weight",),
                f"{layer}.{kind}.k_norm": (f"{stored}.cross_attn.k_norm.weight",),
                f"{layer}.{kind}.gate": (f"{stored}.cross_attn_attn_gate",),
                f"{layer}.feed_forward.output_gate": (f"{stored}.cross_attn_mlp_gate",),
            }
    return names


def _front(vision: TiledVision) -> WeightNames:
    ours, model = "encoder.front", "vision_model"
    names: WeightNames = {
        f"{ours}.patches": (f"{model}.patch_embedding.weight",),
        f"{ours}.class": (f"{model}.class_embedding",),
        f"{ours}.positions": (f"{model}.gated_positional_embedding.embedding",),
        f"{ours}.positions.gate": (f"{model}.gated_positional_embedding.gate",),
        f"{ours}.tile_positions": (f"{model}.gated_positional_embedding.tile_embedding.weight",),
        **affine(f"{ours}.first_norm", f"{model}.layernorm_pre"),
        **affine(f"{ours}.middle_norm", f"{model}.layernorm_post"),
        **affine(f"{ours}.projector", "multi_modal_projector"),
    }
    for side, module in (("first", "pre"), ("middle", "post")):
        names |= {
            f"{ours}.{side}_tiles": (f"{model}.{module}_tile_positional_embedding.embedding.weight",),
            f"{ours}.{side}_tiles.gate": (f"{model}.{module}_tile_positional_embedding.gate",),
        }
    for layer, stored in _vision_layers(vision):
        layer, stored = f"{ours}.{layer}", f"{model}.{stored}"
        names |= {f"{layer}.{part}": (f"{stored}.self_attn.{part}_proj.weight",) for part in "qkvo"}
        names |= {
            **affine(f"{layer}.attention_norm", f"{stored}.input_layernorm"),
            **affine(f"{layer}.up", f"{stored}.mlp.fc1"),
            **affine(f"{layer}.down", f"{stored}.mlp.fc2"),
            **affine(f"{layer}.feed_forward_norm", f"{stored}.post_attention_layernorm"),
            f"{layer}.attention_gate": (f"{stored}.gate_attn",),
            f"{layer}.feed_forward_gate": (f"{stored}.gate_ffn",),
        }
        if ".global_" not in layer:
            del names[f"{layer}.attention_gate"], names[f"{layer}.feed_forward_gate"]
    return names


def _vision_layers(vision: TiledVision) -> Iterator[tuple[str, str]]:
    for i in range(vision.layers):
        yield f"layers.{i}", f"transformer.layers.{i}"
    for i in range(vision.global_layers):
        yield f"global_layers.{i}", f"global_transformer.layers.{i}"


FAMILIES = {
    "mllama": Family(_spec, _names),
    "mllama_text_model": Family(_text_spec, _text_names, unread=_text_unread),
}
