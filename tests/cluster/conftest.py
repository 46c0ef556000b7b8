from __future__ import annotations

import pytest

from tandem.cluster.callers import ANYBODY, CALLER


@pytest.fixture(autouse=True)
def called_by_anybody() -> None:
    """Whoever a test before this one has called for."""
    CALLER.set(ANYBODY)
