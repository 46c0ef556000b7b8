"""A view as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tandem.top.view import ModelView, View


def shown(view: View, *, since_start: bool = False) -> RenderableType:
    """`since_start`: latencies are those of all requests so far, else of the last minute."""
    parts: list[RenderableType] = []
    for model in view.models(since_start=since_start):
        parts += [_summary(model, "since the start" if since_start else "last minute"), _engines(model)]
    parts += [Text(f"{url} {problem}", style="red") for url, problem in view.problems.items()]
    return Group(*parts)


def _summary(model: ModelView, when: str) -> Table:
    table = Table(title=Text(model.model, style="bold"), title_justify="left", show_header=False, box=None)
    for _ in range(3):
        table.add_column(style="dim")
        table.add_column(justify="right")
    cells = list(_cells(model, when))
    for at in range(0, len(cells), 3):
        table.add_row(*(text for cell in cells[at : at + 3] for text in cell))
    return table


def _cells(model: ModelView, when: str) -> Iterator[tuple[str, str]]:
    yield "tokens/s", f"{model.tokens_per_s:,.0f}"
    yield f"p50 ({when})", _seconds(model.p50_s)
    yield "ingress replicas", str(model.ingress_replicas)
    yield "requests/s", f"{model.requests_per_s:,.1f}"
    yield f"p99 ({when})", _seconds(model.p99_s)
    yield "encoder replicas", str(model.encoder_replicas)
    yield "under way", f"{model.under_way:,}"
    yield "first token p50", _seconds(model.first_token_p50_s)
    yield "engines", str(len(model.engines))
    yield "waiting for room", f"{model.waiting:,}"
    yield "first token p99", _seconds(model.first_token_p99_s)
    yield "refused", f"{model.refused:,}"
    yield "encoder queue, tokens", f"{model.encoder_queue_tokens:,}"
    yield "", ""
    yield "failed", f"{model.failed:,}"


def _engines(model: ModelView) -> Table:
    table = Table("Engine", box=None, padding=(0, 2, 0, 0))
    for name in ("Running", "Slots", "Waiting", "Pages used", "of", "", "Tokens/s", "Preempted"):
        table.add_column(name, justify="right")
    for engine in model.engines:
        share = engine.pages_used / engine.pages if engine.pages else 0.0
        style = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
        table.add_row(
            Text(engine.name),
            str(engine.running),
            str(engine.slots),
            str(engine.waiting),
            f"{engine.pages_used:,}",
            f"{engine.pages:,}",
            Text(f"{share:.0%}", style=style),
            f"{engine.tokens_per_s:,.0f}",
            str(engine.preemptions),
        )
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
