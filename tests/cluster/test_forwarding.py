"""Lines of processes that a joined cluster's own machines started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from serving import eventually

from tandem.cluster import forwarding
from tandem.cluster.forwarding import Forwarding
from tandem.cluster.telemetry import logs

OTHERS = [
    "INFO 2026-11-30 17:06:41,914 serve 27594 -- x",
    "",
    "Traceback (most recent call last):",
    "  x",
    "E",
]


@pytest.mark.parametrize("shape", [logs._text, logs._json])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_ours_are_picked_out_with_their_tracebacks(
    shape: Any, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the log monitor cuts them into batches."""
    trace = "Traceback (most recent call last):\n  x\n\nKeyError: 1\n\nDuring handling …\n  + Group\n"
    ours = [shape(1.5, level, "m", {"a": 1, "traceback": trace}) for level in ("INFO", "WARNING", "ERROR")]
    lines = [*OTHERS, *ours[0].splitlines(), *OTHERS, *"".join(ours[1:]).splitlines(), *OTHERS]

    def follow(take: Callable[[list[str]], None], _: object) -> None:
        for at in range(0, len(lines), size):
            take(lines[at : at + size])

    monkeypatch.setattr(forwarding, "follow_worker_lines", follow)
    path = tmp_path / "lines"
    Forwarding(str(path), "text").end()
    assert path.read_text() == "".join(ours)


@pytest.mark.parametrize("kind", ["missing", "pipe"])
def test_a_path_that_cannot_be_written_to_stops_nobody(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No such folder; a pipe without a reader, of which the opening would wait."""
    path = tmp_path / "none" / "lines" if kind == "missing" else tmp_path / "lines"
    if kind == "pipe":
        os.mkfifo(path)
    line = logs._text(1.5, "ERROR", "m", {}).strip()
    monkeypatch.setattr(forwarding, "follow_worker_lines", lambda take, _: take([line]))
    Forwarding(str(path), "text").end()
    said = capfd.readouterr().err.splitlines()
    assert f"TANDEM_LOG={path} cannot be written to" in said[0]
    assert said[1:] == [line]


@pytest.fixture
def joined() -> Iterator[None]:
    """This process, on a cluster of two machines that somebody else has started."""
    os.environ.pop(logs.PATH, None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1, resources={"second": 1})
    ray.init(cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("joined")
def test_a_process_on_another_machine_is_heard(tmp_path: Path) -> None:
    def work() -> None:
        import logging

        from tandem.cluster.telemetry import logs

        logs.start("text", calls=True)
        print("not ours", file=sys.stderr)
        logs.call({"method": "Generate"})
        logging.getLogger("tandem.x").warning("something happened")

    path = tmp_path / "lines"
    passing_on = Forwarding(str(path), "text")
    ray.get(ray.remote(resources={"second": 1})(work).remote())
    eventually(lambda: "something happened" in path.read_text(), "no line came", within_s=20)
    passing_on.end()
    call, event = path.read_text().splitlines()
    assert call.endswith("INFO call method=Generate")
    assert event.endswith("WARNING something happened logger=tandem.x")
