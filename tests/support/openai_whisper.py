"""openai-whisper as an oracle, where it is installed: its package has the name of a module here."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import WhisperForConditionalGeneration

_NAMES = {
    "encoder.layer_norm": "encoder.ln_post", "decoder.layer_norm": "decoder.ln",
    "decoder.embed_tokens": "decoder.token_embedding", "embed_positions.weight": "positional_embedding",
    "layers": "blocks", "encoder_attn_layer_norm": "cross_attn_ln", "self_attn_layer_norm": "attn_ln",
    "final_layer_norm": "mlp_ln", "encoder_attn": "cross_attn", "self_attn": "attn", "q_proj": "query",
    "k_proj": "key", "v_proj": "value", "out_proj": "out", "fc1": "mlp.0", "fc2": "mlp.2",
}  # fmt: skip


def openai_whisper() -> Any:
    """The package."""
    name = "whisper_of_openai"
    if name not in sys.modules:
        try:
            folder = Path(str(distribution("openai-whisper").locate_file("whisper")))
        except PackageNotFoundError:
            pytest.skip("openai-whisper is not installed")
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def openai_model(folder: Path) -> Any:
    """Its `Whisper` with the weights of transformers' checkpoint."""
    package = openai_whisper()
    theirs = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    config = theirs.config
    model = package.model.Whisper(
        package.model.ModelDimensions(
            n_mels=config.num_mel_bins, n_audio_ctx=config.max_source_positions,
            n_audio_state=config.d_model, n_audio_head=config.encoder_attention_heads,
            n_audio_layer=config.encoder_layers, n_vocab=config.vocab_size,
            n_text_ctx=config.max_target_positions, n_text_state=config.d_model,
            n_text_head=config.decoder_attention_heads, n_text_layer=config.decoder_layers,
        )
    )  # fmt: skip
    state = {}
    for name, weight in theirs.model.state_dict().items():
        for one, other in _NAMES.items():
            name = name.replace(one, other)
        state[name] = weight
    model.load_state_dict(state)
    heads = torch.zeros(config.decoder_layers, config.decoder_attention_heads, dtype=torch.bool)
    for layer, head in theirs.generation_config.alignment_heads:
        heads[layer, head] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model.eval()
