"""The scripts of examples/seeds that train: what they save is served with transformers' answers and loss."""

from __future__ import annotations

import random
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainable import make_bert, make_t5
from transformers import AutoTokenizer, EncoderDecoderModel, T5ForConditionalGeneration

from tandem import LLM, RequestOutput, SamplingParams, ScoreOutput

EXAMPLES = Path(__file__).parents[2] / "examples" / "seeds"
Script = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs a script in an empty folder; returns its global names."""

    def script(name: str, *arguments: object) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        random.seed(0)
        torch.manual_seed(0)
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return script


def texts_of(script: str) -> str:
    return (EXAMPLES / script).read_text(encoding="utf-8")


@torch.no_grad()
def check(reference: Any, outputs: list[RequestOutput], scores: list[ScoreOutput], **how: Any) -> None:
    """The served answers are those of `generate`, the scores the model's loss."""
    for output, score in zip(outputs, scores, strict=True):
        prompt = torch.tensor([output.encoder_prompt_token_ids])
        expected = reference.generate(input_ids=prompt, do_sample=False, **how)
        assert output.outputs[0].token_ids == expected[0, 1:].tolist()
        [target] = score.scores
        loss = reference(input_ids=prompt, labels=torch.tensor([target.token_ids])).loss
        assert target.loss == pytest.approx(float(loss), abs=1e-4)


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_a_t5_that_trainer_trained(run: Script, tmp_path: Path) -> None:
    base = make_t5(tmp_path / "t5", texts_of("t5_finetune.py"))
    found = run("t5_finetune.py", base)
    trained = T5ForConditionalGeneration.from_pretrained(tmp_path / "results").eval()
    before = T5ForConditionalGeneration.from_pretrained(base)
    assert not torch.equal(trained.shared.weight, before.shared.weight)
    check(trained, found["outputs"], found["scores"], max_new_tokens=20)

    # Trainer's own checkpoint, with its optimizer and all: the same model.
    [checkpoint] = (tmp_path / "results").glob("checkpoint-*")
    assert {path.name for path in checkpoint.iterdir()} >= {"optimizer.pt", "training_args.bin"}
    params = SamplingParams(temperature=0, max_tokens=20)
    with LLM(str(checkpoint), dtype="float32") as llm:
        again = llm.generate(found["train_texts"], params)
    assert [one.outputs for one in again] == [one.outputs for one in found["outputs"]]


@pytest.mark.filterwarnings("ignore")
def test_a_t5_that_learns_instructions(
    run: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_t5(tmp_path / "t5", texts_of("t5_instructions.py"))
    found = run("t5_instructions.py", base, 60, 0.01)
    trained = T5ForConditionalGeneration.from_pretrained(tmp_path / "instructions").eval()
    check(trained, found["outputs"], found["scores"], max_new_tokens=40)
    for output, label in zip(found["outputs"], found["labels"], strict=True):
        assert output.outputs[0].text == label, "it was learnt by heart"
    assert "Generated: The capital of France is Paris." in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("two", [False, True])
def test_an_encoder_decoder_of_two_checkpoints(two: bool, run: Script, tmp_path: Path) -> None:
    base = make_bert(tmp_path / "bert", texts_of("bert2bert_finetune.py"))
    other = [make_bert(tmp_path / "other", texts_of("bert2bert_finetune.py"))] if two else []
    found = run("bert2bert_finetune.py", base, *other)
    check_encoder_decoder(found, tmp_path / "bert2bert", 60)
    assert len(found["llm"].tokenize(found["text"])) > 100


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_decoder_of_two_configs(run: Script, tmp_path: Path) -> None:
    base = make_bert(tmp_path / "bert", texts_of("bert2bert_from_configs.py"))
    found = run("bert2bert_from_configs.py", base, base)
    check_encoder_decoder(found, tmp_path / "bert2bert-from-configs", 20)


def check_encoder_decoder(found: dict[str, Any], folder: Path, length: int) -> None:
    [score] = found["llm"].score(found["text"], found.get("summary", found.get("label")))
    [target] = score.scores
    assert target.token_ids == found["labels"][0].tolist()
    assert target.loss == pytest.approx(float(found["loss"]), abs=1e-4), (
        "the loss of the model that was saved"
    )
    reference = EncoderDecoderModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {"decoder_start_token_id": tokenizer.cls_token_id, "pad_token_id": tokenizer.pad_token_id}
    how = {"max_new_tokens": length, "eos_token_id": tokenizer.sep_token_id, **ids}
    check(reference, found["outputs"], [score], **how)
