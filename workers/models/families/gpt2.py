"""GPT-2, alone or as the decoder of an encoder-decoder model (`encoder_decoder.py`)."""

from __future__ import annotations

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import (
    Config,
    Family,
    Part,
    WeightNames,
    activation,
    affine,
    either,
    head_dim,
    ids,
    token_id,
)
from tandem.workers.models.families.halves.half import DecoderHalf
from tandem.workers.models.spec import ModelSpec, PositionTable, StackSpec

# Buffers of older files: the causal mask.
UNUSED = ("*.attn.bias", "*.attn.masked_bias", "*.crossattention.bias", "*.crossattention.masked_bias")


def stack(config: Config) -> StackSpec:
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise ModelLoadError("is not supported", field="scale_attn_by_inverse_layer_idx")
    width = config["n_embd"]
    head = head_dim(width, config["n_head"], "n_head")
    return StackSpec(
        vocab_size=config["vocab_size"],
        layers=config["n_layer"],
        d_model=width,
        heads=config["n_head"],
        head_dim=head,
        d_ff=config.get("n_inner") or 4 * width,
        activation=activation(config, "activation_function", "gelu_new"),
        bias=True,
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        attention_scale=head**-0.5 if config.get("scale_attn_weights", True) else 1.0,
        max_positions=config.get("n_positions", 1024),
        positions=PositionTable("learned"),
    )


def _spec(config: Config) -> ModelSpec:
    eos = ids(config, "eos_token_id", 50256)
    return ModelSpec(
        family="gpt2",
        encoder=None,
        decoder=stack(config),
        decoder_start_id=None,
        pad_id=token_id(config, "pad_token_id", eos[0] if eos else 0),
        eos_ids=eos,
    )


def _names(_: Config, spec: ModelSpec) -> WeightNames:
    # Published files hold the model without its head.
    found = either(*(names(spec.decoder, "decoder", prefix) for prefix in ("transformer.", "")))
    alone = {ours: theirs for ours, theirs in found.items() if "cross_attention" not in ours}
    return {**alone, "decoder.output": ("lm_head.weight", *found["decoder.embedding"])}


def names(stack: StackSpec, side: str, prefix: str) -> WeightNames:
    """Weight names of a GPT2Model with cross-attention; its own begin with `prefix`."""
    names: WeightNames = {
        f"{side}.embedding": (f"{prefix}wte.weight",),
        f"{side}.positions": (f"{prefix}wpe.weight",),
        **affine(f"{side}.final_norm", f"{prefix}ln_f"),
    }
    for i in range(stack.layers):
        ours, theirs = f"{side}.layers.{i}", f"{prefix}h.{i}"
        names |= {
            **_conv(theirs, "attn.c_attn", *(f"{ours}.self_attention.{part}" for part in "qkv")),
            **_conv(theirs, "attn.c_proj", f"{ours}.self_attention.o"),
            **affine(f"{ours}.self_attention.norm", f"{theirs}.ln_1"),
            **_conv(theirs, "crossattention.q_attn", f"{ours}.cross_attention.q"),
            **_conv(theirs, "crossattention.c_attn", *(f"{ours}.cross_attention.{part}" for part in "kv")),
            **_conv(theirs, "crossattention.c_proj", f"{ours}.cross_attention.o"),
            **affine(f"{ours}.cross_attention.norm", f"{theirs}.ln_cross_attn"),
            **_conv(theirs, "mlp.c_fc", f"{ours}.feed_forward.up"),
            **_conv(theirs, "mlp.c_proj", f"{ours}.feed_forward.down"),
            **affine(f"{ours}.feed_forward.norm", f"{theirs}.ln_2"),
        }
    return names


def _conv(layer: str, module: str, *parts: str) -> WeightNames:
    """A Conv1D, which is a transposed projection, with our `parts` concatenated."""
    of = len(parts)
    return {
        name: (part,)
        for index, ours in enumerate(parts)
        for name, part in (
            (ours, Part(f"{layer}.{module}.weight", transposed=True, index=index, of=of)),
            (f"{ours}.bias", Part(f"{layer}.{module}.bias", index=index, of=of)),
        )
    }


HALF = DecoderHalf(stack, names, "transformer.", {"decoder.output": ("lm_head.weight",)})

FAMILIES = {"gpt2": Family(_spec, _names, UNUSED)}
