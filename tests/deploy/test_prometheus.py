"""The dashboard and the alerts ask for series, labels and values that a server has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import promql_parser as promql
import pytest
import yaml
from fake_router import FakeRouter
from fake_service import make_service
from models import make_checkpoint
from prometheus_client.parser import text_string_to_metric_families

from tandem.cluster.config import ServeConfig
from tandem.workers.config import EngineConfig
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.scheduling.plan import WaitingFor

FOLDER = Path(__file__).parents[2] / "deploy/prometheus"
Labels = dict[str, set[str]]


def expressions() -> Iterator[tuple[str, str]]:
    dashboard: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$model", "tiny")
            assert not re.search(r"\$", expression), expression
            yield panel["title"], expression
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["spec"]["groups"]:
        for rule in group["rules"]:
            assert {"alert", "expr", "for", "labels", "annotations"} == rule.keys()
            yield rule["alert"], rule["expr"]


def inner(expression: Any) -> Iterator[Any]:
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        if (part := getattr(expression, name, None)) is not None:
            yield from inner(part)
    for argument in getattr(expression, "args", None) or ():
        yield from inner(argument)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Labels]:
    """What a server with an engine says at /metrics: the values of each series' labels."""
    folder = make_checkpoint(tmp_path_factory.mktemp("model"), "flan")
    service = make_service(folder, RequestBuilder.load(folder, "tiny"), FakeRouter([5]))
    service.metrics.ended("grpc", "Generate", "OK")
    service.metrics.windows("chunked", 1)
    found: dict[str, Labels] = {}
    for family in text_string_to_metric_families(service.metrics.text().decode()):
        for sample in family.samples:
            for name, value in sample.labels.items():
                found.setdefault(sample.name, {}).setdefault(name, set()).add(value)
    return found


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_an_expression_asks_for_what_there_is(where: str, expression: str, series: dict[str, Labels]) -> None:
    selectors = [part for part in inner(promql.parse(expression)) if isinstance(part, promql.VectorSelector)]
    assert selectors, where
    assert len(selectors) == len(re.findall(r"\btandem_\w+", expression))
    asked: set[str] = set()
    for selector in selectors:
        assert selector.name in series, f"{where}: {selector.name}"
        labels = series[selector.name]
        asked |= labels.keys()
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, f"{where}: {selector.name} has no label {matcher.name}"
            known = labels[matcher.name] | {code.name for code in grpc.StatusCode}
            assert set(matcher.value.split("|")) <= known, f"{where}: {matcher.value}"
    grouped = {
        name.strip() for names in re.findall(r"by \(([^)]*)\)", expression) for name in names.split(",")
    }
    assert grouped <= asked


def test_the_manual_names_what_there_is(series: dict[str, Labels]) -> None:
    """Series, labels and their values, and settings: in the table of what to watch."""
    manual = (FOLDER.parents[1] / "docs/operate.md").read_text()
    table = manual.partition("| question | series")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+)`", table)) - {"tandem_"}
    assert len(named) > 50
    known = {name.removeprefix("tandem_").removesuffix("_bucket") for name in series}
    for labels in series.values():
        known |= labels.keys() | {value for values in labels.values() for value in values}
    known |= {field.name for field in fields(ServeConfig)} | {field.name for field in fields(EngineConfig)}
    known |= {reason.value for reason in WaitingFor}
    known |= {"max_tokens", "warning"}  # a request's, and the body's of /health
    assert named <= known, named - known


def test_every_panel_has_a_place_of_its_own() -> None:
    dashboard: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
