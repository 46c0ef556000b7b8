#!/usr/bin/env python
"""Type-checks every package with mypy, as pyproject.toml says, and the tests of the typed interfaces.

mypy does not follow pyproject.toml's `package-dir` mapping, so it is shown a tree of links that looks
like the installed package: build/typing/tandem/cluster -> cluster, and so on. Editors find the packages
there, too. `--links` builds the tree and checks nothing.
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

# Typed libraries with a few untyped functions.
FLAGS = ["--strict", "--untyped-calls-exclude=torch", "--untyped-calls-exclude=safetensors"]

# The other tests hold our tensors against transformers' modules, which are hardly typed.
TESTS = ["chaos", "cluster", "deploy", "e2e", "examples", "face", "protos"]
# On the path of the tests, as pyproject.toml tells pytest.
TEST_PATH = ["tests/support"]
# Fakes and the stubs of gRPC are typed as far as it helps.
TEST_FLAGS = [
    "--explicit-package-bases",
    "--allow-untyped-calls",
    "--allow-subclassing-any",
    "--implicit-reexport",
    "--no-warn-return-any",
    "--no-warn-unused-ignores",
    "--disable-error-code=import-untyped",
]


def link_tree(packages: dict[str, str]) -> None:
    """Builds TREE anew from a package-dir mapping. `tandem` itself is a folder of links, because the other
    packages go next to its modules."""
    shutil.rmtree(ROOT / TREE, ignore_errors=True)
    face = ROOT / TREE / "tandem"
    face.mkdir(parents=True)
    for entry in (ROOT / packages["tandem"]).iterdir():
        (face / entry.name).symlink_to(entry)
    for package, folder in packages.items():
        if package != "tandem":
            face.joinpath(*package.split(".")[1:]).symlink_to(ROOT / folder)


def main() -> int:
    with open(ROOT / "pyproject.toml", "rb") as file:
        packages: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    link_tree(packages)
    if "--links" in sys.argv[1:]:
        return 0
    sources = check([*FLAGS, str(TREE / "tandem")], [], packages)
    tests = check([*FLAGS, *TEST_FLAGS, *(f"tests/{name}" for name in TESTS)], TEST_PATH, packages)
    return sources or tests


def check(arguments: list[str], path: list[str], packages: dict[str, str]) -> int:
    """Runs mypy, shows what it says with our files' real names, returns its status."""
    environment = os.environ | {"MYPYPATH": os.pathsep.join([str(TREE), *path])}
    command = [sys.executable, "-m", "mypy", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    shown = done.stdout
    for package, folder in sorted(packages.items(), reverse=True):  # the longest names first
        shown = shown.replace(f"{TREE}/{package.replace('.', '/')}/", f"{folder}/")
    print(shown, end="")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
