"""What the overload benchmark makes of its answers, and its picture."""

from __future__ import annotations

from xml.etree import ElementTree

import overload
import pytest
from picture import Panel, picture

SVG = "{http://www.w3.org/2000/svg}"


def test_answers_are_counted_by_how_they_ended() -> None:
    sent = [overload.Sent("whole", 2.0)] * 30 + [overload.Sent("refused", 0.01)] * 60
    sent += [overload.Sent("cut", 5.25)] * 10
    found = overload.figures(sent, 10.0, 5.0)
    assert found["per_s"] == {"cut": 1.0, "refused": 6.0, "whole": 3.0}
    assert found["whole_s"] == {"p50": 2.0, "p99": 2.0}
    assert found["refusal_s"] == {"p50": 0.01, "p99": 0.01}
    assert found["beyond_the_deadline_s"] == pytest.approx(0.25)
    assert overload.figures(sent[:1], 10.0, None)["refusal_s"] is None


def test_a_result_is_drawn() -> None:
    one = {"per_s": {"whole": 8.0}, "whole_s": {"p50": 1.0, "p99": 4.0}, "refusal_s": None}
    some = {**one, "refusal_s": {"p50": 0.004, "p99": 0.08}}
    loads = {"1.0": one, "2.0": some, "4.0": some}
    drawing = overload.drawn({"capacity_per_s": 10.0, "deadline": loads, "no deadline": loads})
    root = ElementTree.fromstring(drawing)
    assert [len(line.attrib["points"].split()) for line in root.iter(f"{SVG}polyline")] == [3, 3, 3, 3, 2, 2]
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"5 s deadline", "p50", "p99", "requests sent / capacity"} <= texts


def test_points_are_where_they_belong() -> None:
    root = ElementTree.fromstring(picture([Panel("a < b", "x", {"line": [(1.0, 0.0), (4.0, 80.0)]})], "what"))
    [line] = root.iter(f"{SVG}polyline")
    low, high = (tuple(map(float, point.split(","))) for point in line.attrib["points"].split())
    assert (low[1], high[1]) == (178.0, 28.0)  # the lower and the upper edge: 80 is the axis' end
    assert high[0] == 348.0
    assert low[0] == 48 + 300 / 4
