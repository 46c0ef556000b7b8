"""Folders as transformers' users save them: trained further, in half precision, in many files, with more
tokens, without a tokenizer. The answers and the loss are those of transformers with the same folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import EOS, VARIANTS, load_reference
from transformers import AutoTokenizer

from tandem import LLM, SamplingParams
from tandem.errors import ModelLoadError
from tandem.workers.models.model_folder import read_json

PROMPTS = [[5, 9, 40, EOS], [17, 3, 88, 21, 60, EOS], [100, 7, EOS]]
TARGETS = [[33, 8, EOS], [50, 51, 52, 53, EOS], [9, EOS]]
# One of each layout of weights, embeddings and heads, and the precision it is saved in.
LAYOUTS = {
    "t5": torch.bfloat16,
    "flan": torch.float16,
    "bart": torch.float16,
    "marian": torch.bfloat16,
    "bert2bert": torch.float16,
    "bert2gpt2": torch.bfloat16,
    "roberta2roberta": torch.bfloat16,
    "gpt2": torch.float16,
}


@pytest.fixture
def trained(checkpoint: Callable[..., Path]) -> Callable[[str], Any]:
    """A variant's model after a step of training."""

    def train(variant: str) -> Any:
        model = load_reference(checkpoint(variant))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        decoder_only = not model.config.is_encoder_decoder
        ids = torch.tensor([PROMPTS[1]])
        model(input_ids=ids, labels=ids if decoder_only else torch.tensor([TARGETS[1]])).loss.backward()
        optimizer.step()
        return model

    return train


def save(model: Any, checkpoint: Path, folder: Path, **options: Any) -> Path:
    """Saves a model that was trained from `checkpoint`, and its tokenizer."""
    model.save_pretrained(folder, **options)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


@torch.no_grad()
def check(folder: Path, prompts: list[list[int]] = PROMPTS, targets: list[list[int]] = TARGETS) -> None:
    """Answers and losses are those of the folder in transformers, in float32."""
    reference = load_reference(folder)
    decoder_only = not reference.config.is_encoder_decoder
    with LLM(str(folder), dtype="float32") as llm:
        inputs: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(inputs, SamplingParams(temperature=0, max_tokens=12))
        scores = llm.score(inputs, [{"prompt_token_ids": target} for target in targets])
    for prompt, target, output, score in zip(prompts, targets, outputs, scores, strict=True):
        ids = torch.tensor([prompt])
        expected = reference.generate(input_ids=ids, max_new_tokens=12, do_sample=False, use_cache=False)
        start = len(prompt) if decoder_only else 1
        assert output.outputs[0].token_ids == expected[0, start:].tolist()
        labels = torch.tensor([[-100] * len(prompt) + target if decoder_only else target])
        whole = torch.tensor([prompt + target]) if decoder_only else ids
        loss = float(reference(input_ids=whole, labels=labels).loss)
        [found] = score.scores
        assert found.loss == pytest.approx(loss, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_trained_further(
    variant: str, trained: Callable[[str], Any], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    dtype = LAYOUTS.get(variant, torch.float32)
    folder = save(trained(variant).to(dtype), checkpoint(variant), tmp_path, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").is_file() or dtype != torch.float32
    assert read_json(folder, "config.json")["dtype"] == str(dtype).removeprefix("torch.")
    # PLBart's labels end with what its decoder starts from.
    check(folder, targets=[[*target, 3] for target in TARGETS] if variant == "plbart" else TARGETS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", LAYOUTS)
def test_more_tokens(
    variant: str, trained: Callable[[str], Any], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """`add_tokens`, then `resize_token_embeddings`, which for an EncoderDecoderModel is each half's."""
    model, tokenizer = trained(variant), AutoTokenizer.from_pretrained(checkpoint(variant))
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<newest>"]})
    torch.manual_seed(0)
    multiple = (
        None if variant == "marian" else 8
    )  # transformers does not read what it writes of Marian's bias
    for part in (model.encoder, model.decoder) if hasattr(model.config, "encoder") else (model,):
        part.resize_token_embeddings(len(tokenizer), multiple, mean_resizing=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    new = tokenizer.convert_tokens_to_ids(["<new>", "<newer>", "<newest>"])
    assert min(new) >= 117
    check(tmp_path, [*PROMPTS, [new[0], 5, new[2], EOS]], [*TARGETS, [new[1], new[2], EOS]])
    with LLM(str(tmp_path), dtype="float32") as llm:
        assert llm.tokenize("ba <new> be")[1] == new[0]


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_elsewhere(
    trained: Callable[[str], Any], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """As a Trainer that was given no tokenizer saves a model."""
    trained("t5").save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(checkpoint("t5")).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ModelLoadError, match="give the folder or hub id of another") as caught:
        LLM(str(tmp_path / "model"))
    assert caught.value.field == "tokenizer"
    with LLM(str(tmp_path / "model"), tokenizer=str(tmp_path / "tokenizer"), dtype="float32") as llm:
        assert llm.get_tokenizer()("ba be bi").input_ids == llm.tokenize("ba be bi")
        (one,) = llm.generate("ba be bi")
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "model", dirs_exist_ok=True)
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        (other,) = llm.generate("ba be bi")
    assert one.outputs == other.outputs
