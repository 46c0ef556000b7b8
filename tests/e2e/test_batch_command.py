"""`tandem batch` against a running server: its answers, and Ctrl-C in the middle. chaos/ kills it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import PROMPTS, Server

pytestmark = pytest.mark.ray
LINES = 150


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    lines: list[dict[str, Any]] = [
        {"prompt": PROMPTS[n % len(PROMPTS)], "id": f"line {n}"} for n in range(LINES)
    ]
    lines[7] = {"prompt": "x", "id": "line 7", "top_q": 1}
    lines[8] = {"prompt_token_ids": [10**6], "id": "line 8"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(source: Path, sink: Path, server: Server) -> list[str]:
    tandem = str(Path(sys.executable).with_name("tandem"))
    return [
        tandem, "batch", str(source), str(sink), "--server", server.grpc, "-p", "temperature=0",
        "--max-tokens", "32", "--concurrency", "8",
    ]  # fmt: skip


def check(sink: Path, expected: dict[str, str]) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in sink.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"line {n}" for n in range(LINES)]
    assert lines[7]["error"]["param"] == "top_q"
    assert lines[8]["error"]["param"] == "encoder_prompt.token_ids"
    for number, line in enumerate(lines):
        if number not in (7, 8):
            assert line["outputs"][0]["text"] == expected[PROMPTS[number % len(PROMPTS)]]


def test_interrupted_and_run_again(
    server: Server, expected: dict[str, str], source: Path, tmp_path: Path
) -> None:
    sink = tmp_path / "out.jsonl"
    process = subprocess.Popen(command(source, sink, server), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not sink.exists() or not sink.stat().st_size:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert 0 < sink.read_text().count("\n") < LINES
    assert "goes on from there" in shown
    done = subprocess.run(
        command(source, sink, server), stderr=subprocess.PIPE, text=True, timeout=300, check=False,
        env=os.environ | {"COLUMNS": "160"},
    )  # fmt: skip
    assert f"{LINES}/{LINES}" in done.stderr
    check(sink, expected)
