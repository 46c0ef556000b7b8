"""constraints.txt locks what `make .venv` and the image install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import locked
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def constraints() -> str:
    return (ROOT / "constraints.txt").read_text()


def test_every_package_has_one_version_and_no_place(constraints: str) -> None:
    lines = [line.partition(" ;")[0] for line in constraints.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line) for line in lines), "no URL, no `+cpu`"
    names = [line.partition("==")[0] for line in lines]
    assert len(names) == len(set(names))


def test_what_pyproject_asks_for_is_locked_within_its_ranges(constraints: str) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, versions = pyproject["project"], locked.versions(constraints)
    extras = project["optional-dependencies"]
    for text in (
        project["dependencies"] + extras["dev"] + extras["bench"] + pyproject["build-system"]["requires"]
    ):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            version = versions.get(requirement.name.lower())
            assert version is not None, f"{text}: run `make lock`"
            assert requirement.specifier.contains(version), f"{text}: run `make lock`"


def test_an_unexpected_version_of_an_oracle_is_said(
    constraints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = locked.versions(constraints) | {"torch": "2.13.0+cpu"}
    monkeypatch.setattr(locked.metadata, "version", installed.__getitem__)
    assert locked.unexpected(constraints) is None
    expected = installed["transformers"]
    installed["transformers"] = "5.99.0"
    line = f"oracles: transformers 5.99.0 (locked: {expected}): answers may differ"
    assert locked.unexpected(constraints) == line
