"""BEiT and Swin, held to transformers' encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BeitConfig,
    DonutSwinConfig,
    GPT2Config,
    SwinConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)

from tandem.errors import ModelLoadError
from tandem.workers.distributed import Group
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.families import spec_of
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import load_encoder

_BEIT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "patch_size": 4,
}  # fmt: skip
_SWIN = {"patch_size": 2, "embed_dim": 8, "num_heads": [2, 4], "depths": [2, 4], "window_size": 4}
_DECODER = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10)

CONFIGS = {
    "beit": BeitConfig(**_BEIT, image_size=[20, 12]),
    "beit-layers": BeitConfig(**_BEIT, image_size=[20, 12], use_relative_position_bias=True),
    "beit-shared": BeitConfig(
        **_BEIT, image_size=16, use_shared_relative_position_bias=True, use_mean_pooling=False,
        use_absolute_position_embeddings=True, use_mask_token=True, layer_scale_init_value=0.0,
    ),
    # Neither the patches nor the windows of the stages divide the image.
    "swin": SwinConfig(**_SWIN, image_size=[35, 21]),
    "swin-no-bias": SwinConfig(**_SWIN, image_size=32, qkv_bias=False, layer_norm_eps=1e-3),
    # The second stage is one window high: it is not shifted.
    "donut-swin": DonutSwinConfig(**_SWIN, image_size=[16, 44], mlp_ratio=1.5),
    "donut-swin-stages": DonutSwinConfig(
        **_SWIN | {"num_heads": [1, 2, 8], "depths": [1, 2, 2], "window_size": 3}, image_size=[52, 30]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_hidden_states(name: str, tmp_path: Path) -> None:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(CONFIGS[name], _DECODER)
    model = VisionEncoderDecoderModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in model.encoder.parameters():
        weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(tmp_path)
    encoder = load_encoder(Checkpoint(tmp_path), Placement(torch.device("cpu"), torch.float32, Group()))
    front = encoder.spec.front
    assert front is not None
    pixels = torch.randn(3, *front.features, generator=generator)
    expected = model.encoder(pixels).last_hidden_state
    assert expected.shape == (3, front.positions, encoder.spec.d_model)

    count = 3 * front.positions
    places = torch.arange(count)
    assert encoder.front is not None
    x = encoder.embed(torch.full((count,), front.placeholder_id), places, encoder.front(pixels))
    made = encoder.encode(x, [front.positions] * 3)
    torch.testing.assert_close(made.view(expected.shape), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "changed", "field", "why"),
    [
        ("swin", {"use_absolute_embeddings": True}, "use_absolute_embeddings", "not supported"),
        ("swin", {"num_heads": [2]}, "num_heads", "must be 2 numbers"),
        ("swin", {"num_heads": [3, 4]}, "num_heads", "3 heads do not divide the width 8"),
        ("swin", {"window_size": 12}, "window_size", "12 is more than the 18 x 11 positions"),
        ("swin", {"window_size": 7}, "window_size", "7 is more than the 9 x 6 positions of stage 1"),
        ("beit", {"patch_size": [4, 2]}, "patch_size", "one number"),
        ("beit", {"use_absolute_position_embeddings": True}, "use_absolute_position_embeddings", "square"),
        (
            "beit-shared",
            {"use_relative_position_bias": True},
            "use_relative_position_bias",
            "does not go with",
        ),
        (
            "beit",
            {"model_type": "clip_vision_model"},
            "encoder",
            "not served as encoder; served are vit, deit,",
        ),
    ],
)
def test_what_is_not_supported_is_refused(config: str, changed: dict[str, Any], field: str, why: str) -> None:
    encoder = CONFIGS[config].to_dict() | changed
    with pytest.raises(ModelLoadError, match=why) as refused:
        spec_of({"model_type": "vision-encoder-decoder", "encoder": encoder, "decoder": _DECODER.to_dict()})
    assert refused.value.field == field


_BASE = {"embed_dim": 128, "depths": [2, 2, 14, 2], "num_heads": [4, 8, 16, 32], "window_size": 10}


@pytest.mark.parametrize(
    ("config", "positions", "width"),
    [
        (DonutSwinConfig(**_BASE, image_size=[2560, 1920]), 4800, 1024),  # Donut
        (DonutSwinConfig(**_BASE, image_size=[1280, 960]), 1200, 1024),  # fine-tuned on receipts
        (DonutSwinConfig(**_BASE | {"window_size": 7}, image_size=[896, 672]), 588, 1024),  # Nougat
        (SwinConfig(), 49, 768),
        (BeitConfig(image_size=384), 577, 768),
    ],
)
def test_positions_of_published_sizes(config: Any, positions: int, width: int) -> None:
    stack = spec_of(
        {"model_type": "vision-encoder-decoder", "encoder": config.to_dict(), "decoder": _DECODER.to_dict()}
    ).encoder
    assert stack is not None
    assert stack.front is not None
    assert (stack.front.positions, stack.max_positions, stack.d_model) == (positions, positions, width)
