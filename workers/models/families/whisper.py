"""Whisper, all sizes: an encoder of audio, a decoder of text. Distil-Whisper and turbo have fewer decoder
layers."""

from __future__ import annotations

from typing import Final, Literal

from tandem.errors import ModelLoadError
from tandem.workers.models.families.bart import either_prefix, stack_names
from tandem.workers.models.families.entry import (
    Config,
    Family,
    WeightNames,
    activation,
    affine,
    head_dim,
    ids,
    sides,
    token_id,
)
from tandem.workers.models.spec import FrontSpec, ModelSpec, PositionTable, StackSpec

_FRAMES_PER_POSITION: Final = 2  # the second convolution's stride
_EOS: Final = 50256


def _spec(config: Config) -> ModelSpec:
    if config.get("use_weighted_layer_sum"):
        raise ModelLoadError("is for audio classification, not served", field="use_weighted_layer_sum")
    d_model, positions = config["d_model"], config.get("max_source_positions", 1500)
    front = FrontSpec(
        kind="audio_convolutions",
        modality="audio",
        placeholder_id=0,
        positions=positions,
        features=(config.get("num_mel_bins", 80), _FRAMES_PER_POSITION * positions),
    )

    def stack(side: Literal["encoder", "decoder"]) -> StackSpec:
        heads = config[f"{side}_attention_heads"]
        width = head_dim(d_model, heads, f"{side}_attention_heads")
        encodes = side == "encoder"
        return StackSpec(
            vocab_size=None if encodes else config["vocab_size"],
            front=front if encodes else None,
            layers=config[f"{side}_layers"],
            d_model=d_model,
            heads=heads,
            head_dim=width,
            d_ff=config[f"{side}_ffn_dim"],
            activation=activation(config, "activation_function", "gelu"),
            bias=True,
            norm="layer",
            norm_eps=1e-5,
            attention_scale=width**-0.5,
            max_positions=positions if encodes else config.get("max_target_positions", 448),
            positions=PositionTable("sinusoidal_tensor2tensor" if encodes else "learned"),
        )

    return ModelSpec(
        family="whisper",
        encoder=stack("encoder"),
        decoder=stack("decoder"),
        one_vocabulary=False,
        decoder_start_id=config.get("decoder_start_token_id", 50257),
        pad_id=token_id(config, "pad_token_id", _EOS),
        eos_ids=ids(config, "eos_token_id", _EOS),
    )


def _names(_: Config, spec: ModelSpec) -> WeightNames:
    tokens = either_prefix("decoder.embed_tokens.weight")
    names: WeightNames = {
        "decoder.embedding": tokens,
        "decoder.output": ("proj_out.weight", *tokens),
        **affine("encoder.front.conv1", *either_prefix("encoder.conv1")),
        **affine("encoder.front.conv2", *either_prefix("encoder.conv2")),
    }
    for side, stack in sides(spec):
        names |= stack_names(stack, side, *either_prefix(f"{side}."))
        for ours in list(names):
            if ours.startswith(side) and ours.endswith("attention.k.bias"):
                names[ours] = (None,)  # there is none
    return names


FAMILIES = {"whisper": Family(_spec, _names)}
