"""Makes `tandem` importable where it is not installed: import this before it."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
import tomllib
from pathlib import Path

BEGUN = time.monotonic()  # when the script began: what it imports after this may take half a minute
ROOT = Path(__file__).resolve().parents[1]


def link_packages(tree: Path) -> None:
    """Fills a folder with links laid out like the installed package, by pyproject.toml's `package-dir`."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        packages: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    face = tree / "tandem"
    face.mkdir()
    for entry in (ROOT / packages.pop("tandem")).iterdir():
        (face / entry.name).symlink_to(entry)
    for package, folder in packages.items():
        face.joinpath(*package.split(".")[1:]).symlink_to(ROOT / folder)


if importlib.util.find_spec("tandem") is None:
    _links = tempfile.TemporaryDirectory()  # as long as this process lives
    link_packages(Path(_links.name))
    sys.path.insert(0, _links.name)
