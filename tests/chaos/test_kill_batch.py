"""A batch on a cluster of its own, while an engine is killed, then the actor that sends requests, then the
command with its whole cluster."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import pids

from tandem import LLM, SamplingParams

pytestmark = pytest.mark.ray
PROMPTS = [f"translate English to French: I have {n} dogs and a cat." for n in range(512)]
# Long answers, so that the kill finds them half done.
PARAMS = {"max_tokens": 24, "ignore_eos": True, "temperature": 0}


def wait(until: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_workers_and_killed_driver(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt, **PARAMS}) + "\n" for prompt in PROMPTS))
    command = [
        str(Path(sys.executable).with_name("tandem")), "batch", str(source), str(sink), "--decoders", "2",
        "--dtype", "float32", "--device", "cpu", "--max-num-seqs", "16", "--concurrency", "32",
    ]  # fmt: skip

    def lines() -> int:
        return sink.read_bytes().count(b"\n") if sink.exists() else 0

    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait(lambda: process.poll() is not None or lines() > 0)
        engines = pids("EngineActor")
        assert len(engines) == 2, process.poll()
        (answerer,) = pids("MapWorker")
        for victim in (min(engines), answerer):
            at = lines()
            os.kill(victim, signal.SIGKILL)
            wait(lambda: process.poll() is not None or lines() > at + 64)  # noqa: B023
        assert process.poll() is None, process.communicate()
        started = pids("")
    finally:
        process.kill()
    process.communicate()
    for pid in started:  # parts of its Ray notice only after a minute that nobody needs them
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert at < lines() < len(PROMPTS)

    subprocess.run(command, check=True, timeout=400)
    texts = [json.loads(line)["outputs"][0]["text"] for line in sink.read_text().splitlines()]
    with LLM(dtype="float32", device="cpu") as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(**PARAMS, logprobs=2), use_tqdm=False)
    # Batches differ by rounding errors, which matter where two tokens are nearly as likely.
    clear = [
        all(p.top[0][1] - p.top[1][1] > 1e-3 for p in output.outputs[0].logprobs or []) for output in outputs
    ]
    assert sum(clear) > len(PROMPTS) / 2
    assert len(texts) == len(PROMPTS)
    assert [t for t, c in zip(texts, clear, strict=True) if c] == [
        o.outputs[0].text for o, c in zip(outputs, clear, strict=True) if c
    ]
