"""`tandem compose`: two checkpoints become one that Tandem and transformers read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import PAD, word_tokenizer
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner, Result

from tandem import LLM, SamplingParams
from tandem.cli import app

_BERT: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40,
}  # fmt: skip


def part(folder: Path, model: PreTrainedModel, *, vocabulary: int = 60, **special: str) -> str:
    model.save_pretrained(folder)
    tokenizer = word_tokenizer(vocabulary)
    tokenizer.add_special_tokens(dict(special))
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bert(tmp_path: Path) -> str:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**_BERT))
    return part(tmp_path / "bert", model, cls_token="ba", sep_token="be")


def tandem(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["compose", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def test_bert2bert(bert: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    decoder = part(
        tmp_path / "decoder",
        BertLMHeadModel(BertConfig(**{**_BERT, "num_hidden_layers": 1})),
        cls_token="ba", sep_token="be",
    )  # fmt: skip
    outs = [tmp_path / name for name in ("one", "two", "three")]
    for out, seed in zip(outs, "001", strict=True):
        shown = tandem("--encoder", bert, "--decoder", decoder, "--out", str(out), "--seed", seed)
        assert shown.stdout.strip() == str(out)
        assert "Fine-tune it before use" in shown.stderr
        assert "10 weights of the cross-attention are random" in shown.stderr
        assert not (out / "decoder_tokenizer").exists()

    config = json.loads((outs[0] / "config.json").read_text())
    ids = [config[f"{name}_token_id"] for name in ("decoder_start", "eos", "pad")]
    assert ids == [3, 4, PAD]
    one, two, three = (load_file(out / "model.safetensors") for out in outs)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], three[name])} == {
        name for name in one if "crossattention" in name and "LayerNorm" not in name and "bias" not in name
    }
    theirs = load_file(Path(bert) / "model.safetensors")
    assert all(torch.equal(one[f"encoder.{name}"], theirs[name]) for name in theirs)

    with LLM(str(outs[0]), dtype="float32") as llm:
        (output,) = llm.generate(["da de di"], SamplingParams(max_tokens=6, temperature=0))
    reference = EncoderDecoderModel.from_pretrained(outs[0]).eval()
    prompt = torch.tensor([output.encoder_prompt_token_ids])
    expected = reference.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=False)
    assert prompt.shape == (1, 4)
    assert list(output.outputs[0].token_ids) == expected[0, 1:].tolist()


def test_bert2gpt2_has_two_tokenizers(bert: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    decoder = part(
        tmp_path / "gpt2",
        GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=24, n_layer=1, n_head=2, n_positions=32)),
        vocabulary=90,
    )
    out = tmp_path / "out"
    shown = tandem("--encoder", bert, "--decoder", decoder, "--out", str(out))
    assert "a tokenizer of its own" in shown.stderr
    with LLM(str(out), dtype="float32") as llm:
        (output,) = llm.generate(["ba be"], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    words = json.loads((out / "decoder_tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    named = {number: word for word, number in words.items()}
    ids = output.outputs[0].token_ids
    assert output.outputs[0].text.split() == [named[one] for one in ids if one > 2]


def test_what_does_not_go_together_is_refused(bert: str, tmp_path: Path) -> None:
    t5 = part(
        tmp_path / "t5", T5ForConditionalGeneration(T5Config(vocab_size=60, d_model=16, num_layers=1, d_ff=8))
    )
    out = tmp_path / "out"
    shown = tandem("--encoder", bert, "--decoder", t5, "--out", str(out), code=1)
    assert "'t5' is not served as decoder" in shown.stderr
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    shown = tandem("--encoder", bert, "--decoder", bert, "--out", str(out), code=1)
    assert "not an empty folder" in shown.stderr
    shown = tandem("--encoder", str(tmp_path / "none"), "--decoder", bert, "--out", str(out), code=1)
    assert "no folder" in shown.stderr
