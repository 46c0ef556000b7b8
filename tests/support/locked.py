"""What constraints.txt locks, and which oracles are installed in another version."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

# The projects whose behaviour tests hold ours against.
ORACLES = ("transformers", "tokenizers", "ctranslate2", "openai", "ray", "grpcio")


def versions(constraints: str) -> dict[str, str]:
    """The version of each package in the text of a constraints file, for this platform."""
    found = {}
    for line in constraints.splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            [pin] = requirement.specifier
            assert pin.operator == "==", line
            if requirement.marker is None or requirement.marker.evaluate():
                assert requirement.name not in found, line
                found[requirement.name] = pin.version
    return found


def unexpected(constraints: str) -> str | None:
    """One line about the oracles that are installed in another version than the locked one, if any is."""
    locked, other = versions(constraints), []
    for name in ORACLES:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(installed).public != locked[name]:
            other.append(f"{name} {installed} (locked: {locked[name]})")
    return f"oracles: {', '.join(other)}: answers may differ" if other else None
