from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matrix
import pytest
from parity import PROMPTS, Reference


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[..., Path]) -> Callable[..., Reference]:
    """Of a variant and `models.make_checkpoint`'s overrides, made once."""

    @cache
    def make(variant: str, count: int = PROMPTS, **overrides: Any) -> Reference:
        return Reference.make(checkpoint(variant, **overrides), count)

    return make


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the matrix of what was run; where that is all of it, and all is exact, README can have it."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for report in reports:
        for name, value in report.user_properties:
            if name == "parity":
                family, mode, exact, total = value
                before = counts.get((family, mode), (0, 0))
                counts[family, mode] = before[0] + exact, before[1] + total
    if not counts:
        return
    terminalreporter.section("parity with transformers, exact/total")
    terminalreporter.write_line(matrix.table(counts))
    if config.getoption("--write-matrix"):
        if counts != matrix.complete():
            raise pytest.UsageError("README.md keeps its matrix: not all of it was run and is exact")
        matrix.write_readme(counts)
