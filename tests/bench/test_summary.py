"""Every table of figures in the documentation is generated from its results file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import summary

MADE = [(path, make) for path, all_made in summary.DOCUMENTS.items() for make in all_made]


@pytest.mark.parametrize(("path", "make"), MADE, ids=lambda value: getattr(value, "__name__", ""))
def test_documents_have_the_figures(path: Path, make: Callable[[], str]) -> None:
    """`python bench/summary.py --write` puts them there."""
    found = summary.block(make.__name__).findall(path.read_text(encoding="utf-8"))
    assert found == [make()]


@pytest.mark.parametrize("path", summary.DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_made(path: Path) -> None:
    marks = path.read_text(encoding="utf-8").count("<!-- figures: ")
    assert marks == len(summary.DOCUMENTS[path])


def test_versions_are_those_of_every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = summary.load, set()

    def seen(name: str) -> summary.Figures:
        loaded.add(name)
        return load(name)

    monkeypatch.setattr(summary, "load", seen)
    for _, make in MADE:
        if make is not summary.versions:
            make()
    assert loaded == set(summary.MEASURED)


def test_ratios_come_with_their_spread() -> None:
    found = list(summary.ratios())
    assert {what for _, what, _ in found} >= {"cluster, streaming / engine", "disaggregated / colocated"}
    assert all(spread["min"] <= spread["median"] <= spread["max"] for *_, spread in found)
