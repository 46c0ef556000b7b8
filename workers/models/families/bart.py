"""The BART-like families: one layout; they differ in where they normalize and how they count positions.

BART, mBART and mBART-50, PLBart, Blenderbot and Blenderbot-small, Pegasus, Marian (OPUS-MT), and M2M100,
which NLLB uses, too.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from tandem.workers.models.families.entry import (
    Config,
    Family,
    Part,
    WeightNames,
    activation,
    affine,
    head_dim,
    ids,
    sides,
    token_id,
)
from tandem.workers.models.families.halves.half import DecoderHalf
from tandem.workers.models.spec import (
    Activation,
    EmbeddingNorm,
    ModelSpec,
    PositionKind,
    PositionTable,
    StackSpec,
)


@dataclass(frozen=True)
class _Kind:
    """What transformers' code, not the config, says of a family, and its config's defaults."""

    family: str
    _: KW_ONLY
    post_norm: bool = False
    embedding_norms: tuple[EmbeddingNorm, EmbeddingNorm] = (None, None)  # the encoder's and the decoder's
    positions: PositionKind = "learned"
    stored: bool = True  # see PositionTable
    offset: int | None = 0  # the first position's row; None: the one after the pad id's
    output_bias: bool = True
    pad: int = 1  # default token ids
    eos: int = 2
    start: int | None = None  # None: BOS
    activation: Activation = "gelu"
    scale_embedding: bool = False
    max_positions: int = 1024

    def stack(self, config: Config, side: Literal["encoder", "decoder"], vocab_size: int) -> StackSpec:
        pad = token_id(config, "pad_token_id", self.pad)
        heads = config[f"{side}_attention_heads"]
        width = head_dim(config["d_model"], heads, f"{side}_attention_heads")
        scaled = config.get("scale_embedding", self.scale_embedding)
        return StackSpec(
            vocab_size=vocab_size,
            layers=config[f"{side}_layers"],
            d_model=config["d_model"],
            heads=heads,
            head_dim=width,
            d_ff=config[f"{side}_ffn_dim"],
            activation=activation(config, "activation_function", self.activation),
            bias=True,
            norm="layer",
            norm_eps=1e-5,
            post_norm=self.post_norm,
            attention_scale=width**-0.5,
            embedding_scale=config["d_model"] ** 0.5 if scaled else 1.0,
            embedding_norm=self.embedding_norms[side == "decoder"],
            max_positions=config.get("max_position_embeddings", self.max_positions),
            positions=PositionTable(
                self.positions, pad + 1 if self.offset is None else self.offset, self.stored
            ),
        )

    def spec(self, config: Config) -> ModelSpec:
        shared = config["vocab_size"]
        separate = not config.get("share_encoder_decoder_embeddings", True)
        own = config.get("decoder_vocab_size") if separate else None
        start, bos = config.get("decoder_start_token_id", self.start), token_id(config, "bos_token_id", 0)
        return ModelSpec(
            family=self.family,
            encoder=self.stack(config, "encoder", shared),
            decoder=self.stack(config, "decoder", own or shared),
            one_vocabulary=own is None,
            output_bias=self.output_bias,
            decoder_start_id=bos if start is None else start,
            pad_id=token_id(config, "pad_token_id", self.pad),
            eos_ids=ids(config, "eos_token_id", self.eos),
        )

    def half(self) -> DecoderHalf:
        """Its decoder, where it is a part of another model."""
        return DecoderHalf(
            lambda config: self.stack(config, "decoder", config["vocab_size"]),
            half_names,
            "model.decoder.",
            {"decoder.output": _OUTPUT},
        )

    def names(self, _: Config, spec: ModelSpec) -> WeightNames:
        encoder, decoder, shared = (
            either_prefix(name)
            for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "shared.weight")
        )
        names: WeightNames = {
            "encoder.embedding": encoder + shared + decoder + _OUTPUT,
            "decoder.embedding": decoder + shared + _OUTPUT + encoder,
            "decoder.output": _OUTPUT + shared + decoder + encoder,
        }
        if spec.output_bias:
            names["decoder.output.bias"] = (Part("final_logits_bias", row=True), None)
        for side, stack in sides(spec):
            names |= stack_names(stack, side, *either_prefix(f"{side}."))
        return names


def stack_names(stack: StackSpec, side: str, *prefixes: str) -> WeightNames:
    """Weight names of a stack of this layout, but for its embedding. Its own begin with one of `prefixes`."""

    def named(module: str) -> list[str]:
        return [prefix + module for prefix in prefixes]

    names: WeightNames = {}
    if stack.positions is not None and stack.positions.stored:
        # A table that can be computed may be absent.
        absent = () if stack.positions.kind == "learned" else (None,)
        names[f"{side}.positions"] = (*named("embed_positions.weight"), *absent)
    if stack.embedding_norm is not None:
        names |= affine(f"{side}.embedding_norm", *named("layernorm_embedding"))
    if not stack.post_norm:
        names |= affine(f"{side}.final_norm", *named("layer_norm"))
    for i in range(stack.layers):
        for ours, theirs in LAYER.items():
            if side == "decoder" or not ours.startswith("cross"):
                names |= affine(f"{side}.layers.{i}.{ours}", *named(f"layers.{i}.{theirs}"))
    return names


def half_names(stack: StackSpec, side: str, prefix: str) -> WeightNames:
    """Weight names of such a stack as a half of another model."""
    return {f"{side}.embedding": (f"{prefix}embed_tokens.weight",), **stack_names(stack, side, prefix)}


def either_prefix(name: str) -> tuple[str, str]:
    """A weight's name in files saved with the output projection, and without it."""
    return f"model.{name}", name


_OUTPUT = ("lm_head.weight",)
LAYER = {
    "self_attention.q": "self_attn.q_proj",
    "self_attention.k": "self_attn.k_proj",
    "self_attention.v": "self_attn.v_proj",
    "self_attention.o": "self_attn.out_proj",
    "self_attention.norm": "self_attn_layer_norm",
    "cross_attention.q": "encoder_attn.q_proj",
    "cross_attention.k": "encoder_attn.k_proj",
    "cross_attention.v": "encoder_attn.v_proj",
    "cross_attention.o": "encoder_attn.out_proj",
    "cross_attention.norm": "encoder_attn_layer_norm",
    "feed_forward.up": "fc1",
    "feed_forward.down": "fc2",
    "feed_forward.norm": "final_layer_norm",
}
# Older files number their layout, and hold position vectors under a name of which transformers reads none.
_UNUSED = ("*.version", "*.embed_positions.weights")
_COMPUTED = ("*.embed_positions.weight",)  # anew, for the families whose table is not stored

BART = _Kind("bart", post_norm=True, embedding_norms=("sum", "sum"), offset=2, start=2)
MBART = _Kind("mbart", embedding_norms=("sum", "sum"), offset=2)
_KINDS = (
    BART,
    MBART,
    _Kind("plbart", post_norm=True, embedding_norms=("sum", "sum"), offset=2, scale_embedding=True),
    _Kind("blenderbot", pad=0, start=1, max_positions=128),
    _Kind(
        "blenderbot-small", post_norm=True, embedding_norms=("sum", "tokens"), pad=0, start=1,
        max_positions=512,
    ),
    _Kind("pegasus", positions="sinusoidal", pad=0, start=0, eos=1),
    _Kind("marian", post_norm=True, positions="sinusoidal", pad=58100, start=58100, eos=0),
    _Kind(
        "m2m_100", positions="sinusoidal_tensor2tensor", stored=False, offset=None, output_bias=False,
        start=2, activation="relu", scale_embedding=True,
    ),
)  # fmt: skip

HALVES = {kind.family: kind.half() for kind in (BART, MBART)}  # decoders of images

FAMILIES = {
    kind.family: Family(kind.spec, kind.names, _UNUSED if kind.stored else _UNUSED + _COMPUTED)
    for kind in _KINDS
}
