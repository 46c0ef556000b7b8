from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from parity import PROMPTS, Reference


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[..., Path]) -> Callable[..., Reference]:
    """The reference for a variant and `models.make_checkpoint`'s overrides, made once."""

    @cache
    def make(variant: str, count: int = PROMPTS, **overrides: Any) -> Reference:
        return Reference.make(checkpoint(variant, **overrides), count)

    return make
