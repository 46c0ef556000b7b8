"""The documentation's links and references lead somewhere, and its calls fit what they call."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import typer

from tandem.cli import app
from tandem.cluster.config import ServeConfig
from tandem.limits import Limits

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "bench|cluster|deploy|docs|examples|kernels|protos|scripts|tandem|tests|workers"
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)(?::([\w.]+))?`")
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)  # also within lists


def read(page: Path) -> str:
    return _CODE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@cache
def names(path: Path) -> set[str]:
    """What a module defines or imports, and what its classes define."""

    def of(body: list[ast.stmt], prefix: str = "") -> set[str]:
        found = set()
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    found |= of(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
        return found

    return of(ast.parse(path.read_text(encoding="utf-8")).body)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in _LINK.findall(read(page)):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_named_exists(page: Path) -> None:
    missing = []
    for path, name in _PATH.findall(read(page)):
        target = ROOT / path
        if not target.exists() or (name and name not in names(target)):
            missing.append(f"{path}:{name}" if name else path)
    assert not missing


def calls(code: str) -> list[tuple[str, TypeError | None]]:
    """Calls of what the code imports from `tandem`, and why the arguments do not fit the signature."""
    tree = ast.parse(code)
    ours: dict[str, Callable[..., object]] = {}
    found: list[tuple[str, TypeError | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tandem":
            module = import_module(node.module)
            ours |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ours:
            wrong = None
            try:
                keywords = {str(keyword.arg): keyword.value for keyword in node.keywords}
                inspect.signature(ours[node.func.id]).bind(*node.args, **keywords)
            except TypeError as error:
                wrong = error
            found.append((ast.unparse(node), wrong))
    return found


def python(page: Path) -> str:
    return "\n".join(dedent(block) for _, block in _PYTHON.findall(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_calls_fit_their_signatures(page: Path) -> None:
    assert not [call for call in calls(python(page)) if call[1]]


def test_a_call_that_does_not_fit_is_found() -> None:
    page = ROOT / "docs" / "add-a-family.md"
    (call,) = (call for call, _ in calls(python(page)) if call.startswith("Family("))
    code = python(page).replace(call, "Family(spec, names, defaults={})")
    (wrong,) = (wrong for _, wrong in calls(code))
    assert "'defaults'" in str(wrong)


def options(command: Any) -> set[str]:
    """Of a command and those below it."""
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return found.union(*(options(each) for each in getattr(command, "commands", {}).values()))


def test_operators_are_told_of_options_limits_and_targets_that_exist() -> None:
    manual = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    tandem: Any = typer.main.get_command(app)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", manual)) <= options(tandem)
    called = set(re.findall(r"^(?:.*`)?tandem ([a-z]+)", manual, re.MULTILINE))
    assert {"serve", "top", "key"} <= called <= set(tandem.commands)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", manual)) <= targets
    settings = {field.name for field in fields(ServeConfig)}
    assert set(re.findall(r"--set (\w+)=", manual)) - {"NAME"} <= settings
    limits = manual.partition("| limit | default |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in limits.splitlines()[2:]]
    named = {name for row in rows for name in row}
    assert len(named) > 8
    assert named <= {field.name for field in fields(Limits)}
