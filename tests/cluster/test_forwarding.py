"""Lines of processes that a joined cluster's own machines started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from serving import eventually

from tandem.cluster.forwarding import Forwarding, our_lines
from tandem.cluster.telemetry import logs

TEXT = "2026-11-30T14:10:27.307Z ERROR Decoder 9fa694e2: a worker process ended"
JSON = '{"time": "2026-11-30T14:10:27.307Z", "level": "INFO", "message": "call"}'
TRACE = ["Traceback (most recent call last):", '  File "x.py", line 1, in f', "    g()", "ValueError: broken"]


def test_ours_are_picked_out_with_their_tracebacks() -> None:
    others = [
        "INFO 2026-11-30 17:06:41,914 serve 27594 -- x",
        "",
        "Traceback (most recent call last):",
        "  x",
        "E",
    ]
    lines = [*others, TEXT, *TRACE, "other", JSON, *others[:2], TEXT, "other", "  more"]
    assert list(our_lines(lines)) == [TEXT, *TRACE, JSON, TEXT]


def test_what_the_loggers_write_is_ours() -> None:
    shapes = (logs._text, logs._json)
    for level in ("INFO", "WARNING", "ERROR"):
        for shape in shapes:
            [line] = shape(1.5, level, "m", {"a": 1}).splitlines()
            assert list(our_lines([line])) == [line]


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
    forwarding = Forwarding(str(path))
    ray.get(ray.remote(resources={"second": 1})(work).remote())
    eventually(lambda: "something happened" in path.read_text(), "no line came", within_s=20)
    forwarding.end()
    call, event = path.read_text().splitlines()
    assert call.endswith("INFO call method=Generate")
    assert event.endswith("WARNING something happened logger=tandem.x")
