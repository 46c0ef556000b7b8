"""`tandem serve` as a process of its own, behind Serve's proxies, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from serving import Stub, eventually, free_port, pids, text_request

from tandem import Client, InvalidRequest, SamplingParams, Unauthenticated
from tandem.cluster.callers import Quotas
from tandem.cluster.keys import line_of

pytestmark = pytest.mark.ray
READY_S = 240.0
KEY = "tandem-known"
SPARE_LOADS_S = 3.0
INGRESS = "ServeReplica:tandem:Ingress"


def waiting(http_port: int) -> float:
    """Requests accepted that no engine has."""
    lines = httpx.get(
        f"http://127.0.0.1:{http_port}/metrics", timeout=60, headers={"x-api-key": KEY}
    ).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("tandem_router_requests_waiting"))


def kill_ingress(served_by: int, http_port: int) -> None:
    """Returns when the process that has waited for it is the ingress replica and answers. Other servers of
    this process's may run, too."""
    [ingress] = pids(INGRESS, served_by)
    # Ray itself has started others, before it, where there are more cores.
    eventually(
        lambda: max(pids("IDLE", served_by), default=0) > ingress, "no process waits to be the next ingress"
    )
    spare = max(pids("IDLE", served_by))
    time.sleep(SPARE_LOADS_S)
    os.kill(ingress, signal.SIGKILL)
    eventually(lambda: pids(INGRESS, served_by) == {spare}, "another process is the ingress")
    url = f"http://127.0.0.1:{http_port}/health"
    eventually(lambda: httpx.get(url, timeout=60).status_code == 200, "the ingress is not back")


def test_serves_behind_proxies_until_a_signal(tmp_path: Path) -> None:
    http_port, grpc_port = free_port(), free_port()
    log, out, keys = tmp_path / "stderr", tmp_path / "stdout", tmp_path / "keys"
    keys.write_text(line_of("acme", KEY, Quotas(priority=0)))
    with log.open("wb") as stderr, out.open("wb") as stdout:
        process = subprocess.Popen(
            [
                sys.executable, "-c", "from tandem.cli import app; app()", "serve", "quickstart",
                "--ingress", "proxy", "--placement", "colocated", "--device", "cpu", "--name", "small",
                "--http-port", str(http_port), "--grpc-port", str(grpc_port), "--host", "localhost",
                "--limit", "n=2", "--max-num-seqs", "2", "--api-keys", str(keys), "--log-format", "json",
            ],
            stdout=stdout,
            stderr=stderr,
            env=os.environ | {"COLUMNS": "200"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + READY_S
        while "is ready" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert f"localhost:{grpc_port}" in log.read_text()
        with Client(f"127.0.0.1:{grpc_port}") as client:
            assert client.health()
            with pytest.raises(Unauthenticated):
                client.models()
        asked: tuple[tuple[dict[str, Any], int], ...] = (
            ({}, 401),
            ({"x-api-key": KEY}, 200),
            ({"x-api-key": KEY, "x": "a" * 70_000}, 431),
            ({"x-api-key": KEY, "x-request-id": b"\xfc"}, 400),
        )
        for headers, status in asked:
            models = httpx.get(f"http://127.0.0.1:{http_port}/v1/models", timeout=60, headers=headers)
            assert models.status_code == status
        assert httpx.get(f"http://127.0.0.1:{http_port}/-/routes", timeout=60).status_code == 404
        with Client(f"127.0.0.1:{grpc_port}", api_key=KEY) as client:
            answer = client.generate("translate English to French: I am tired.", model="small")
            assert answer.outputs[0].text.startswith("Je suis")
            with pytest.raises(InvalidRequest, match="at most 2"):
                client.generate("x", SamplingParams(n=3), model="small")
        body = {"q": "I am tired.", "source": "en", "target": "fr", "api_key": KEY}
        translated = httpx.post(f"http://127.0.0.1:{http_port}/translate", json=body, timeout=60)
        assert translated.json()["translatedText"] == answer.outputs[0].text
        kill_ingress(process.pid, http_port)
        key = (("x-api-key", KEY),)
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            request = text_request("translate English to French: I am tired.", max_tokens=40, ignore_eos=True)
            calls = [Stub(channel).Generate.future(request, timeout=300, metadata=key) for _ in range(10)]
            while waiting(http_port) < 4:  # the others are on the engine, or ready to follow
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert [len(call.result().outputs[0].token_ids) for call in calls] == [40] * 10
        assert process.wait(120) == 130, log.read_text()
        lines = [json.loads(line) for line in out.read_text().splitlines()]  # and nothing else
        calls = [line for line in lines if line["message"] == "call"]
        [death] = [line["message"] for line in lines if line["level"] == "ERROR"]
        assert re.fullmatch(r"Ingress replica \w+, process \d+ on 127.0.0.1: its process ended: .*", death)
        assert "tired" not in out.read_text()
        told = [(line["method"], line["status"], line.get("tenant")) for line in calls]
        assert told.count(("Generate", "OK", "acme")) == 1 + 10
        assert told.count(("Generate", "INVALID_ARGUMENT", "acme")) == 1
        assert ("ListModels", "UNAUTHENTICATED", None) in told
        answered = [line for line in calls if (line["method"], line["status"]) == ("Generate", "OK")]
        whole = [line["generated_tokens"] for line in answered]
        assert whole[1:] == [40] * 10
        [session] = Path("/tmp/ray").glob(f"session_*_{process.pid}")
        said = [path.read_text() for path in (session / "logs/serve").glob("*.log")]
        assert len(said) >= 3
        assert not any("Traceback" in text for text in said)  # refusals leave none
    finally:
        process.kill()
        process.wait()
