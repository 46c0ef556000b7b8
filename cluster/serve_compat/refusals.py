"""Keeps Serve from writing a traceback, or several, for each call that Tandem refuses."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

from ray.exceptions import RayTaskError

from tandem.errors import TandemError

_SERVE: Final = "ray.serve"


def quiet_refusals() -> None:
    """Drops what Serve logs about errors of ours: the ingress has a line for each call. Call it in each
    process that answers clients: replicas and proxies."""
    logger = logging.getLogger(_SERVE)
    if _is_of_interest not in logger.filters:
        logger.addFilter(_is_of_interest)


def _is_of_interest(record: logging.LogRecord) -> bool:
    # Some of Serve's messages have the traceback in their text: they are logged where it is handled.
    error: Any = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    for _ in range(3):  # Serve wraps errors in its own and in Ray's
        if isinstance(error, RayTaskError):
            error = error.cause
        elif hasattr(error, "original_exception"):
            error = error.original_exception
    return not isinstance(error, TandemError)
