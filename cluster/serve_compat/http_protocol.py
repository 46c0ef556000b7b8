"""Which of uvicorn's protocol classes Serve's HTTP servers use."""

from __future__ import annotations

import functools
import types
from typing import Any

import uvicorn
from ray.serve._private import http_util


def use_http_protocol(protocol: Any) -> None:
    """Makes Serve's HTTP servers speak by this protocol, which is called as uvicorn calls its own classes.
    Serve has no option for it."""
    own = {**vars(uvicorn), "Config": functools.partial(uvicorn.Config, http=protocol)}
    http_util.uvicorn = types.SimpleNamespace(**own)  # type: ignore[attr-defined, assignment]
