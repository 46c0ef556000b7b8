"""What a process loads that waits to be an ingress replica."""

from __future__ import annotations

import contextlib
from typing import Final

PREPARE: Final = f"{__name__}.prepare"
# Nothing ends it with the ingress that it is spare to, so it ends itself; a living ingress starts another.
WAITS_S: Final = 1800


def prepare() -> None:
    """Ray calls it in each process that will be an ingress replica. Libraries load parts of themselves when
    they are first used, and so the bundled model is read like any other. What fails here fails again, and is
    told, in the replica."""
    with contextlib.suppress(Exception):
        from tandem.cluster.serve_compat.spare_worker import end_spare_worker_after

        end_spare_worker_after(WAITS_S)
        from tandem.cluster.config import ServeConfig
        from tandem.cluster.ingress.ingress import load_request_builder

        load_request_builder(ServeConfig())
