"""Every script of examples/seeds runs, on a tiny random model of the family it is for."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from whisper import RATE, make_whisper, sound

from tandem.media import wav

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "seeds"
# Script → a variant of `models.VARIANTS`, or "whisper", and how much it prints at least, in lines.
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
    "whisper.py": ("whisper", 4),
}


@pytest.fixture(scope="session")
def model(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random checkpoint, by the second column of `SCRIPTS`."""
    whisper = cache(
        lambda: make_whisper(tmp_path_factory.mktemp("whisper"), "base", max_target_positions=128)
    )
    return lambda variant: whisper() if variant == "whisper" else checkpoint(variant)


def test_none_is_forgotten() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"questions.py"}
    assert scripts == set(SCRIPTS)
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"`{script}`" in readme for script in scripts)


@pytest.mark.parametrize("script", SCRIPTS)
def test_runs(
    model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
) -> None:
    variant, lines = SCRIPTS[script]
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [script, str(model(variant))])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= lines


def test_the_readmes_whisper_runs(
    model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The other blocks of README.md are for the bundled model: tests/e2e/test_readme.py runs them."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "whisper" in block]
    (tmp_path / "speech.flac").write_bytes(wav(sound(0), RATE, "audio"))
    monkeypatch.chdir(tmp_path)
    exec(block.replace("openai/whisper-large-v3-turbo", str(model("whisper"))), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
