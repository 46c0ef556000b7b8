"""The soak: what counts as growth, and what is looked at."""

from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
import soak

TIMES = [float(at) for at in range(0, 1200, 4)]


@pytest.mark.parametrize(
    ("value", "grows"),
    [
        pytest.param(lambda _: 500.0, False, id="flat"),
        pytest.param(lambda at: 500 * (1 - math.exp(-at / 60)), False, id="warms up"),
        pytest.param(lambda at: 500 + 100 * math.sin(at), False, id="up and down"),
        pytest.param(lambda at: 500 - at / 10, False, id="shrinks"),
        pytest.param(lambda at: 500 + at / 20, True, id="leaks a MiB in 20 s"),
        pytest.param(lambda at: 500 + 100 * math.sin(at) + at / 10, True, id="leaks, up and down"),
        pytest.param(lambda at: 10 + at / 60, True, id="a small process leaks"),
    ],
)
def test_growth_is_a_line_that_rises_after_the_warm_up(value: Any, grows: bool) -> None:
    line = soak.fitted([(at, value(at)) for at in TIMES], soak.ALLOWED["rss_mib"])
    assert line.grows == grows


def test_what_came_or_went_has_no_line() -> None:
    whole = [(at, 1.0) for at in TIMES]
    series = {"pages": {"": whole}, "files": {"a 1": whole, "b 2": whole[:100]}}
    assert soak.lines(series).keys() == {("pages", ""), ("files", "a 1")}


def test_every_series_has_an_allowance() -> None:
    assert soak.ALLOWED.keys() == {"pages", "objects", "object_mib", "rss_mib", "files"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's tables")
def test_processes_are_the_descendants_with_their_memory_and_files() -> None:
    code = "held = bytearray(64 * 2**20); files = [open('/dev/null') for _ in range(50)]; input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None

        def settled() -> bool:
            found = {name.split()[-1]: values for name, values in soak.processes().items()}
            memory, files = found.get(str(child.pid), (0.0, 0))
            return 64 < memory < 128 and 53 <= files < 70

        while not settled() and child.poll() is None:
            pass
        assert settled()
        child.stdin.close()


def test_the_picture_has_a_curve_for_each_series() -> None:
    points = [[at, 3.0 + at] for at in TIMES]
    series = {"pages": {"": points}, "objects": {"": points}, "object_mib": {"": points}}
    series |= {"rss_mib": {f"ray::A:{n} {n}": points for n in range(5)}, "files": {"gcs_server 7": points}}
    drawn = ElementTree.fromstring(soak.drawn({"series": soak.thinned(series)}))
    curves = [each for each in drawn if each.tag.endswith("polyline")]
    assert len(curves) == 1 + 1 + 3 + 1
    texts = [each.text for each in drawn if each.tag.endswith("text")]
    assert "gcs_server" in texts
    assert len(texts) < 60  # the axis is not full of numbers
