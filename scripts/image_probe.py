"""Looks at an image from within, as `python -`: waits for the server there, asks it over both protocols, and
prints one line of JSON about the answers and what is installed. scripts/build_image.py sends it in."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

HOST = "127.0.0.2"  # not where a server listens that is bound to 127.0.0.1
PROMPT = "translate English to French: I am tired."
READY_S = 600


def ask(path: str, body: dict[str, Any] | None = None) -> str:
    request = urllib.request.Request(
        f"http://{HOST}:8000{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def wait() -> float:
    """Seconds until the server is well."""
    started = time.monotonic()
    while True:
        try:
            ask("/health")
        except (OSError, urllib.error.HTTPError):
            if time.monotonic() - started > READY_S:
                raise
            time.sleep(0.2)
        else:
            return time.monotonic() - started


def main() -> None:
    import torch

    from tandem import Client, SamplingParams

    ready_s = wait()
    completion = json.loads(ask("/v1/completions", {"prompt": PROMPT, "temperature": 0, "max_tokens": 32}))
    with Client(f"{HOST}:9000") as client:
        output = client.generate(PROMPT, SamplingParams(temperature=0, max_tokens=32))
    (build,) = [line for line in ask("/metrics").splitlines() if line.startswith("tandem_build_info{")]
    site = Path(torch.__file__).parents[1]
    found = {
        "ready_s": round(ready_s, 1),
        "http": completion["choices"][0]["text"],
        "grpc": output.outputs[0].text,
        "cpu_kernels": 'cpu_kernels="true"' in build,
        "cuda": torch.version.cuda,
        "compilers": [name for name in ("cc", "gcc", "g++", "clang", "nvcc") if shutil.which(name)],
        "uid": os.getuid(),
        "writable": [name for name in ("/", "/opt", str(site), "/usr") if os.access(name, os.W_OK)],
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "tests": [str(path) for path in site.glob("tandem/**/test*")],
        "packages": {each.metadata["Name"]: each.version for each in distributions(path=[str(site)])},
    }
    json.dump(found, sys.stdout)


main()
