"""T5Gemma (encoder-decoder Gemma 2) and T5Gemma 2 (encoder-decoder Gemma 3, which reads images, too)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import (
    Config,
    Family,
    WeightNames,
    activation,
    first_id,
    ids,
    sides,
    token_id,
)
from tandem.workers.models.families.siglip import siglip, siglip_names
from tandem.workers.models.spec import FrontSpec, ModelSpec, Rotary, StackSpec, Window

_SLIDING, _FULL = "sliding_attention", "full_attention"


def _stack(config: Config, windows: tuple[Window | None, ...], **special: Any) -> StackSpec:
    if config.get("attention_bias"):
        raise ModelLoadError("is not supported", field="attention_bias")
    head = config.get("head_dim", 256)
    return StackSpec(
        vocab_size=config["vocab_size"],
        layers=config["num_hidden_layers"],
        d_model=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=head,
        d_ff=config["intermediate_size"],
        activation=activation(config, "hidden_activation", "gelu_new"),
        gated=True,
        norm="rms_plus_one",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        output_norm=True,
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=config["hidden_size"] ** 0.5,
        windows=windows,
        **special,
    )


def _windows(config: Config, window: Window, full_every: int) -> tuple[Window | None, ...]:
    """Each layer's window. By default the last of every `full_every` layers sees everything."""
    layers = config["num_hidden_layers"]
    kinds = config.get("layer_types") or [
        _SLIDING if (layer + 1) % full_every else _FULL for layer in range(layers)
    ]
    if len(kinds) != layers or not set(kinds) <= {_SLIDING, _FULL}:
        raise ModelLoadError(
            f"must name {_SLIDING} or {_FULL} for each of {layers} layers", field="layer_types"
        )
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def _rotary(config: Config, values: Config, base: float) -> Rotary:
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ModelLoadError(f"rope_type {kind!r} is not supported", field="rope_parameters")
    return Rotary(
        dimensions=config.get("head_dim", 256),
        base=values.get("rope_theta") or base,
        factor=float(values.get("factor", 1.0)) if kind == "linear" else 1.0,
    )


def _stack1(config: Config, decodes: bool) -> StackSpec:
    width = config.get("sliding_window", 4096)
    window = Window(width - 1, 0) if decodes else Window(width, width)
    # transformers 5 writes `rope_parameters`; older files hold its values at the top level.
    values = config.get("rope_parameters") or {**config, **(config.get("rope_scaling") or {})}
    return _stack(
        config,
        _windows(config, window, 2),
        softcap=config.get("attn_logit_softcapping", 50.0),
        rotary=_rotary(config, values, 10_000.0),
        max_positions=config.get("max_position_embeddings", 8192),
    )


def _stack2(config: Config, decodes: bool) -> StackSpec:
    if config.get("attn_logit_softcapping") is not None:
        raise ModelLoadError("is not supported", field="attn_logit_softcapping")
    width = config.get("sliding_window", 4096)
    # The window counts the query itself; the encoder's is centred on it.
    window = Window(width - 1, 0) if decodes else Window((width + 1) // 2 - 1, width // 2)
    # The same, with a base for each kind of layer.
    values = config.get("rope_parameters") or {
        _FULL: {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})},
        _SLIDING: {"rope_theta": config.get("rope_local_base_freq")},
    }
    return _stack(
        config,
        _windows(config, window, config.get("sliding_window_pattern", 6)),
        qk_norm=True,
        merged_attention=decodes,
        rotary=_rotary(config, values.get(_FULL) or {}, 1_000_000.0),
        window_rotary=_rotary(config, values.get(_SLIDING) or {}, 10_000.0),
        max_positions=config.get("max_position_embeddings", 131_072),
    )


def _spec(
    family: str, stack: Callable[[Config, bool], StackSpec], capped: float | None
) -> Callable[[Config], ModelSpec]:
    def spec(config: Config) -> ModelSpec:
        encoder, decoder = config["encoder"], config["decoder"]
        start, bos, pad = (
            first_id(key, config, decoder)
            for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id")
        )
        # What ends an image may stand in a text, too.
        end_of_image = encoder.get("eoi_token_index", 256_000) if "text_config" in encoder else None

        def made(values: Config, decodes: bool) -> StackSpec:
            has = end_of_image is not None and end_of_image < values["vocab_size"]
            return replace(stack(values, decodes), own_vector=end_of_image if has else None)

        text = made(encoder.get("text_config", encoder), False)
        return ModelSpec(
            family=family,
            encoder=replace(text, front=_front(config, text)),
            decoder=made(decoder, True),
            logit_softcap=decoder.get("final_logit_softcapping", capped),
            decoder_start_id=(2 if bos is None else bos) if start is None else start,
            pad_id=0 if pad is None else pad,
            eos_ids=ids(config, "eos_token_id") or ids(decoder, "eos_token_id", 1),
        )

    return spec


def _reads_images(config: Config) -> bool:
    """Whether the model's folder says how: one without an image processor is of a model of text."""
    return "image_processor" in config and bool(config["encoder"].get("vision_config"))


def _front(config: Config, text: StackSpec) -> FrontSpec | None:
    if not _reads_images(config):
        return None
    encoder = config["encoder"]
    # The encoder's own is not what transformers reads.
    placeholder = token_id(config, "image_token_index", 256_001)
    if not 0 <= placeholder < (text.vocab_size or 0):
        raise ModelLoadError(f"{placeholder} is not in the vocabulary", field="image_token_index")
    return siglip(encoder["vision_config"], encoder.get("mm_tokens_per_image", 256), placeholder)


def _names(*encoders: str) -> Callable[[Config, ModelSpec], WeightNames]:
    """encoders: what the encoder's stack may be called, as published first."""
    prefixes = {"encoder": encoders, "decoder": ("model.decoder",)}

    def names(_: Config, spec: ModelSpec) -> WeightNames:
        def either(side: str, name: str) -> tuple[str, ...]:
            return tuple(f"{prefix}.{name}.weight" for prefix in prefixes[side])

        encoder, decoder = either("encoder", "embed_tokens"), either("decoder", "embed_tokens")
        # The first generation's stacks have an embedding each, the second's share the encoder's.
        shared = encoder if spec.decoder.merged_attention else ()
        names: WeightNames = {
            "encoder.embedding": encoder,
            "decoder.embedding": decoder + shared,
            "decoder.output": ("lm_head.out_proj.weight", *decoder, *shared),
        }
        front = None if spec.encoder is None else spec.encoder.front
        if front is not None and front.siglip is not None:
            names |= siglip_names("encoder.front", _ENCODER, front.siglip)
        for side, stack in sides(spec):
            names[f"{side}.final_norm"] = either(side, "norm")
            if stack.own_vector is not None:
                alike = prefixes[side] + prefixes["encoder"]
                stored = (f"{prefix}.embed_tokens.eoi_embedding" for prefix in alike)
                names[f"{side}.own_vector"] = (*stored, None)
            for i in range(stack.layers):
                for ours, theirs in _layer(stack, side == "decoder").items():
                    names[f"{side}.layers.{i}.{ours}"] = either(side, f"layers.{i}.{theirs}")
        return names

    return names


def _layer(stack: StackSpec, decodes: bool) -> dict[str, str]:
    norms = ("q", "k") if stack.qk_norm else ()
    found = {
        "self_attention.norm": "pre_self_attn_layernorm",
        "self_attention.output_norm": "post_self_attn_layernorm",
        "feed_forward.norm": "pre_feedforward_layernorm",
        "feed_forward.output_norm": "post_feedforward_layernorm",
        **{f"self_attention.{part}": f"self_attn.{part}_proj" for part in "qkvo"},
        **{f"self_attention.{part}_norm": f"self_attn.{part}_norm" for part in norms},
        **{f"feed_forward.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    }
    if decodes and stack.merged_attention:  # one projection makes both kinds of keys
        found |= {f"cross_attention.{part}": f"self_attn.{part}_proj" for part in "kv"}
        found |= {"cross_attention.k_norm": "self_attn.k_norm"} if norms else {}
    elif decodes:
        found |= {f"cross_attention.{part}": f"cross_attn.{part}_proj" for part in "qkvo"}
        found |= {
            "cross_attention.norm": "pre_cross_attn_layernorm",
            "cross_attention.output_norm": "post_cross_attn_layernorm",
        }
    return found


_ENCODER = "model.encoder."
# The vector of the token that ends an image, where that is no token of the vocabulary, and the tower's
# pooling head, of which the projector reads nothing.
_UNUSED = ("*.eoi_embedding", *(f"{_ENCODER}vision_tower.{it}head.*" for it in ("", "vision_model.")))
_IMAGES = (f"{_ENCODER}vision_tower.*", f"{_ENCODER}multi_modal_projector.*")


def _unread(config: Config) -> tuple[str, ...]:
    return () if _reads_images(config) else _IMAGES


FAMILIES = {
    "t5gemma": Family(_spec("t5gemma", _stack1, 30.0), _names("model.encoder")),
    "t5gemma2": Family(
        _spec("t5gemma2", _stack2, None),
        _names("model.encoder", "model.encoder.text_model"),
        _UNUSED,
        _unread,
    ),
}
