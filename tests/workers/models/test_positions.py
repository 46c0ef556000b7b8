"""Position vectors, against those transformers computes."""

from __future__ import annotations

import pytest
import torch
from transformers import PhiConfig
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaRotaryEmbedding
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

from tandem.workers.models.positions import rotary_speeds, sinusoidal, sinusoidal_tensor2tensor
from tandem.workers.models.spec import LongWaves, Rotary


@pytest.mark.parametrize("width", [32, 33])
def test_sinusoidal_is_marians(width: int) -> None:
    expected = MarianSinusoidalPositionalEmbedding(513, width).create_weight()
    assert torch.equal(sinusoidal(513, width), expected)


@pytest.mark.parametrize("width", [32, 33])
def test_sinusoidal_of_tensor2tensor_is_m2m100s(width: int) -> None:
    expected = M2M100SinusoidalPositionalEmbedding.get_embedding(1026, width)
    assert torch.equal(sinusoidal_tensor2tensor(1026, width), expected)


@pytest.mark.parametrize(("trained", "low", "high"), [(64, 1.0, 4.0), (8192, 1.0, 4.0), (40, 2.0, 32.0)])
def test_rotary_speeds_are_llama_3s(trained: int, low: float, high: float) -> None:
    scaling = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": low,
        "high_freq_factor": high, "original_max_position_embeddings": trained,
    }  # fmt: skip
    theirs = MllamaRotaryEmbedding(MllamaTextConfig(rope_parameters=scaling)).inv_freq
    ours = Rotary(128, 500_000.0, 8.0, LongWaves(trained, low, high))
    assert torch.equal(rotary_speeds(ours), theirs)


def test_rotary_speeds_are_phis() -> None:
    config = PhiConfig(hidden_size=64, num_attention_heads=2, partial_rotary_factor=0.5)
    theirs = PhiRotaryEmbedding(config).inv_freq
    assert torch.equal(rotary_speeds(Rotary(dimensions=16, base=10000.0)), theirs)
    assert torch.equal(rotary_speeds(Rotary(dimensions=16, base=10000.0, factor=8.0)), theirs / 8)
