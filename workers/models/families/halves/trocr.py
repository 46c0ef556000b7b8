"""TrOCR's decoder, a half of vision encoder-decoder models (`encoder_decoder.py`)."""

from __future__ import annotations

from typing import Final

from tandem.workers.models.families.bart import half_names
from tandem.workers.models.families.entry import Config, activation, head_dim, token_id
from tandem.workers.models.families.halves.half import DecoderHalf
from tandem.workers.models.spec import PositionTable, StackSpec


def _stack(config: Config) -> StackSpec:
    width, heads = config["d_model"], config["decoder_attention_heads"]
    head = head_dim(width, heads, "decoder_attention_heads")
    learned = config.get("use_learned_position_embeddings", True)
    after_pad = token_id(config, "pad_token_id", 1) + 1
    return StackSpec(
        vocab_size=config["vocab_size"],
        layers=config["decoder_layers"],
        d_model=width,
        heads=heads,
        head_dim=head,
        d_ff=config["decoder_ffn_dim"],
        activation=activation(config, "activation_function", "gelu"),
        bias=True,
        norm="layer",
        norm_eps=1e-5,
        post_norm=True,
        attention_scale=head**-0.5,
        embedding_scale=width**0.5 if config.get("scale_embedding", False) else 1.0,
        embedding_norm="sum" if config.get("layernorm_embedding", True) else None,
        max_positions=config.get("max_position_embeddings", 512),
        positions=PositionTable("learned", 2)
        if learned
        else PositionTable("sinusoidal_tensor2tensor", after_pad, stored=False),
    )


# The table of sines in older files.
UNUSED: Final = ("decoder.model.decoder.embed_positions._float_tensor",)
HALF: Final = DecoderHalf(
    _stack,
    half_names,
    "model.decoder.",
    {"decoder.output": ("output_projection.weight",)},
    any_width=True,
)
