"""The `serve run` of docs/run.md, with the config file it names, on ports of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from serving import free_port

from tandem import Client
from tandem.cluster.start import GRPC_SERVICES

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
COMMAND = ["serve", "run", "examples/serve.yaml"]
READY_S = 240.0


def test_serve_run(tmp_path: Path) -> None:
    assert f"\n{' '.join(COMMAND)}\n" in (ROOT / "docs" / "run.md").read_text(encoding="utf-8")
    config = yaml.safe_load((ROOT / COMMAND[-1]).read_text())
    assert config["grpc_options"]["grpc_servicer_functions"] == GRPC_SERVICES
    http_port = config["http_options"]["port"] = free_port()
    grpc_port = config["grpc_options"]["port"] = free_port()
    config["applications"][0]["args"]["device"] = "cpu"
    path, log = tmp_path / "serve.yaml", tmp_path / "log"
    path.write_text(yaml.safe_dump(config))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name(COMMAND[0]), *COMMAND[1:-1], path],
            stdout=output,
            stderr=output,
            env=os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"},
        )
    try:
        deadline = time.monotonic() + READY_S
        while not ready(http_port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        with Client(f"127.0.0.1:{grpc_port}") as client:
            answer = client.generate("translate English to French: I am tired.").outputs[0].text
        body = {"q": "I am tired.", "source": "en", "target": "fr"}
        translated = httpx.post(f"http://127.0.0.1:{http_port}/translate", json=body, timeout=60).json()
        assert translated["translatedText"] == answer
        assert answer.startswith("Je suis")
        process.send_signal(signal.SIGINT)
        process.wait(120)
    finally:
        process.kill()
        process.wait()


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
