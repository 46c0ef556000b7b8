"""The parts of an encoder pass add up to it, and the watched functions are put back."""

from __future__ import annotations

from pathlib import Path

import encoding
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, WhisperConfig, WhisperForConditionalGeneration

from tandem import kernels
from tandem.kernels import Linear

OPS = {"q, k, v", "attention's output", "feed-forward", "attention", "activation", "norms", "embedding"}


def test_ops_add_up_to_the_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    T5ForConditionalGeneration(
        T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=1000)
    ).save_pretrained(tmp_path)
    before = Linear.__call__, kernels.encoder_attention
    ops = encoding.measure(encoding.load(tmp_path, "float32"), 2, 7, 1, rate=1e9)["ops"]
    assert (Linear.__call__, kernels.encoder_attention) == before
    assert ops.keys() == OPS | {"rest"}
    assert sum(op["share"] for op in ops.values()) == pytest.approx(1)
    assert ops["attention"]["operations"] == 2 * 4 * 32 * 2 * 7**2
    assert ops["q, k, v"]["operations"] == 2 * 2 * 14 * 32 * 96
    assert ops["feed-forward"]["operations"] == 2 * 2 * 2 * 14 * 32 * 48


def test_convolutions_are_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=48,
            decoder_attention_heads=4, decoder_ffn_dim=48, max_source_positions=10,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    ops = encoding.measure(encoding.load(tmp_path, "int8"), 2, 10, 1, rate=1e9)["ops"]
    assert ops.keys() == OPS | {"convolutions", "rest"}
    # Two items of 20 frames and of 10, each with two more around it, whose outputs are computed, too.
    assert ops["convolutions"]["operations"] == 2 * 2 * 3 * 32 * (80 * 22 + 32 * 11)
