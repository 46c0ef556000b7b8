"""How much of what processes print Ray keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from tandem.cluster.start import _RAY_SETTINGS, ray_alone

PIECE = 2**20
FILE = int(_RAY_SETTINGS["RAY_ROTATION_MAX_BYTES"])
FILES = int(_RAY_SETTINGS["RAY_ROTATION_BACKUP_COUNT"]) + 1


def kept(logs: Path) -> dict[str, list[int]]:
    """The sizes of the files that Ray has of each of a worker's outputs, in bytes."""
    found: dict[str, list[int]] = {"out": [], "err": []}
    for path in logs.glob("worker-*"):
        (output,) = found.keys() & {*path.name.split(".")}
        found[output].append(path.stat().st_size)
    return found


@pytest.mark.ray
def test_a_worker_that_prints_without_end_keeps_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _RAY_SETTINGS:
        monkeypatch.delenv(name, raising=False)

    def shout() -> None:
        import os

        line = b"x" * 1023 + b"\n"
        for _ in range((FILES + 1) * FILE // PIECE):
            for output in (1, 2):
                os.write(output, line * (PIECE // len(line)))

    with ray_alone():
        ray.get(ray.remote(num_cpus=0)(shout).remote())
        node: Any = ray._private.worker._global_node
        logs = Path(node.get_logs_dir_path())
    for sizes in kept(logs).values():
        assert len(sizes) >= FILES
        assert FILE < sum(sizes) < FILES * FILE + 2 * PIECE
