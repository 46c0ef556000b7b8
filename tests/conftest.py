"""For all tests. That this file is here puts its folder on the import path, for `models` and the like."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is not a defect; and a failure is to be the same for everyone who runs it.
settings.register_profile(
    "tandem", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tandem")

if "PYTEST_XDIST_WORKER" in os.environ:  # another process tests beside us: threads would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

VERDICT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-matrix", action="store_true", help="put the parity matrix into README.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, what shares a costly fixture runs in one process: all of e2e/, or a file."""
    for item in items:
        shares = item.path.parent if item.path.parent.name == "e2e" else item.path
        item.add_marker(pytest.mark.xdist_group(str(shares.relative_to(item.config.rootpath))))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a variant's tiny random checkpoint, made once for the same arguments, which are those
    of `models.make_checkpoint`. Not to be written to."""
    from models import make_checkpoint

    @cache
    def make(variant: str, **overrides: Any) -> Path:
        return make_checkpoint(tmp_path_factory.mktemp(variant), variant, **overrides)

    return make


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[VERDICT] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ray's threads outlive `ray.shutdown()`, and now and then one crashes the process while the interpreter
    is torn down around it. All has been said by then: the process ends here."""
    if "ray" in sys.modules and VERDICT in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[VERDICT])
