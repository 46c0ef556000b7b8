"""What all tests share: options, the tiny checkpoints, the report at the end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# A busy machine is not a defect; and a failure must be the same for everyone who runs the tests.
settings.register_profile(
    "tandem", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tandem")

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes test: their threads would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores SIGINT, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

VERDICT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-matrix", action="store_true", help="put the parity matrix into docs/parity.md")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is not as locked, in one line: a failed comparison may then be the other project's change."""
    import locked

    line = locked.unexpected((config.rootpath / "constraints.txt").read_text())
    return [line] if line else []


class _Scheduling(LoadScopeScheduling):
    """Tests that share a costly fixture run in one process: those of a file, or of e2e/. xdist's own groups
    are lost with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder.endswith("/e2e") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling:
    return _Scheduling(config, log)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a variant's tiny random checkpoint, made once for the same arguments, which are those of
    `models.make_checkpoint`. Tests must not write to it."""
    from models import make_checkpoint

    @cache
    def make(variant: str, **overrides: Any) -> Path:
        return make_checkpoint(tmp_path_factory.mktemp(variant), variant, **overrides)

    return make


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints what tests recorded, passing ones too: what clients saw of every kill, and the parity matrix of
    what was run. A whole and exact matrix can be written to docs/parity.md. It happens here because the
    process that prints is none of those that run tests."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    recorded = [entry for report in reports for entry in report.user_properties]
    if kills := [value for name, value in recorded if name == "chaos"]:
        terminalreporter.section("chaos, what clients saw")
        for line in kills:
            terminalreporter.write_line(line)
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for family, mode, exact, total in (value for name, value in recorded if name == "parity"):
        before = counts.get((family, mode), (0, 0))
        counts[family, mode] = before[0] + exact, before[1] + total
    if not counts:
        return
    import matrix

    terminalreporter.section("parity with transformers, exact/total")
    terminalreporter.write_line(matrix.table(counts))
    if config.getoption("--write-matrix"):
        if counts != matrix.complete():
            raise pytest.UsageError("docs/parity.md keeps its matrix: not all of it was run and is exact")
        matrix.document(counts)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[VERDICT] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ray's threads outlive `ray.shutdown()`, and now and then one crashes the process while the interpreter
    is torn down around it. Everything is reported by now: the process ends here."""
    if "ray" in sys.modules and VERDICT in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[VERDICT])
