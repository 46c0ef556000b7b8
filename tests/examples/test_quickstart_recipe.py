"""The training recipe of the bundled model, run small: trains, resumes, exports what Tandem can serve."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

RECIPE = Path(__file__).parents[2] / "examples" / "quickstart_model"
NOUNS = ("dog", "cat", "house", "tree", "car", "book", "table", "river")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for language in ("fr", "de"):
        lines = [
            f"I see {n} {noun}s.\t{language} {n} {noun} {extra}."
            for noun in NOUNS
            for n in range(25)
            for extra in ("ab" if noun == "dog" else "a")
        ]
        (folder / f"tatoeba-en-{language}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(script: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(RECIPE / script), *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_trains_resumes_and_is_served_alike(data: Path, tmp_path: Path) -> None:
    args = ("--data", str(data), "--out", str(tmp_path), "--passes", "1", "--batch-tokens", "3000")
    run("train.py", *args)
    model = tmp_path / "model"
    with safe_open(model / "model.safetensors", "pt") as file:
        assert str(file.get_tensor("shared.weight").dtype) == "torch.float16"
    prefixes = json.loads((model / "config.json").read_text())["task_specific_params"]
    assert prefixes["translation_en_to_de"]["prefix"] == "translate English to German: "
    before = (model / "model.safetensors").read_bytes()

    assert "resumed at step" in run("train.py", *args)
    assert (model / "model.safetensors").read_bytes() == before, "nothing was left to do"

    further = tmp_path / "further"
    run("train.py", *args[:2], "--out", str(further), "--init", str(model), *args[4:], "--lr", "1e-3")
    assert (further / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert (further / "model" / "model.safetensors").read_bytes() != before

    scores = json.loads(run("evaluate.py", "--data", str(data), "--model", str(model)))
    assert scores["tandem"] == scores["transformers"]
    assert scores["tandem"]["both"]["sentences"] > 0


def test_the_split_is_by_english_sentence(data: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from data import read_pairs\n"
        "parts = read_pairs(Path(sys.argv[2]))\n"
        "english = {part: {pair.english for pair in pairs} for part, pairs in parts.items()}\n"
        "assert english['train'] and english['test']\n"
        "assert not english['train'] & english['test'] and not english['train'] & english.get('dev', set())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(RECIPE), str(data)], check=True)
