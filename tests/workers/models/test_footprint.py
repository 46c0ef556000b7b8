"""What Llama 3.2 Vision takes, from its configs alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

from tandem.workers.config import EngineConfig
from tandem.workers.models.families import spec_of
from tandem.workers.models.footprint import Footprint

LONG = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
# As published: text and vision config where they differ from the defaults.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "11B": ({"rope_parameters": LONG}, {"image_size": 448}),
    "11B-Instruct": ({"rope_parameters": LONG}, {"image_size": 560}),
    "90B-Instruct": (
        {
            "rope_parameters": LONG,
            "hidden_size": 8192,
            "num_hidden_layers": 100,
            "num_attention_heads": 64,
            "intermediate_size": 28_672,
            "cross_attention_layers": list(range(3, 100, 5)),
        },
        {"image_size": 560},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_llama_vision(name: str) -> None:
    text, vision = PUBLISHED[name]
    config = MllamaConfig(text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = MllamaForConditionalGeneration(config)
    spec = spec_of(config.to_dict())
    seen = model.model.vision_model, model.model.multi_modal_projector
    encoder = sum(weight.numel() for part in seen for weight in part.parameters())
    decoder = sum(weight.numel() for weight in model.parameters()) - encoder

    def footprint(**options: Any) -> Footprint:
        how = EngineConfig.of(model="", device="cuda", kv_cache_gib=16.0, **options)
        return Footprint.of_spec(spec, how, tied=False)

    half, full = footprint(dtype="bfloat16"), footprint(dtype="float32")
    assert (half.encoder_weights, half.decoder_weights) == (2 * encoder, 2 * decoder)
    assert (full.encoder_weights, full.decoder_weights) == (4 * encoder, 4 * decoder)
    # A position of an image has K and V in the layers alone that attend to it.
    crossing = len(config.text_config.cross_attention_layers)
    layers = config.text_config.num_hidden_layers
    assert half.cross_kv_per_position == 2 * crossing * 8 * 128 * 2
    assert half.self_kv_per_position == 2 * (layers - crossing) * 8 * 128 * 2
    assert half.hidden_states_per_position == 2 * config.text_config.hidden_size
    assert spec.item_positions == 4 * ((vision["image_size"] // 14) ** 2 + 1)
    ranks = footprint(dtype="bfloat16", tensor_parallel_size=4)
    assert ranks.cross_kv_per_position == half.cross_kv_per_position // 4
    # The vision model, as all fronts, is whole on every rank; so are norms and gates of the decoder.
    assert ranks.encoder_weights == half.encoder_weights
    assert 0 <= ranks.decoder_weights - half.decoder_weights // 4 < 2**22
    # Pages of both kinds are of one size.
    image = -(-spec.item_positions // (64 * spec.cross_planes))
    assert half.sequences(spec.item_positions, 64) == half.pages // (image + 1)
