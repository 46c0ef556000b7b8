"""Tiny random Florence-2 checkpoints, laid out as the published ones are."""

from __future__ import annotations

from typing import Any

from transformers import Florence2Config

WORDS = 60


def florence_config(
    vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None
) -> Florence2Config:
    """Unequal widths, depths and heads; the special ids are the published ones."""
    return Florence2Config(
        vision_config={
            "embed_dim": [8, 12, 16], "depths": [1, 2, 1], "patch_size": [7, 3, 2], "patch_stride": [4, 1, 2],
            "patch_padding": [3, 1, 0], "patch_prenorm": [False, True, True], "num_heads": [2, 3, 4],
            "num_groups": [4, 3, 2], "window_size": 5, "mlp_ratio": 2.5, "projection_dim": 32,
            "max_position_embeddings": 14, "max_temporal_embeddings": 7, **(vision or {}),
        },
        text_config={
            "model_type": "bart", "vocab_size": 200, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2,
            "encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 64, "max_position_embeddings": 160, **(text or {}),
        },
        image_token_id=150,
    )  # fmt: skip
