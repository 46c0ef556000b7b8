"""`tandem top`: what it computes from the text of our own metrics, and what it says where there is none."""

from __future__ import annotations

import asyncio
import inspect
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
import uvicorn
from fake_router import FakeRouter, engine_stats
from rich.console import Console
from serving import free_port
from typer.testing import CliRunner

from tandem.cli import app
from tandem.cluster.callers import ANYBODY
from tandem.cluster.ingress.metrics import Metrics
from tandem.errors import InvalidRequest, Overloaded
from tandem.top import view as view_module
from tandem.top.scrape import Scrape, metrics_url, parsed
from tandem.top.tables import shown
from tandem.top.view import View

URL = "http://one:8000/metrics"


def metrics(replica: str = "a", router: FakeRouter | None = None, model: str = "m") -> Metrics:
    return Metrics(model, replica, (router or FakeRouter([])).stats)


def scraped(of: Metrics, at_s: float, url: str = URL) -> Scrape:
    return Scrape(url, at_s, parsed(of.text().decode()))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:8000", "http://localhost:8000/metrics"),
        ("http://localhost:8000/", "http://localhost:8000/metrics"),
        ("https://host/base", "https://host/base/metrics"),
        ("host:9400/metrics", "http://host:9400/metrics"),
        ("http://[::1]:8000", "http://[::1]:8000/metrics"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert metrics_url(given) == url


@pytest.mark.parametrize("given", ["", "ftp://host", "http://", "/metrics"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest, match="URL"):
        metrics_url(given)


def test_rates_and_counts() -> None:
    router = FakeRouter([])
    stats = engine_stats(running=5, steps=3)
    router.engines = {"engine-1": stats, "engine-2": engine_stats()}
    of, view = metrics(router=router), View()
    view.add([scraped(of, 10.0)])
    of.generated(60, ANYBODY)
    of.ended("http", "completions", "OK")
    of.refused(Overloaded("full", refused="queue"))
    router.engines["engine-1"] = stats._replace(generated_tokens=50, waiting=2)
    view.add([scraped(of, 12.0)])
    (model,) = view.models()
    assert (model.model, model.ingress_replicas, model.encoder_replicas) == ("m", 1, 1)
    assert (model.tokens_per_s, model.requests_per_s, model.refused, model.failed) == (30.0, 0.5, 1, 0)
    first, second = model.engines
    assert (first.name, first.running, first.slots, first.waiting) == ("engine-1", 5, 8, 2)
    assert (first.pages, first.pages_used, first.tokens_per_s, first.preemptions) == (100, 25, 25.0, 1)
    assert (second.running, second.tokens_per_s) == (0, 0.0)


def test_latencies_are_those_of_the_window_and_as_prometheus_has_them() -> None:
    of, view = metrics(), View()
    for _ in range(1000):
        of.whole_request.observe(40.0)  # before the window
    view.add([scraped(of, 0.0)])
    for took_s in [0.15] * 90 + [3.0] * 10:
        of.whole_request.observe(took_s)
    view.add([scraped(of, 1.0)])
    (model,) = view.models()
    assert model.p50_s == pytest.approx(0.1 + 0.1 * 50 / 90)  # within its bucket, 0.1 to 0.2 s
    assert model.p99_s == pytest.approx(2.0 + 3.0 * 9 / 10)  # 2 to 5 s
    assert model.first_token_p50_s is None
    (since_start,) = view.models(since_start=True)
    assert since_start.p50_s is not None
    assert since_start.p50_s > 30
    # A minute later they are gone.
    for at_s in (30.0, 62.0, 63.0):
        view.add([scraped(of, at_s)])
    assert view.models()[0].p50_s is None
    of.whole_request.observe(10_000.0)  # beyond the last bound, which is all that is known
    view.add([scraped(of, 64.0)])
    assert view.models()[0].p99_s == 300.0


def test_replicas_are_added_up_and_engines_are_not() -> None:
    """A proxy passes each scrape on to another replica; both know the one engine."""
    view, (one, other) = View(), (metrics("a"), metrics("b"))
    for at_s in (0.0, 2.0):
        view.add([scraped(one, at_s)])
        view.add([scraped(other, at_s + 1.0)])
        one.generated(20, ANYBODY)
        other.generated(40, ANYBODY)
    (model,) = view.models()
    assert (model.ingress_replicas, model.tokens_per_s, len(model.engines)) == (2, 30.0, 1)
    # One that answers no more is not shown for ever.
    for at_s in (40.0, 80.0):
        view.add([scraped(one, at_s)])
    assert view.models()[0].ingress_replicas == 1


def test_a_server_that_starts_anew_makes_no_negative_rates() -> None:
    before, after, view = metrics(), metrics(), View()
    before.generated(1000, ANYBODY)
    after.generated(10, ANYBODY)
    view.add([scraped(before, 0.0)])
    view.add([scraped(after, 1.0)])
    assert view.models()[0].tokens_per_s == 10.0


def test_several_models() -> None:
    view = View()
    view.add([scraped(metrics(model="z"), 0.0), scraped(metrics(model="[red]m"), 0.0, "http://two/metrics")])
    assert [model.model for model in view.models()] == ["[red]m", "z"]


@contextmanager
def served(text: bytes, key: str = "", status: int = 200) -> Iterator[int]:
    """A port with `/metrics`."""

    async def answer(scope: Any, _: Any, send: Any) -> None:
        told = dict(scope["headers"]).get(b"authorization", b"").decode()
        code = status if not key or told == f"Bearer {key}" else 401
        await send({"type": "http.response.start", "status": code, "headers": []})
        await send({"type": "http.response.body", "body": text if code == 200 else b""})

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(answer, port=port, lifespan="off", log_config=None))
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            asyncio.run(asyncio.sleep(0.01))
        yield port
    finally:
        server.should_exit = True
        thread.join()


def top(*arguments: str, key: str | None = None) -> tuple[int, str]:
    environment = {"TANDEM_API_KEY": key, "COLUMNS": "120"}
    result = CliRunner().invoke(app, ["top", "--once", "--interval", "0.1", *arguments], env=environment)
    return result.exit_code, result.output


def test_a_table() -> None:
    of = metrics()
    of.whole_request.observe(0.15)
    with served(of.text()) as port:
        code, text = top(f"localhost:{port}")
    assert code == 0
    rows = [line.split() for line in text.splitlines()]
    assert ["engine-1", "0", "8", "0", "25", "100", "25%", "0", "1"] in rows
    assert "p50 (since the start)  150 ms" in text
    assert "\x1b[" not in text  # nobody is at a terminal


def test_keys_and_servers_that_have_none() -> None:
    of = metrics()
    with (
        served(of.text(), key="secret") as one,
        served(b"x", status=404) as other,
        served(b"<html>") as third,
    ):
        code, text = top(
            f"localhost:{one}", f"localhost:{other}", f"localhost:{third}", "localhost:1", key="secret"
        )
        assert code == 1
        assert "engine-1" in text  # the one that answers is shown all the same
        for problem in ("asks for a key", "has no /metrics here", "no metrics", "cannot be reached"):
            assert (problem in text) is (problem != "asks for a key"), text
        code, text = top(f"localhost:{one}")
        assert (code, "asks for a key" in text) == (1, True)
    code, text = top("ftp://x")
    assert (code, "InvalidRequest URL" in text) == (1, True)


def test_a_server_has_every_series_that_top_reads() -> None:
    of = metrics()
    of.ended("http", "completions", "OK")  # this series has one for each way to end
    names = parsed(of.text().decode()).keys()
    read = set(
        re.findall(r'(?:total|most|quantile|_rate|of)\((?:[\w.]+, )?"(\w+)"', inspect.getsource(view_module))
    )
    assert len(read) > 12
    assert {name for name in read if name not in names and f"{name}_bucket" not in names} == set()


def test_what_is_shown_is_no_markup() -> None:
    view = View()
    view.add([scraped(metrics(model="[red]m"), 0.0), Scrape("http://[x]/metrics", 0.0, problem="[bold]y")])
    written = io.StringIO()
    Console(width=120, file=written).print(shown(view))
    text = written.getvalue()
    assert "[red]m" in text
    assert "http://[x]/metrics [bold]y" in text
