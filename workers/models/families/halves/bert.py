"""BERT and its kin, as halves of encoder-decoder models (`encoder_decoder.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import (
    Config,
    WeightNames,
    activation,
    affine,
    head_dim,
    token_id,
)
from tandem.workers.models.families.halves.half import DecoderHalf
from tandem.workers.models.spec import PositionTable, StackSpec


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

_ROBERTA = DecoderHalf(
    _bert(offset=True, token_types=2), _bert_names, "roberta.", _ROBERTA_HEAD, lambda _: "gelu"
)
# By the `model_type` of a half's config. Each serves as an encoder, too.
HALVES: Final[dict[str, DecoderHalf]] = {
    "bert": DecoderHalf(
        _bert(offset=False, token_types=2),
        _bert_names,
        "bert.",
        _BERT_HEAD,
        lambda config: activation(config, "hidden_act", "gelu"),
    ),
    "bert-generation": DecoderHalf(_bert(offset=False, token_types=0), _bert_names, "bert.", _PLAIN_HEAD),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
}
