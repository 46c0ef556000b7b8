"""`tandem top`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Annotated

import typer
from rich.console import Console

from tandem.cli.options import API_KEY_ENV, ApiKeyEnvOption, errors_shown


def top(
    url: Annotated[
        list[str] | None,
        typer.Argument(
            help="HTTP addresses of servers, or of their --metrics-port. In direct mode each ingress "
            "replica has one of its own.",
            show_default="localhost:8000",
        ),
    ] = None,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks, over which rates are.")
    ] = 1.0,
    api_key_env: ApiKeyEnvOption = API_KEY_ENV,
) -> None:
    """Show what servers do right now: engines, slots, pages, queues, tokens a second, latencies, refusals.

    [bold]Examples[/bold]

      tandem top
      tandem top localhost:8000 localhost:8001
      tandem top https://gateway.example --once
    """
    with errors_shown():
        from tandem.top.scrape import metrics_url

        urls = list(dict.fromkeys(metrics_url(one) for one in url or ["localhost:8000"]))
        key = os.environ.get(api_key_env)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run((_once if once else _live)(urls, key, interval))


async def _once(urls: list[str], key: str | None, interval: float) -> None:
    from tandem.top.scrape import scrape
    from tandem.top.tables import shown
    from tandem.top.view import View

    view = View()
    view.add(await scrape(urls, key))
    if len(view.problems) < len(urls):
        await asyncio.sleep(interval)
        view.add(await scrape(urls, key))
    Console().print(shown(view, since_start=True))
    if view.problems:
        raise typer.Exit(1)


async def _live(urls: list[str], key: str | None, interval: float) -> None:
    from rich.live import Live

    from tandem.top.scrape import scrape
    from tandem.top.tables import shown
    from tandem.top.view import View

    view = View()
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            view.add(await scrape(urls, key))
            live.update(shown(view), refresh=True)
            await asyncio.sleep(interval)
