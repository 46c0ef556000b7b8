"""The examples of README.md and docs/run.md, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Server

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "run.md")
BLOCKS = [
    (language, block)
    for page in PAGES
    for language, block in re.findall(
        r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
]
# These start servers or test runs of their own, or need a model that is not bundled or Kubernetes:
# test_serve_command.py, test_serve_run.py, test_transcribe_command.py, test_generate_images.py, test_chart.py
# and CI run them.
NOT_HERE = ("make ", "tandem serve", "serve run", "tandem transcribe", "tandem generate --image", "helm ")
OTHERS = re.compile("whisper|Florence")  # models that are not bundled: tests/examples/test_seeds.py has them


def run(command: list[str], script: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, input=script, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PATH": path}, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def at(server: Server, text: str) -> str:
    """The example with the addresses of the test's server."""
    return text.replace("localhost:9000", server.grpc).replace("localhost:8000", server.endpoints.http[0])


def test_python_examples(server: Server, tmp_path: Path) -> None:
    examples = [text for language, text in BLOCKS if language == "python" and not OTHERS.search(text)]
    assert len(examples) == 4, "LLM, Client, openai, pipeline"
    # In one interpreter, which takes longer to start than the examples to run.
    script = "\nprint('----')\n".join(examples)
    for example, shown in zip(
        examples, run([sys.executable, "-"], at(server, script), tmp_path).split("----\n"), strict=True
    ):
        assert "Je suis" in shown, example


def test_shell_examples(server: Server, tmp_path: Path) -> None:
    examples = [
        text for language, text in BLOCKS if language == "sh" and not text.strip().startswith(NOT_HERE)
    ]
    assert len(examples) == 1 + 1 + 1, "the tandem command, curl, a batch"
    for example in examples:
        out = run(["bash", "-euo", "pipefail"], at(server, example), tmp_path)
        assert "Ich bin" in out, example


def test_every_shell_example_is_run_or_known() -> None:
    for language, text in BLOCKS:
        if language == "sh":
            assert text.startswith((*NOT_HERE, "curl", "tandem translate", "cat > requests.jsonl")), text
