"""Every script of examples/seeds runs, on a tiny random model of the family it is for."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "seeds"
# Script → a variant of `models.VARIANTS`, and how much it prints at least, in lines.
SCRIPTS = {
    "aphrodite_bart.py": ("bart", 8),
    "bart_instruction.py": ("bart", 1),
    "bert2bert_summarize.py": ("bert2bert", 1),
    "bert2bert_translate.py": ("bert2bert", 1),
    "flan_t5_questions.py": ("flan", 21),
    "gpt2_text_generation.py": ("gpt2", 8),
    "marian_translate.py": ("marian", 1),
    "pegasus_summarize.py": ("pegasus", 1),
    "phi_questions.py": ("phi", 14),
    "t5_pipeline.py": ("t5", 3),
    "t5_token_stream.py": ("t5", 1),
    "t5_translate.py": ("t5", 1),
}


def test_none_is_forgotten() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"questions.py"}
    assert scripts == set(SCRIPTS)
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"`{script}`" in readme for script in scripts)


@pytest.mark.parametrize("script", SCRIPTS)
def test_runs(
    checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
) -> None:
    variant, lines = SCRIPTS[script]
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [script, str(checkpoint(variant))])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= lines
