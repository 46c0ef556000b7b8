"""`tandem score`: a line for each target, with transformers' loss."""

from __future__ import annotations

import json
from typing import Any, Self

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner, Result

from tandem import ScoreOutput, TargetScore, quickstart
from tandem.cli import app

PROMPT = "translate English to French: I am tired."
TARGETS = ["Je suis fatigué.", "Je suis heureux."]


def tandem(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["score", *arguments], env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result


@torch.no_grad()
def test_the_loss_is_transformers() -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(quickstart.PATH, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(quickstart.PATH)
    losses = []
    for target in TARGETS:
        labels = tokenizer(text_target=target, return_tensors="pt").input_ids
        losses.append(model(**tokenizer(PROMPT, return_tensors="pt"), labels=labels).loss.item())
    assert losses[0] < losses[1]

    lines = [line.split("\t") for line in tandem(PROMPT, *TARGETS).stdout.splitlines()]
    assert [text for _, text in lines] == TARGETS
    assert [float(loss) for loss, _ in lines] == pytest.approx(losses, abs=1e-4)

    options = ["--from", "en", "--to", "fr", "--jsonl", "I am tired."]
    values = [json.loads(line) for line in tandem(*options, *TARGETS).stdout.splitlines()]
    assert [one["target"] for one in values] == TARGETS
    assert [one["loss"] for one in values] == pytest.approx(losses, abs=1e-4)
    for one in values:
        assert -sum(one["logprobs"]) / len(one["token_ids"]) == pytest.approx(one["loss"])


def test_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, target: str, **_: Any) -> None:
            assert target == "somewhere:9000"

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def score(self, prompt: str, targets: list[str], **options: Any) -> ScoreOutput:
            assert (prompt, targets, options["task"]) == ("a", ["b"], "summarization")
            return ScoreOutput("1", prompt, [3], None, [0], [TargetScore([4, 1], [-1.0, -2.0], -3.0)])

    monkeypatch.setattr("tandem.client.Client", Client)
    shown = tandem("--server", "somewhere:9000", "--task", "summarization", "a", "b")
    assert shown.stdout == "1.500000\tb\n"


def test_what_is_wrong_is_said() -> None:
    assert "targets.1: must not be empty" in tandem("a", "b", "", code=1).stderr
    assert "Missing argument" in tandem("a", code=2).stderr


def test_one_target_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [TargetScore([4, 1], [-1.0, -2.0], -3.0)]
    answer = ScoreOutput("1", "a", [3], None, [0], scores)
    monkeypatch.setattr("tandem.cli.text.score._score", lambda *_: answer)
    assert tandem("a", "b\nc\u2028d").stdout == "1.500000\tb c d\n"
