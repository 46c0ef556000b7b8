"""`tandem demo`."""

from __future__ import annotations

from rich.console import Console

from tandem.cli.options import errors_shown


def demo() -> None:
    """Start a cluster with the bundled model, send it real sentences over gRPC and HTTP, and stop it."""
    with errors_shown():
        from tandem.demo import run

        run(Console())
