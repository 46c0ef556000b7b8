"""What models take, from their configs alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from florence import make_florence
from llama_shapes import COUNTS, TILE, folder_of
from mllama import make_mllama
from models import VARIANTS
from t5gemma2 import make_t5gemma2
from transformers import MllamaConfig, MllamaForConditionalGeneration
from vision import make_vision
from whisper import make_whisper

from tandem.workers.config import EngineConfig
from tandem.workers.models.families import spec_of
from tandem.workers.models.footprint import Footprint
from tandem.workers.models.model_folder import has_weights, read_config


def test_published_sizes() -> None:
    """What the models' names, and their pages, round."""
    assert {name: sum(counts.values()) for name, counts in COUNTS.items()} == {
        "11B": 10_670_220_835,
        "90B": 88_593_355_323,
    }


@pytest.mark.parametrize("name", COUNTS)
def test_llama_vision(name: str, tmp_path: Path) -> None:
    """Each part by hand, the whole as transformers builds it; config.json is all there is."""
    folder_of(name, tmp_path)
    config = MllamaConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = MllamaForConditionalGeneration(config)
    counts = COUNTS[name]
    seen = model.model.vision_model, model.model.multi_modal_projector
    assert sum(weight.numel() for part in seen for weight in part.parameters()) == counts["front"]
    assert sum(weight.numel() for weight in model.parameters()) == sum(counts.values())

    def footprint(**options: Any) -> Footprint:
        return Footprint.of(EngineConfig.of(model=str(tmp_path), num_pages=100, **options))

    half, full = (footprint(device="cuda", dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert half.parts == {part: 2 * count for part, count in counts.items()}
    assert full.parts == {part: 4 * count for part, count in counts.items()}
    assert (half.encoder_weights, half.decoder_weights) == (
        2 * counts["front"],
        2 * (sum(counts.values()) - counts["front"]),
    )
    # A position of an image has K and V in the layers alone that attend to it.
    text = config.text_config
    crossing = len(text.cross_attention_layers)
    assert half.cross_kv_per_position == 2 * crossing * 8 * 128 * 2
    assert half.self_kv_per_position == 2 * (text.num_hidden_layers - crossing) * 8 * 128 * 2
    assert half.hidden_states_per_position == 2 * text.hidden_size
    spec = spec_of(read_config(tmp_path))
    assert spec.item_positions == 4 * TILE
    for ranks in (2, 4, 8):
        shared = footprint(device="cuda", dtype="bfloat16", tensor_parallel_size=ranks)
        assert shared.cross_kv_per_position == half.cross_kv_per_position // ranks
        # The vision model, as all fronts, is whole on every rank; so are norms and gates of the decoder.
        assert shared.parts["front"] == half.parts["front"]
        for part in ("cross_attention", "decoder", "vocabulary"):
            assert 0 <= shared.parts[part] - half.parts[part] // ranks < 2**22
    # int8 takes a byte for each weight of a projection, and four for its outputs' scales and for all others.
    quantized = footprint(device="cpu", dtype="float32", quantization="int8")
    for part in ("cross_attention", "decoder"):
        assert counts[part] < quantized.parts[part] < 1.003 * counts[part]
    embedding = 128_264 * text.hidden_size
    assert 1 <= (quantized.parts["vocabulary"] - 4 * embedding) / (128_256 * text.hidden_size) < 1.01
    # Pages of both kinds are of one size.
    image = -(-spec.item_positions // (64 * spec.cross_planes))
    assert half.sequence_pages(spec.item_positions, 64) == image + 1
    assert half.sequences(spec.item_positions, 64) == 100 // (image + 1)
    assert half.page_bytes == 64 * half.self_kv_per_position


MAKERS: dict[str, Callable[[Path], Path]] = {
    "florence2": make_florence, "mllama": make_mllama, "whisper": lambda to: make_whisper(to, "base"),
    "trocr": lambda to: make_vision(to, "trocr"), "deit-trocr": lambda to: make_vision(to, "deit-trocr"),
    "t5gemma2 with images": make_t5gemma2,
}  # fmt: skip


def _bare(folder: Path, to: Path) -> Path:
    """Its files without its weights."""
    to.mkdir()
    for path in folder.glob("*.json"):
        (to / path.name).write_bytes(path.read_bytes())
    assert not has_weights(to)
    return to


def _footprint(folder: Path) -> Footprint:
    return Footprint.of(EngineConfig.of(model=str(folder), device="cpu", num_pages=1))


@pytest.mark.parametrize("made", [*VARIANTS, *MAKERS])
def test_without_weights_as_with_them(made: str, tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    """The weights say whether the output projection is the embedding; without them config.json does."""
    folder = MAKERS[made](tmp_path / "whole") if made in MAKERS else checkpoint(made)
    assert _footprint(_bare(folder, tmp_path / "bare")) == _footprint(folder)


@pytest.mark.parametrize(
    "made", ["t5", "bart", "gpt2", "phi", "t5gemma2", "florence2", "mllama", "whisper", "trocr"]
)
def test_a_config_that_does_not_say_what_is_tied(
    made: str, tmp_path: Path, checkpoint: Callable[..., Path]
) -> None:
    """transformers' default holds."""
    folder = MAKERS[made](tmp_path / "whole") if made in MAKERS else checkpoint(made)
    bare = _bare(folder, tmp_path / "bare")
    values = json.loads((bare / "config.json").read_text())
    for one in (values, values.get("text_config"), values.get("decoder")):
        if one is not None:
            one.pop("tie_word_embeddings", None)
    (bare / "config.json").write_text(json.dumps(values))
    assert _footprint(bare) == _footprint(folder)
