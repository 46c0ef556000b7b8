"""`bench/speculation.py` reads what the corrections model's recipe writes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from speculation import HELD_OUT, corrections
from transformers import AutoTokenizer

from tandem.quickstart import PATH


def test_inputs_are_the_held_out_texts(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(PATH / name, tmp_path / name)
    inputs = [f"correct: I saw {n} dogs." for n in range(5)]
    lines = "".join(f"{text}\tanswer\n" for text in inputs)
    (tmp_path / HELD_OUT).write_text(lines, encoding="utf-8")

    drawn = corrections(tmp_path)(3, random.Random(0))
    texts = AutoTokenizer.from_pretrained(tmp_path).batch_decode(drawn, skip_special_tokens=True)
    assert len(set(texts)) == 3
    assert set(texts) < set(inputs)
