"""What a process loads that waits to be an ingress replica."""

from __future__ import annotations

import contextlib
from typing import Final

PREPARE: Final = f"{__name__}.prepare"


def prepare() -> None:
    """Ray calls it in each process that will be an ingress replica. Libraries load parts of themselves when
    they are first used, and so the bundled model is read like any other. What fails here fails again, and is
    told, in the replica."""
    with contextlib.suppress(Exception):
        from tandem.cluster.serve_compat.spare_worker import end_if_spare

        end_if_spare()
        from tandem.cluster.config import ServeConfig
        from tandem.cluster.ingress.ingress import load_request_builder

        load_request_builder(ServeConfig())
