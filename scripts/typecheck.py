#!/usr/bin/env python
"""Type-checks every package of ours: the face and the cluster with `mypy --strict`, the engine a little
less, the generated tandem.v1 not at all.

mypy does not follow pyproject.toml's `package-dir` mapping, so it is shown a tree of links that looks
like the installed package: build/typing/tandem/cluster -> cluster, and so on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = Path("build/typing")  # relative to ROOT, as mypy shows it

# Tensor code: torch and triton type many results as Any, which --strict refuses to pass on.
ENGINE = ("tandem.workers", "tandem.kernels")
ENGINE_FLAGS = ["--config-file=", "--disallow-untyped-defs", "--check-untyped-defs", "--warn-unused-ignores"]


def link_tree(packages: dict[str, str]) -> None:
    """Builds TREE anew from a package-dir mapping. `tandem` itself is a folder of links, because the
    other packages go beside its modules."""
    shutil.rmtree(ROOT / TREE, ignore_errors=True)
    face = ROOT / TREE / "tandem"
    face.mkdir(parents=True)
    for entry in (ROOT / packages["tandem"]).iterdir():
        (face / entry.name).symlink_to(entry)
    for package, folder in packages.items():
        if package != "tandem":
            face.joinpath(*package.split(".")[1:]).symlink_to(ROOT / folder)


def mypy(flags: list[str], targets: list[str], packages: dict[str, str]) -> int:
    """Runs mypy on `targets`; what they import is read but not judged. Returns its exit status."""
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", *flags, *targets]
    environment = os.environ | {"MYPYPATH": str(TREE)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    shown = done.stdout
    for package, folder in sorted(packages.items(), reverse=True):  # the longest names first
        shown = shown.replace(f"{TREE}/{package.replace('.', '/')}/", f"{folder}/")
    print(shown, end="")
    return done.returncode


def main() -> int:
    with open(ROOT / "pyproject.toml", "rb") as file:
        packages: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    link_tree(packages)
    face = [str(path.relative_to(ROOT)) for path in sorted((ROOT / TREE / "tandem").glob("*.py"))]
    inner = {package: f"{TREE}/{package.replace('.', '/')}" for package in packages}
    engine = [inner[package] for package in ENGINE]
    strict = [*face, inner["tandem"] + "/quickstart", inner["tandem.cluster"]]
    return mypy(["--strict"], strict, packages) | mypy(ENGINE_FLAGS, engine, packages)


if __name__ == "__main__":
    raise SystemExit(main())
