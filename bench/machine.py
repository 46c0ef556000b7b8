"""The machine and versions of a measurement: written into every result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

PEERS = ("torch", "triton", "transformers", "ray", "ctranslate2", "faster-whisper")


def describe() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in PEERS} | {"cuda": torch.version.cuda},
        "commit": _commit(),
    }


def parser(doc: str | None, results: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """The options of a script with this docstring: `--rounds`, and `--out`, by default `results`.json."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / f"{results}.json")
    return made


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes: the machines are noisy, which a mean would hide."""
    return {
        "median": round(median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Replaces the file at once: a reader, or a run that is cut short, finds a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def _commit() -> str | None:
    """None where there is no git, or no repository."""
    try:
        said = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return said.stdout.strip() or None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
