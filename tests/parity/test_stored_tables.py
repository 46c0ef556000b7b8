"""Tables and buffers that a checkpoint holds though they can be computed: transformers reads some of them and
computes the others anew, and so does Tandem. Each is stored here with values of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import whisper
from models import EOS, decoding, load_reference, make_checkpoint, reference_greedy
from parity import Answers, greedy, serve
from safetensors.torch import load_file, save_file

from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.engine import Engine
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.families import spec_of
from tandem.workers.models.layers import Placement
from tandem.workers.models.model_folder import read_json
from tandem.workers.models.stacks import load_encoder

PROMPTS = [(*range(first, first + length), EOS) for first, length in ((40, 17), (9, 33))]
TOKENS = 8
Weights = dict[str, torch.Tensor]
Plain = Callable[[str], Answers]


@pytest.fixture(scope="module")
def plain(checkpoint: Callable[..., Path]) -> Plain:
    """A variant's answers as it was made."""
    return cache(lambda variant: transformers_answers(checkpoint(variant), PROMPTS))


def transformers_answers(folder: Path, prompts: list[tuple[int, ...]]) -> Answers:
    return reference_greedy(load_reference(folder), prompts, TOKENS)[0]


def answers(folder: Path, prompts: list[tuple[int, ...]] = PROMPTS) -> Answers:
    """Tandem's, which are transformers'."""
    engine = Engine(
        EngineConfig(
            str(folder), dtype="float32", device="cpu", max_num_seqs=4, page_size=8, max_encoder_length=64,
            max_decoder_length=80,
        )
    )  # fmt: skip
    requests = greedy(prompts, spec_of(read_json(folder, "config.json")).decoder_start_id)
    found = serve(engine, [replace(one, decoding=decoding(max_tokens=TOKENS)) for one in requests])
    assert found == transformers_answers(folder, prompts)
    return found


def edited(folder: Path, to: Path, change: Callable[[Weights], object]) -> Path:
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    change(weights)
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    return to


def noise(like: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(like.shape, generator=torch.Generator().manual_seed(3))


def put(**tables: torch.Tensor) -> Callable[[Weights], None]:
    return lambda weights: weights.update(tables)


SIDES = ["encoder", "decoder"]
POSITIONS = [f"model.{side}.embed_positions.weight" for side in SIDES]


@pytest.mark.parametrize(
    ("variant", "stored"),
    [
        ("pegasus", POSITIONS[:1]),
        ("pegasus", POSITIONS[1:]),
        ("marian", POSITIONS),
        ("marian-two-vocabularies", POSITIONS[1:]),
    ],
)
def test_position_tables_count(
    variant: str, stored: list[str], checkpoint: Callable[..., Path], plain: Plain, tmp_path: Path
) -> None:
    tables = {name: noise(torch.empty(160, 32)) for name in stored}
    folder = edited(checkpoint(variant), tmp_path / "model", put(**tables))
    assert answers(folder) != plain(variant)


def test_where_none_is_stored_it_is_computed(
    checkpoint: Callable[..., Path], plain: Plain, tmp_path: Path
) -> None:
    def take(weights: Weights) -> None:
        for name in POSITIONS:
            weights.pop(name, None)

    for variant in ("pegasus", "marian"):
        folder = edited(checkpoint(variant), tmp_path / variant, take)
        assert answers(folder) == plain(variant)


LEARNED = {
    **dict.fromkeys(("bart", "mbart", "plbart", "blenderbot", "blenderbot-small"), POSITIONS),
    "bert2gpt2": ["encoder.embeddings.position_embeddings.weight", "decoder.transformer.wpe.weight"],
    "roberta2roberta": ["decoder.roberta.embeddings.position_embeddings.weight"],
    "gpt2": ["transformer.wpe.weight"],
    "longt5-tglobal": [
        "encoder.block.0.layer.0.TransientGlobalSelfAttention.global_relative_attention_bias.weight"
    ],
    "umt5": ["decoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"],
}


@pytest.mark.parametrize("variant", LEARNED)
def test_learned_tables_count(
    variant: str, checkpoint: Callable[..., Path], plain: Plain, tmp_path: Path
) -> None:
    def change(weights: Weights) -> None:
        for name in LEARNED[variant]:
            weights[name] = noise(weights[name])

    folder = edited(checkpoint(variant), tmp_path / "model", change)
    assert answers(folder) != plain(variant)


# Of older files: buffers that transformers makes by itself, and a bias that its T5 does not have.
COMPUTED = {
    "m2m-100": {f"model.{side}.embed_positions.weights": (163, 32) for side in SIDES},
    "pegasus": {f"model.{side}.embed_positions.weights": (160, 32) for side in SIDES},
    "marian": {f"model.{side}.embed_positions.weights": (160, 32) for side in SIDES},
    "nllb": {f"model.{side}.embed_positions.weight": (163, 32) for side in SIDES},
    "phi": {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (8,) for layer in range(2)},
    "gpt2": {"transformer.h.0.attn.bias": (1, 1, 192, 192), "transformer.h.0.attn.masked_bias": ()},
    "bert2gpt2": {
        "encoder.embeddings.position_ids": (1, 170),
        "decoder.transformer.h.1.crossattention.bias": (1, 1, 64, 64),
    },
    "bart": {"model.encoder.version": (1,), "model.decoder.version": (1,)},
    "t5": {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (32, 4)},
}


@pytest.mark.parametrize("variant", COMPUTED)
def test_what_is_passed_over_transformers_does_not_read(
    variant: str, checkpoint: Callable[..., Path], plain: Plain, tmp_path: Path
) -> None:
    tables = {name: noise(torch.empty(shape)) for name, shape in COMPUTED[variant].items()}
    folder = edited(checkpoint(variant), tmp_path / "model", put(**tables))
    assert answers(folder) == plain(variant)


@pytest.mark.parametrize("stored", [True, False])
def test_whispers_encoder(stored: bool, tmp_path: Path) -> None:
    name = "model.encoder.embed_positions.weight"

    def change(weights: Weights) -> None:
        weights[name] = noise(weights[name])
        if not stored:
            del weights[name]

    folder = edited(whisper.make_whisper(tmp_path / "made", "base"), tmp_path / "model", change)
    reference = whisper.Reference(folder)
    features = reference.features(whisper.sound(0))
    with torch.no_grad():
        expected = reference.model.get_encoder()(features).last_hidden_state[0]
    encoder = load_encoder(Checkpoint(folder), Placement(torch.device("cpu"), torch.float32, Group()))
    count = len(expected)
    ids = torch.zeros(count, dtype=torch.int64)
    assert encoder.front is not None
    vectors = encoder.embed(ids, torch.arange(count), encoder.front(features))
    found = encoder.encode(vectors, [count])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_token_that_ends_an_image_has_a_vector_of_its_own(tmp_path: Path) -> None:
    """T5Gemma 2's, in a text; it is not scaled as the others are."""
    made = make_checkpoint(tmp_path / "made", "t5gemma2")
    config = (made / "config.json").read_text()
    assert '"eoi_token_index": 129' in config
    (made / "config.json").write_text(config.replace('"eoi_token_index": 129', '"eoi_token_index": 81'))

    def change(weights: Weights) -> None:
        for name in weights:
            if name.endswith("eoi_embedding"):
                weights[name] = noise(weights[name], 3.0)

    folder = edited(made, tmp_path / "model", change)
    with_it, without = [(*range(5, 9), EOS), (*range(70, 90), EOS)], [(*range(40, 57), EOS)]
    assert answers(folder, with_it) != transformers_answers(made, with_it)
    assert answers(folder, without) == transformers_answers(made, without)
