"""The Helm chart: its files, its sets of values, and what a real helm has made of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm"
RELEASE = "tandem"
KUBERNETES = "1.34"
KUBERNETES_OWN = ("v1", "policy/v1", "networking.k8s.io/v1")  # of its groups, those that the chart uses
SETS = sorted(path.stem for path in (CHART / "value-sets").glob("*.yaml"))


def values_file(name: str) -> Path:
    return CHART / "value-sets" / f"{name}.yaml"


def rendered_file(name: str) -> Path:
    return ROOT / "tests" / "deploy" / "rendered" / f"{name}.yaml"


def head_line() -> str:
    """The first line of a rendered file: of which state of the chart it is."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(CHART)}\n".encode() + path.read_bytes() + b"\n")
    return f"# Made by scripts/check_chart.py --write from deploy/helm of sha256:{digest.hexdigest()}.\n"
