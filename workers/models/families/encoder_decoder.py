"""transformers' EncoderDecoderModel and VisionEncoderDecoderModel: an encoder of text or of images, and a
decoder, each a model of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families import bart, gpt2
from tandem.workers.models.families.entry import (
    Config,
    Family,
    WeightNames,
    affine,
    either,
    first_id,
    ids,
)
from tandem.workers.models.families.halves import beit, bert, swin, trocr, vit
from tandem.workers.models.families.halves.half import DecoderHalf, EncoderHalf
from tandem.workers.models.spec import ModelSpec

_TEXT: Final = "encoder-decoder"
_VISION: Final = "vision-encoder-decoder"
# By the family, and the `model_type` of a half's config.
_ENCODERS: Final[Mapping[str, Mapping[str, EncoderHalf]]] = {
    _TEXT: bert.HALVES,
    _VISION: {**vit.HALVES, **beit.HALVES, **swin.HALVES},
}
_OF_BOTH: Final = {**bert.HALVES, "gpt2": gpt2.HALF}
_DECODERS: Final[Mapping[str, Mapping[str, DecoderHalf]]] = {
    _TEXT: _OF_BOTH,
    _VISION: {**_OF_BOTH, **bart.HALVES, "trocr": trocr.HALF},
}


def _halves(config: Config) -> tuple[tuple[Config, EncoderHalf], tuple[Config, DecoderHalf]]:
    """The encoder's and the decoder's config, and what the decoder's says of them."""
    family = config["model_type"]
    return _half(config, "encoder", _ENCODERS[family]), _half(config, "decoder", _DECODERS[family])


def _half(config: Config, side: str, served: Mapping[str, Any]) -> tuple[Config, Any]:
    part: dict[str, Any] = config[side]
    kind = str(part.get("model_type"))
    if kind not in served:
        raise ModelLoadError(
            f"model_type {kind!r} is not served as {side}; served are {', '.join(served)}", field=side
        )
    return part, served[kind]


def _spec(config: Config) -> ModelSpec:
    (encoder, encoder_half), (decoder, decoder_half) = _halves(config)
    stacks = encoder_half.stack(encoder), decoder_half.stack(decoder)
    encoder_width, width = (stack.d_model for stack in stacks)
    read = decoder.get("cross_attention_hidden_size")
    if read not in (None, encoder_width):
        raise ModelLoadError(
            f"must be the encoder's width, {encoder_width}, got {read}", field="cross_attention_hidden_size"
        )
    if read not in (None, width) and not decoder_half.any_width:
        raise ModelLoadError(
            f"a decoder of model_type {decoder['model_type']!r} reads its own width, {width}, got {read}",
            field="cross_attention_hidden_size",
        )
    start, bos, pad = (
        first_id(key, config, decoder) for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    )
    eos = ids(config, "eos_token_id") or ids(decoder, "eos_token_id")
    return ModelSpec(
        family=config["model_type"],
        encoder=stacks[0],
        decoder=stacks[1],
        one_vocabulary=encoder["model_type"] == decoder["model_type"],
        enc_to_dec_proj=encoder_width != width and read is None,
        output_transform=decoder_half.transform(decoder),
        output_bias="decoder.output.bias" in decoder_half.head,
        # Donut's tasks have start tokens of their own.
        prompt_is_start=encoder["model_type"] == "donut-swin",
        decoder_start_id=bos if start is None else start,
        pad_id=(eos[0] if eos else 0) if pad is None else pad,
        eos_ids=eos,
    )


def _names(config: Config, spec: ModelSpec) -> WeightNames:
    (_, encoder), (_, decoder) = _halves(config)
    assert spec.encoder is not None
    prefixes = ["encoder."], [f"decoder.{decoder.base}"]
    if config["model_type"] == _TEXT and config.get(
        "tie_encoder_decoder"
    ):  # either stack's weights serve both
        prefixes = prefixes[0] + prefixes[1], prefixes[1] + prefixes[0]
    names: WeightNames = {
        **either(*(encoder.names(spec.encoder, "encoder", prefix) for prefix in prefixes[0])),
        **either(*(decoder.names(spec.decoder, "decoder", prefix) for prefix in prefixes[1])),
    }
    for ours, theirs in decoder.head.items():
        names[ours] = tuple(f"decoder.{name}" for name in theirs)
    names["decoder.output"] += names["decoder.embedding"]
    if spec.enc_to_dec_proj:
        names |= affine("enc_to_dec_proj", "enc_to_dec_proj")
    return names


_UNUSED = ("encoder.pooler.*", "*.position_ids", *gpt2.UNUSED)

FAMILIES = {
    _TEXT: Family(_spec, _names, _UNUSED),
    _VISION: Family(_spec, _names, (*_UNUSED, *vit.UNUSED, *beit.UNUSED, *trocr.UNUSED)),
}
