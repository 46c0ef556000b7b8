"""The private parts of Ray that are used: of which version, and by whom."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tandem.cluster.serve_compat import RAY_VERSION

ROOT = Path(__file__).parents[3]
COMPAT = ROOT / "cluster" / "serve_compat"


def test_ray_is_the_version_that_serve_compat_is_written_for() -> None:
    assert ray.__version__.startswith(f"{RAY_VERSION}."), (
        f"Ray {ray.__version__} is installed, cluster/serve_compat/ is written for {RAY_VERSION}. "
        "Look through its functions, run tests/cluster and tests/chaos, then change RAY_VERSION."
    )


def test_the_packages_requirement_is_that_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [required] = [one for one in project["dependencies"] if one.startswith("ray[")]
    assert required.endswith(f"=={RAY_VERSION}.*")


def private_uses(source: str) -> Iterator[str]:
    """Names that begin with an underscore, of Ray: imported, or reached from `ray`."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            root, *parts = name.split(".")
            if root == "ray" and any(part.startswith("_") and not part.endswith("__") for part in parts):
                yield name


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.worker",
        "from ray.serve._private import default_impl",
        "from ray.serve.context import _get_global_client",
        "worker = ray._private.worker.global_worker",
    ],
)
def test_private_uses_are_found(source: str) -> None:
    assert list(private_uses(source))


def test_no_other_file_uses_private_parts() -> None:
    assert not list(private_uses("from ray.serve import Application\nray.init()\nray.__version__"))
    files = [file for folder in ("cluster", "tandem", "workers") for file in (ROOT / folder).rglob("*.py")]
    assert COMPAT / "controller.py" in files
    uses = {
        str(file.relative_to(ROOT)): found
        for file in files
        if COMPAT not in file.parents and (found := list(private_uses(file.read_text())))
    }
    assert not uses
