"""BEiT, an encoder of images: a half of vision encoder-decoder models (`encoder_decoder.py`)."""

from __future__ import annotations

from typing import Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import Config, Part, WeightNames, activation, affine, head_dim
from tandem.workers.models.families.halves.half import EncoderHalf
from tandem.workers.models.families.halves.vit import LAYER, front_alone, sides
from tandem.workers.models.spec import BeitSpec, FrontSpec, StackSpec


def _stack(config: Config) -> StackSpec:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim(width, heads, "num_attention_heads")
    image, (patch, patch_width) = sides(config, "image_size"), sides(config, "patch_size")
    if patch != patch_width:
        raise ModelLoadError("must be one number of pixels", field="patch_size")
    shared, own = (
        config.get(key, False) for key in ("use_shared_relative_position_bias", "use_relative_position_bias")
    )
    if shared and own:
        raise ModelLoadError(
            "does not go with use_shared_relative_position_bias", field="use_relative_position_bias"
        )
    absolute = config.get("use_absolute_position_embeddings", False)
    if absolute and image[0] != image[1]:
        raise ModelLoadError("is for square images only", field="use_absolute_position_embeddings")
    beit = BeitSpec(
        patch=patch,
        layers=config["num_hidden_layers"],
        heads=heads,
        d_ff=config["intermediate_size"],
        activation=activation(config, "hidden_act", "gelu"),
        norm_eps=config.get("layer_norm_eps", 1e-12),
        positions=absolute,
        bias="shared" if shared else "layer" if own else None,
        scaled=config.get("layer_scale_init_value", 0.1) > 0,
    )
    front = FrontSpec(
        kind="beit",
        modality="image",
        placeholder_id=0,
        positions=1 + (image[0] // patch) * (image[1] // patch),
        features=(config.get("num_channels", 3), *image),
        beit=beit,
    )
    return front_alone(front, width, beit.norm_eps, normed=not config.get("use_mean_pooling", True))


def _names(stack: StackSpec, side: str, prefix: str) -> WeightNames:
    assert stack.front is not None
    assert stack.front.beit is not None
    spec, front = stack.front.beit, f"{side}.front"
    names: WeightNames = {
        **affine(f"{front}.patches", f"{prefix}embeddings.patch_embeddings.projection"),
        f"{front}.cls": (Part(f"{prefix}embeddings.cls_token", row=True),),
    }
    if not stack.post_norm:
        names |= affine(f"{side}.final_norm", f"{prefix}layernorm")
    if spec.positions:
        names[f"{front}.positions"] = (Part(f"{prefix}embeddings.position_embeddings", row=True),)
    table = "relative_position_bias.relative_position_bias_table"
    if spec.bias == "shared":
        names[f"{front}.bias"] = (f"{prefix}encoder.{table}",)
    for i in range(spec.layers):
        ours, theirs = f"{front}.layers.{i}", f"{prefix}encoder.layer.{i}"
        for part, module in LAYER.items():
            names |= affine(f"{ours}.{part}", f"{theirs}.{module}")
        del names[f"{ours}.self_attention.k.bias"]
        if spec.bias == "layer":
            names[f"{ours}.bias"] = (f"{theirs}.attention.attention.{table}",)
        if spec.scaled:
            names[f"{ours}.scales.0"] = (f"{theirs}.lambda_1",)
            names[f"{ours}.scales.1"] = (f"{theirs}.lambda_2",)
    return names


UNUSED: Final = ("encoder.*.relative_position_index",)
HALVES: Final = {"beit": EncoderHalf(_stack, _names)}
