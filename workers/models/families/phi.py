"""Phi-1, 1.5 and 2: decoders with rotary positions, whose attention and feed-forward run in parallel."""

from __future__ import annotations

from typing import Any

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
from tandem.workers.models.spec import ModelSpec, Rotary, StackSpec


def _spec(config: Config) -> ModelSpec:
    heads = config["num_attention_heads"]
    head = head_dim(config["hidden_size"], heads, "num_attention_heads")
    if config.get("num_key_value_heads") not in (None, heads):
        raise ModelLoadError("must be num_attention_heads", field="num_key_value_heads")
    if config.get("qk_layernorm"):
        raise ModelLoadError("is not supported", field="qk_layernorm")
    eos = ids(config, "eos_token_id", 2)
    return ModelSpec(
        family="phi",
        encoder=None,
        decoder=StackSpec(
            vocab_size=config["vocab_size"],
            layers=config["num_hidden_layers"],
            d_model=config["hidden_size"],
            heads=heads,
            head_dim=head,
            d_ff=config["intermediate_size"],
            activation=activation(config, "hidden_act", "gelu_new"),
            bias=True,
            norm="layer",
            norm_eps=config.get("layer_norm_eps", 1e-5),
            parallel_residual=True,
            attention_scale=head**-0.5,
            max_positions=config.get("max_position_embeddings", 2048),
            rotary=_rotary(config, head),
        ),
        output_bias=True,
        decoder_start_id=None,
        pad_id=token_id(config, "pad_token_id", eos[0] if eos else 0),
        eos_ids=eos,
    )


def _rotary(config: Config, head: int) -> Rotary:
    # transformers 5 writes `rope_parameters`; older files hold its values at the top level.
    values: dict[str, Any] = config.get("rope_parameters") or {}
    if config.get("rope_scaling") or values.get("rope_type", "default") != "default":
        raise ModelLoadError("scaled rotary positions are not supported", field="rope_scaling")
    found = {**config, **values}
    share = found.get("partial_rotary_factor", 0.5)
    return Rotary(dimensions=int(head * share), base=found.get("rope_theta", 10000.0))


def _names(_: Config, spec: ModelSpec) -> WeightNames:
    names: WeightNames = {
        "decoder.embedding": ("model.embed_tokens.weight",),
        "decoder.output": ("lm_head.weight", "model.embed_tokens.weight"),
        "decoder.output.bias": ("lm_head.bias", None),
        **affine("decoder.final_norm", "model.final_layernorm"),
    }
    for i in range(spec.decoder.layers):
        for ours, theirs in _LAYER.items():
            names |= affine(f"decoder.layers.{i}.{ours}", f"model.layers.{i}.{theirs}")
    return names


_LAYER = {
    "self_attention.q": "self_attn.q_proj",
    "self_attention.k": "self_attn.k_proj",
    "self_attention.v": "self_attn.v_proj",
    "self_attention.o": "self_attn.dense",
    "self_attention.norm": "input_layernorm",
    "feed_forward.up": "mlp.fc1",
    "feed_forward.down": "mlp.fc2",
}

FAMILIES = {"phi": Family(_spec, _names, ("*.rotary_emb.inv_freq",))}
