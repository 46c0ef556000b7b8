"""Swin, and Donut's, encoders of images: halves of vision encoder-decoder models (`encoder_decoder.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import Config, WeightNames, activation, affine, head_dim
from tandem.workers.models.families.halves.half import EncoderHalf
from tandem.workers.models.families.halves.vit import front_alone, sides
from tandem.workers.models.spec import FrontSpec, StackSpec, SwinSpec


def _swin(*, normed: bool) -> Callable[[Config], StackSpec]:
    """normed: there is a norm after the last stage."""

    def stack(config: Config) -> StackSpec:
        if config.get("use_absolute_embeddings"):
            raise ModelLoadError("is not supported", field="use_absolute_embeddings")
        depths, heads = tuple(config["depths"]), tuple(config["num_heads"])
        if len(depths) != len(heads) or not depths:
            raise ModelLoadError(f"must be {len(depths)} numbers, as depths, got {heads}", field="num_heads")
        image, patch, width = sides(config, "image_size"), sides(config, "patch_size"), config["embed_dim"]
        grids = [(-(-image[0] // patch[0]), -(-image[1] // patch[1]))]
        for _ in depths[1:]:
            grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
        window = config["window_size"]
        for stage, grid in enumerate(grids):
            head_dim(width << stage, heads[stage], "num_heads")
            if min(grid) < window:
                raise ModelLoadError(
                    f"{window} is more than the {grid[0]} x {grid[1]} positions of stage {stage}, of "
                    f"images of {list(image)} pixels",
                    field="window_size",
                )
        spec = SwinSpec(
            patch=patch,
            width=width,
            depths=depths,
            heads=heads,
            grids=tuple(grids),
            window=window,
            mlp_ratio=config.get("mlp_ratio", 4.0),
            activation=activation(config, "hidden_act", "gelu"),
            norm_eps=config.get("layer_norm_eps", 1e-5),
        )
        front = FrontSpec(
            kind="swin",
            modality="image",
            placeholder_id=0,
            positions=grids[-1][0] * grids[-1][1],
            features=(config.get("num_channels", 3), *image),
            swin=spec,
        )
        return front_alone(front, width << (len(depths) - 1), spec.norm_eps, normed=normed)

    return stack


def _names(stack: StackSpec, side: str, prefix: str) -> WeightNames:
    assert stack.front is not None
    assert stack.front.swin is not None
    front = f"{side}.front"
    names: WeightNames = {
        **affine(f"{front}.patches", f"{prefix}embeddings.patch_embeddings.projection"),
        **affine(f"{front}.norm", f"{prefix}embeddings.norm"),
    }
    if not stack.post_norm:
        names |= affine(f"{side}.final_norm", f"{prefix}layernorm")
    depths = stack.front.swin.depths
    for stage, depth in enumerate(depths):
        ours, theirs = f"{front}.stages.{stage}", f"{prefix}encoder.layers.{stage}"
        for i in range(depth):
            layer, block = f"{ours}.layers.{i}", f"{theirs}.blocks.{i}"
            for part, module in _LAYER.items():
                names |= affine(f"{layer}.{part}", f"{block}.{module}")
            for part in "qkv":  # without `qkv_bias` there is none
                names[f"{layer}.self_attention.{part}.bias"] += (None,)
            names[f"{layer}.bias"] = (f"{block}.attention.self.relative_position_bias_table",)
        if stage < len(depths) - 1:
            names |= affine(f"{ours}.merging.norm", f"{theirs}.downsample.norm")
            names[f"{ours}.merging.reduction"] = (f"{theirs}.downsample.reduction.weight",)
    return names


_LAYER: Final = {
    "self_attention.q": "attention.self.query",
    "self_attention.k": "attention.self.key",
    "self_attention.v": "attention.self.value",
    "self_attention.o": "attention.output.dense",
    "self_attention.norm": "layernorm_before",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward.norm": "layernorm_after",
}
# By the `model_type` of a half's config.
HALVES: Final = {
    "swin": EncoderHalf(_swin(normed=True), _names),
    "donut-swin": EncoderHalf(_swin(normed=False), _names),
}
