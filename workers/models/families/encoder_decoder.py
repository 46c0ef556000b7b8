"""transformers' EncoderDecoderModel: a BERT-like encoder, and a BERT-like one or GPT-2 as decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families import gpt2
from tandem.workers.models.families.entry import (
    Config,
    Family,
    WeightNames,
    activation,
    affine,
    either,
    first_id,
    head_dim,
    ids,
    sides,
    token_id,
)
from tandem.workers.models.spec import Activation, ModelSpec, PositionTable, StackSpec


@dataclass(frozen=True)
class _Half:
    """One of the two models that an encoder-decoder model is put together from."""

    stack: Callable[[Config], StackSpec]
    names: Callable[[StackSpec, str, str], WeightNames]  # from a stack, its side and its prefix
    base: str  # what the decoder calls the stack below its head
    head: WeightNames  # names after "decoder."
    transform: Callable[[Config], Activation | None] = lambda _: None
    encodes: bool = True


def _bert(*, offset: bool, token_types: int) -> Callable[[Config], StackSpec]:
    def stack(config: Config) -> StackSpec:
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise ModelLoadError("only absolute is supported", field="position_embedding_type")
        heads = config["num_attention_heads"]
        head = head_dim(config["hidden_size"], heads, "num_attention_heads")
        # RoBERTa's position 0 is the row after the pad id's.
        table = PositionTable("learned", offset=token_id(config, "pad_token_id", 1) + 1 if offset else 0)
        return StackSpec(
            vocab_size=config["vocab_size"],
            layers=config["num_hidden_layers"],
            d_model=config["hidden_size"],
            heads=heads,
            head_dim=head,
            d_ff=config["intermediate_size"],
            activation=activation(config, "hidden_act", "gelu"),
            bias=True,
            norm="layer",
            norm_eps=config.get("layer_norm_eps", 1e-12),
            post_norm=True,
            attention_scale=head**-0.5,
            embedding_norm="sum",
            token_types=config.get("type_vocab_size", token_types) if token_types else 0,
            max_positions=config.get("max_position_embeddings", 512) - table.offset,
            positions=table,
        )

    return stack


def _bert_names(stack: StackSpec, side: str, prefix: str) -> WeightNames:
    names: WeightNames = {
        f"{side}.embedding": (f"{prefix}embeddings.word_embeddings.weight",),
        f"{side}.positions": (f"{prefix}embeddings.position_embeddings.weight",),
        **affine(f"{side}.embedding_norm", f"{prefix}embeddings.LayerNorm"),
    }
    if stack.token_types:
        names[f"{side}.token_types"] = (f"{prefix}embeddings.token_type_embeddings.weight",)
    for i in range(stack.layers):
        for ours, theirs in _LAYER.items():
            if side == "decoder" or not ours.startswith("cross"):
                names |= affine(f"{side}.layers.{i}.{ours}", f"{prefix}encoder.layer.{i}.{theirs}")
    return names


_LAYER: Final = {
    "self_attention.q": "attention.self.query",
    "self_attention.k": "attention.self.key",
    "self_attention.v": "attention.self.value",
    "self_attention.o": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "cross_attention.q": "crossattention.self.query",
    "cross_attention.k": "crossattention.self.key",
    "cross_attention.v": "crossattention.self.value",
    "cross_attention.o": "crossattention.output.dense",
    "cross_attention.norm": "crossattention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}

_BERT_HEAD: WeightNames = {
    "decoder.output": ("cls.predictions.decoder.weight",),
    "decoder.output.bias": ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    **affine("decoder.transform", "cls.predictions.transform.dense"),
    **affine("decoder.transform_norm", "cls.predictions.transform.LayerNorm"),
}
_PLAIN_HEAD: WeightNames = {
    "decoder.output": ("lm_head.decoder.weight",),
    "decoder.output.bias": ("lm_head.decoder.bias", "lm_head.bias"),
}
_ROBERTA_HEAD: WeightNames = {
    **_PLAIN_HEAD,
    **affine("decoder.transform", "lm_head.dense"),
    **affine("decoder.transform_norm", "lm_head.layer_norm"),
}

_ROBERTA = _Half(_bert(offset=True, token_types=2), _bert_names, "roberta.", _ROBERTA_HEAD, lambda _: "gelu")
# By the `model_type` of a half's config.
_HALVES: Final[Mapping[str, _Half]] = {
    "bert": _Half(
        _bert(offset=False, token_types=2),
        _bert_names,
        "bert.",
        _BERT_HEAD,
        lambda config: activation(config, "hidden_act", "gelu"),
    ),
    "bert-generation": _Half(_bert(offset=False, token_types=0), _bert_names, "bert.", _PLAIN_HEAD),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "gpt2": _Half(
        gpt2.stack, gpt2.names, "transformer.", {"decoder.output": ("lm_head.weight",)}, encodes=False
    ),
}


def _half(config: Config, side: str) -> tuple[Config, _Half]:
    part: dict[str, Any] = config[side]
    kind = part.get("model_type")
    served = [name for name, half in _HALVES.items() if half.encodes or side == "decoder"]
    if kind not in served:
        raise ModelLoadError(
            f"model_type {kind!r} is not served as {side}; served are {', '.join(served)}", field=side
        )
    return part, _HALVES[kind]


def _spec(config: Config) -> ModelSpec:
    encoder, encoder_half = _half(config, "encoder")
    decoder, decoder_half = _half(config, "decoder")
    if decoder.get("cross_attention_hidden_size") is not None:
        raise ModelLoadError("is not supported", field="cross_attention_hidden_size")
    stacks = encoder_half.stack(encoder), decoder_half.stack(decoder)
    start, bos, pad = (
        first_id(key, config, decoder) for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    )
    eos = ids(config, "eos_token_id") or ids(decoder, "eos_token_id")
    return ModelSpec(
        family="encoder-decoder",
        encoder=stacks[0],
        decoder=stacks[1],
        one_vocabulary=encoder["model_type"] == decoder["model_type"],
        enc_to_dec_proj=stacks[0].d_model != stacks[1].d_model,
        output_transform=decoder_half.transform(decoder),
        output_bias="decoder.output.bias" in decoder_half.head,
        decoder_start_id=bos if start is None else start,
        pad_id=(eos[0] if eos else 0) if pad is None else pad,
        eos_ids=eos,
    )


def _names(config: Config, spec: ModelSpec) -> WeightNames:
    _, encoder = _half(config, "encoder")
    _, decoder = _half(config, "decoder")
    prefixes = {"encoder": ["encoder."], "decoder": [f"decoder.{decoder.base}"]}
    if config.get("tie_encoder_decoder"):  # either stack's weights serve both
        prefixes["encoder"], prefixes["decoder"] = (
            prefixes["encoder"] + prefixes["decoder"],
            prefixes["decoder"] + prefixes["encoder"],
        )
    names: WeightNames = {}
    for half, (side, stack) in zip((encoder, decoder), sides(spec), strict=True):
        names |= either(*(half.names(stack, side, prefix) for prefix in prefixes[side]))
    for ours, theirs in decoder.head.items():
        names[ours] = tuple(f"decoder.{name}" for name in theirs)
    names["decoder.output"] += names["decoder.embedding"]
    if spec.enc_to_dec_proj:
        names |= affine("enc_to_dec_proj", "enc_to_dec_proj")
    return names


_UNUSED = ("encoder.pooler.*", "*.position_ids", *gpt2.UNUSED)

FAMILIES = {"encoder-decoder": Family(_spec, _names, _UNUSED)}
