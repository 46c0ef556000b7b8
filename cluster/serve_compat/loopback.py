"""Keeps a Ray cluster of one machine to that machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import services

ADDRESS = "127.0.0.1"


@contextmanager
def loopback_stays() -> Iterator[None]:
    """Lets `ray.init` take `ADDRESS` for this machine's, as it is, while the block runs.

    Ray listens on loopback alone where a node has that address. On Linux, however, it takes the address that
    others reach wherever it is told that one; its services then listen on all interfaces, and some of them,
    those of metrics, answer without a token.
    """
    usual = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = usual
