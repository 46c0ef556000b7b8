"""The image's recipe keeps to its rules; it is not built here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what follows each, in order."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, rest in pairs]


def test_both_stages_use_one_base_pinned_by_tag_and_digest(instructions: list[tuple[str, str]]) -> None:
    defaults = dict(rest.split("=", 1) for name, rest in instructions if name == "ARG")
    assert re.fullmatch(r"\d+\.\d+\.\d+-\w+-\w+", defaults["PYTHON_TAG"])
    bases = [rest.split()[0] for name, rest in instructions if name == "FROM"]
    assert bases == ["python:${PYTHON_TAG}${PYTHON_DIGEST}"] * 2


def test_the_image_does_not_run_as_root(instructions: list[tuple[str, str]]) -> None:
    users = [rest for name, rest in instructions if name == "USER"]
    assert users
    assert all(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) for user in users)
    last = max(i for i, (name, _) in enumerate(instructions) if name == "USER")
    assert not any(name in ("RUN", "COPY") for name, _ in instructions[last:])


def test_kubernetes_does_the_health_checks(instructions: list[tuple[str, str]]) -> None:
    assert not any(name == "HEALTHCHECK" for name, _ in instructions)
    assert any("wget" in rest for name, rest in instructions if name == "RUN")  # KubeRay's probes use it


def test_everything_copied_exists_and_is_sent_to_the_builder(instructions: list[tuple[str, str]]) -> None:
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [
        source
        for name, rest in instructions
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert "tandem" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignore
