"""Florence-2: images, through DaViT, and text to text. Its language model is BART."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from tandem.errors import ModelLoadError
from tandem.workers.models.families import bart
from tandem.workers.models.families.entry import (
    Config,
    Family,
    WeightNames,
    activation,
    affine,
    sides,
    token_id,
)
from tandem.workers.models.spec import DavitSpec, DavitStage, FrontSpec, ModelSpec

# What an image is resized to where the model's image processor does not say: the published models'.
_SIDE: Final = 768  # pixels


def _spec(config: Config) -> ModelSpec:
    text = _inner(config, "text_config")
    if (kind := text.get("model_type", "bart")) != "bart":
        raise ModelLoadError(
            f"{kind!r} is the layout of before transformers had the model: convert it with transformers' "
            "convert_florence2_original_pytorch_to_hf.py, or give a converted one, such as those of "
            "florence-community",
            field="text_config.model_type",
        )
    spec = bart.BART.spec(text)
    assert spec.encoder is not None
    davit, features = _davit(config)
    positions = davit.grid[0] * davit.grid[1] + 1  # the first is the mean of the others
    said = _inner(config, "image_processor").get("image_seq_length", positions)
    if said != positions:
        raise ModelLoadError(
            f"{said} is not what an image takes: {davit.grid[0]} x {davit.grid[1]} positions and their mean",
            field="image_processor.image_seq_length",
        )
    projected = _inner(config, "vision_config").get("projection_dim", 1024)
    if projected != spec.encoder.d_model:
        raise ModelLoadError(
            f"{projected} is not the language model's d_model, {spec.encoder.d_model}",
            field="vision_config.projection_dim",
        )
    placeholder = token_id(config, "image_token_id", 51289)
    if not 0 <= placeholder < (spec.encoder.vocab_size or 0):
        raise ModelLoadError(f"{placeholder} is not in the vocabulary", field="image_token_id")
    front = FrontSpec(
        kind="davit",
        modality="image",
        placeholder_id=placeholder,
        positions=positions,
        features=features,
        davit=davit,
    )
    encoder = replace(spec.encoder, front=front)
    return replace(spec, family="florence2", encoder=encoder, output_bias=False)


def _davit(config: Config) -> tuple[DavitSpec, tuple[int, int, int]]:
    """The vision tower, and the shape of an image that it reads: channels, height and width."""
    vision = _inner(config, "vision_config")
    lists = {key: vision.get(key, default) for key, default in _LISTS.items()}
    for key, values in lists.items():
        if not isinstance(values, list | tuple) or len(values) != len(lists["embed_dim"]):
            raise ModelLoadError(
                f"must have one value for each of {len(lists['embed_dim'])} stages, got {values!r}",
                field=f"vision_config.{key}",
            )
    stages = tuple(
        DavitStage(
            blocks=blocks, width=width, heads=heads, groups=groups, patch=patch, stride=stride,
            padding=padding, norm_first=norm_first,
        )
        for width, blocks, patch, stride, padding, norm_first, heads, groups in zip(
            *lists.values(), strict=True
        )
    )  # fmt: skip
    for key, count in (("num_heads", "heads"), ("num_groups", "groups")):
        if any(stage.width % getattr(stage, count) for stage in stages):
            raise ModelLoadError("do not divide embed_dim", field=f"vision_config.{key}")
    size = _image_size(config)
    grid = size
    for stage in stages:
        grid = _convolved(grid[0], stage), _convolved(grid[1], stage)
    most = vision.get("max_position_embeddings", 50)
    if min(grid) < 1 or max(grid) > most:
        raise ModelLoadError(
            f"an image of {size[0]} x {size[1]} pixels has {grid[0]} x {grid[1]} positions, the model has "
            f"vectors for 1 to {most} rows and columns",
            field="image_processor.size",
        )
    davit = DavitSpec(
        stages=stages,
        window=vision.get("window_size", 12),
        mlp_ratio=vision.get("mlp_ratio", 4.0),
        qkv_bias=vision.get("qkv_bias", True),
        activation=activation(vision, "activation_function", "gelu"),
        max_side=most,
        max_frames=vision.get("max_temporal_embeddings", 100),
        grid=grid,
    )
    return davit, (vision.get("in_channels", 3), *size)


# Each stage's settings, in the order of `DavitStage`'s fields; transformers' defaults.
_LISTS: Final[dict[str, list[Any]]] = {
    "embed_dim": [128, 256, 512, 1024],
    "depths": [1, 1, 9, 1],
    "patch_size": [7, 3, 3, 3],
    "patch_stride": [4, 2, 2, 2],
    "patch_padding": [3, 1, 1, 1],
    "patch_prenorm": [False, True, True, True],
    "num_heads": [4, 8, 16, 32],
    "num_groups": [4, 8, 16, 32],
}


def _convolved(side: int, stage: DavitStage) -> int:
    return (side + 2 * stage.padding - stage.patch) // stage.stride + 1


def _image_size(config: Config) -> tuple[int, int]:
    """Height and width, in pixels, that every image is made to have."""
    images = _inner(config, "image_processor")
    key = "crop_size" if images and images.get("do_center_crop", True) else "size"
    size = images.get(key, {"height": _SIDE, "width": _SIDE})
    edges: list[Any] = [size.get(side) if isinstance(size, dict) else None for side in ("height", "width")]
    if not all(type(edge) is int and edge > 0 for edge in edges):
        raise ModelLoadError(f"must have a height and a width, got {size!r}", field=f"image_processor.{key}")
    return edges[0], edges[1]


def _inner(config: Config, key: str) -> Config:
    """A config within the config; {} where it is absent, whose values are then all defaults."""
    inner = config.get(key) or {}
    if not isinstance(inner, dict):
        raise ModelLoadError(f"must be an object, got {inner!r:.60}", field=key)
    return inner


def _names(_: Config, spec: ModelSpec) -> WeightNames:
    shared, encoder, decoder = (
        bart.either_prefix(f"language_model.{name}.weight")
        for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    )
    output = ("lm_head.weight",)
    names: WeightNames = {
        "encoder.embedding": shared + encoder + decoder + output,
        "decoder.embedding": shared + decoder + encoder + output,
        "decoder.output": output + shared + decoder + encoder,
    }
    for side, stack in sides(spec):
        names |= bart.stack_names(stack, side, *bart.either_prefix(f"language_model.{side}."))
    assert spec.encoder is not None
    assert spec.encoder.front is not None
    assert spec.encoder.front.davit is not None
    for module, bare in _vision(spec.encoder.front.davit):
        ours, theirs = f"encoder.front.vision_tower.{module}", bart.either_prefix(f"vision_tower.{module}")
        made = affine(ours, *theirs)
        names |= {ours: made[ours]} if bare else made
    projector = "multi_modal_projector"
    names |= affine("encoder.front.image_proj_norm", *bart.either_prefix(f"{projector}.image_proj_norm"))
    for ours, table in _TABLES.items():
        names[f"encoder.front.{ours}"] = bart.either_prefix(f"{projector}.{table}")
    names["encoder.front.times"] += (None,)
    return names


_TABLES: Final = {
    "image_projection": "image_projection.weight",
    "rows": "image_position_embed.row_embeddings.weight",
    "columns": "image_position_embed.column_embeddings.weight",
    "times": "visual_temporal_embed.pos_idx_to_embed",
}


def _vision(davit: DavitSpec) -> Iterator[tuple[str, bool]]:
    """The modules of the vision tower; whether one has no bias."""
    for number, stage in enumerate(davit.stages):
        yield f"convs.{number}.conv", False
        yield f"convs.{number}.norm", False
        for block in range(stage.blocks):
            for kind, attention in (("spatial", "window_attn"), ("channel", "channel_attn")):
                prefix = f"blocks.{number}.{block}.{kind}_block"
                yield f"{prefix}.{attention}.qkv", not davit.qkv_bias
                for module in ("conv1", "norm1", f"{attention}.proj", "conv2", "norm2", "ffn.fc1", "ffn.fc2"):
                    yield f"{prefix}.{module}", False


FAMILIES = {"florence2": Family(_spec, _names)}
