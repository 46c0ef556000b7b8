"""The corrections model's recipe, run small: trains, resumes, writes a model and held-out texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "examples" / "corrections_model"
NOUNS = ("dog", "cat", "house", "tree", "car", "book", "table", "river")


def run(*args: str) -> str:
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_trains_resumes_and_writes_held_out_texts(tmp_path: Path) -> None:
    english = [f"I see the {n} {noun}s." for noun in NOUNS for n in range(50)]
    data = tmp_path / "pairs.tsv"
    data.write_text("".join(f"{sentence}\tVoilà.\n" for sentence in english), encoding="utf-8")
    args = (str(RECIPE / "finetune.py"), "--data", str(data), "--out", str(tmp_path), "--warmup", "1")
    shares = json.loads(run(*args, "--steps", "2"))
    assert set(shares) == {"texts right", "sentences right", "tokens copied"}
    model = tmp_path / "model"
    before = (model / "model.safetensors").read_bytes()

    assert "resumed at step 2 of 4" in run(*args, "--steps", "4")
    assert (model / "model.safetensors").read_bytes() != before

    texts = [line.split("\t") for line in (model / "held_out.tsv").read_text(encoding="utf-8").splitlines()]
    assert all(source.startswith("correct: ") for source, _, _ in texts)
    assert {f"{sentence}." for _, clean, _ in texts for sentence in clean.rstrip(".").split(". ")} < set(
        english
    )
    changed = sum(source != f"correct: {clean}" for source, clean, _ in texts)
    assert len(texts) / 2 < changed < len(texts)
