"""`bench/speculation.py` reads what the corrections model's recipe writes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from speculation import HELD_OUT, corrections
from transformers import AutoTokenizer

from tandem.quickstart import PATH


def test_inputs_are_held_out_texts_whose_answers_end(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(PATH / name, tmp_path / name)
    inputs = [f"correct: I saw {n} dogs." for n in range(5)]
    rows = [(text, "I saw dogs.", "I saw dogs.") for text in inputs]
    rows.append(("correct: It runs on.", "It runs on.", "It runs on on on on."))
    lines = "".join("\t".join(row) + "\n" for row in rows)
    (tmp_path / HELD_OUT).write_text(lines, encoding="utf-8")

    drawn = corrections(tmp_path)(5, random.Random(0))
    texts = AutoTokenizer.from_pretrained(tmp_path).batch_decode(drawn, skip_special_tokens=True)
    assert sorted(texts) == inputs
