"""The laws that hold between files: who imports whom, what loads torch, what the face promises."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tandem

ROOT = Path(__file__).parents[1]
with (ROOT / "pyproject.toml").open("rb") as file:
    SETUPTOOLS = tomllib.load(file)["tool"]["setuptools"]
PACKAGE_DIR: dict[str, str] = SETUPTOOLS["package-dir"]

# What stands earlier may import what stands later, never the other way round; docs/architecture.md says what
# each is. A module belongs to the entry with the longest name that is the module's or a package of it.
ORDER = (
    "tandem.cli",
    "tandem.batch",
    "tandem.pipelines",
    "tandem.offline tandem.client tandem.top",
    "tandem",
    "tandem.cluster.launch",
    "tandem.cluster.app",
    "tandem.cluster.ingress",
    "tandem.cluster.router",
    "tandem.cluster.replicas",
    "tandem.cluster",
    "tandem.cluster.serve_compat",
    "tandem.cluster.telemetry",
    "tandem.protocol",
    "tandem.workers",
    "tandem.workers.execution",
    "tandem.workers.sampling",
    "tandem.workers.requests",
    "tandem.workers.models",
    "tandem.workers.scheduling",
    "tandem.workers.distributed tandem.workers.config tandem.workers.request tandem.workers.constraints "
    "tandem.workers.device",
    "tandem.kernels",
    "tandem.errors tandem.limits tandem.params tandem.inputs tandem.outputs tandem.media tandem.quickstart "
    "tandem.quickstart_speech tandem.quickstart_ocr tandem.transcription tandem.v1 tandem.live "
    "tandem.transcripts tandem.lines",
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}


@cache
def modules() -> dict[str, Path]:
    """Our modules by name, without `tandem` itself, which names much and loads nothing."""
    found = {}
    for package in ("tandem", "tandem.cluster", "tandem.workers", "tandem.kernels"):
        folder = ROOT / PACKAGE_DIR[package]
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    del found["tandem"]
    return found


class _WithoutTypes(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        only_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if only_types else self.generic_visit(node)


@cache
def imports(module: str, *, for_types: bool = True) -> frozenset[str]:
    """Everything a module imports, within functions as well."""
    found = set()
    tree: ast.AST = ast.parse(modules()[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree if for_types else _WithoutTypes().visit(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & modules().keys() or {node.module}
    return frozenset(found - {module})


def rank(module: str) -> int:
    while module not in RANK:
        module = module.rpartition(".")[0]
    return RANK[module]


def test_imports_point_down() -> None:
    upward = [
        f"{module} imports {other}"
        for module in modules()
        for other in imports(module) & modules().keys()
        if rank(other) < rank(module)
    ]
    assert not upward


def test_no_modules_import_each_other() -> None:
    graph = {module: imports(module, for_types=False) & modules().keys() for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("tandem.workers", {"ray", "grpc", "fastapi"}),
        ("tandem.kernels", {"ray", "grpc", "fastapi", "transformers"}),
        ("tandem.workers.scheduling", {"torch"}),
    ],
)
def test_packages_know_nothing_of(package: str, foreign: set[str]) -> None:
    guilty = [
        f"{module} imports {other}"
        for module in modules()
        if f"{module}.".startswith(f"{package}.")
        for other in imports(module)
        if other.partition(".")[0] in foreign
    ]
    assert not guilty


def test_the_scheduler_loads_no_torch() -> None:
    code = "import sys, tandem.workers.scheduling.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_face_is_what_is_documented() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## The public names\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", section))
    assert documented == set(tandem.__all__)
    assert all(hasattr(tandem, name) for name in tandem.__all__)


def test_an_installation_has_every_file() -> None:
    """setuptools finds no packages below a folder that is renamed, so they are listed by hand. An editable
    installation, which tests use, would not notice one that is missing."""
    found = {name: ROOT / folder for name, folder in PACKAGE_DIR.items()}
    for package, folder in list(found.items()):
        for path in folder.rglob("__init__.py"):
            found[".".join((package, *path.parent.relative_to(folder).parts))] = path.parent
    assert sorted(found) == sorted(SETUPTOOLS["packages"])
    data: dict[str, list[str]] = SETUPTOOLS["package-data"]
    [extension] = SETUPTOOLS["ext-modules"]
    compiled = {*extension["sources"], *extension["depends"]}
    for package, folder in found.items():
        for path in folder.iterdir():
            if not path.is_file() or path.suffix in (".py", ".so"):
                continue
            if path.suffix in (".cpp", ".h"):
                assert str(path.relative_to(ROOT)) in compiled
            else:
                assert any(path.match(pattern) for pattern in data.get(package, [])), path


RAN: list[pytest.Item] = []  # this file's tests, as they run


@pytest.fixture(autouse=True)
def _noted(request: pytest.FixtureRequest) -> None:
    RAN.append(request.node)


def test_a_files_tests_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """They share costly fixtures; see `conftest.py`. It is the last test."""
    own = [item for item in request.session.items if item.path == request.node.path]
    assert own == RAN
