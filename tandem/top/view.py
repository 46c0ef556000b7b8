"""Scrapes → what a cluster does: rates between the last two of each ingress replica, latencies over a minute.

Several ingress replicas report the same engine; the largest of what they say of it holds, since they hear of
its steps one after another.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tandem.top.scrape import Scrape

_WINDOW_S: Final = 60.0
_GONE_S: Final = 60.0  # without an answer: the replica is not shown any more
_FAILED: Final = ("INTERNAL", "UNKNOWN", "DATA_LOSS")


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine."""

    name: str
    running: int  # sequences in its batch
    slots: int  # that the batch has room for
    waiting: int  # sequences
    pages: int  # in its pool
    pages_used: int
    tokens_per_s: float
    preemptions: int


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model, over all ingress replicas that have answered."""

    model: str
    ingress_replicas: int
    encoder_replicas: int
    under_way: int  # sequences accepted and not ended
    waiting: int  # of them without room on an engine
    encoder_queue_tokens: int
    tokens_per_s: float  # delivered to clients
    requests_per_s: float  # ended
    p50_s: float | None  # of whole requests; None: none has ended
    p99_s: float | None
    first_token_p50_s: float | None
    first_token_p99_s: float | None
    refused: int  # requests since the servers started
    failed: int
    engines: list[EngineRow] = field(default_factory=list)


class View:
    """Takes scrapes, and says what they show."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], deque[Scrape]] = {}  # by URL and replica: a window of scrapes
        self.problems: dict[str, str] = {}  # by URL, of its last scrape

    def add(self, scrapes: Iterable[Scrape]) -> None:
        for scrape in scrapes:
            self.problems.pop(scrape.url, None)
            if scrape.problem:
                self.problems[scrape.url] = scrape.problem
                continue
            kept = self._kept.setdefault((scrape.url, scrape.replica), deque())
            kept.append(scrape)
            while len(kept) > 2 and kept[1].at_s <= scrape.at_s - _WINDOW_S:
                kept.popleft()
        latest = max((kept[-1].at_s for kept in self._kept.values()), default=0.0)
        self._kept = {name: kept for name, kept in self._kept.items() if kept[-1].at_s > latest - _GONE_S}

    def models(self, *, since_start: bool = False) -> list[ModelView]:
        """By the models' names. `since_start`: latencies are those of all requests so far."""
        by_model: dict[str, dict[str, deque[Scrape]]] = {}
        for kept in self._kept.values():
            for one in kept[-1].of("engines")[:1]:
                by_model.setdefault(one.labels.get("model", ""), {})[kept[-1].replica] = kept
        return [
            _model(name, [*replicas.values()], since_start=since_start)
            for name, replicas in sorted(by_model.items())
        ]


def _model(name: str, replicas: Sequence[deque[Scrape]], *, since_start: bool) -> ModelView:
    now = [kept[-1] for kept in replicas]

    def total(series: str) -> int:
        return round(sum(scrape.total(series) for scrape in now))

    def quantile(share: float, series: str) -> float | None:
        return _quantile(share, _buckets(replicas, series, since_start=since_start))

    return ModelView(
        model=name,
        ingress_replicas=len(replicas),
        encoder_replicas=round(max(scrape.total("encoder_replicas") for scrape in now)),
        under_way=total("router_requests"),
        waiting=total("router_requests_waiting"),
        encoder_queue_tokens=total("encoder_queued_tokens"),
        tokens_per_s=sum(_rate(kept, "generation_tokens_total") for kept in replicas),
        requests_per_s=sum(_rate(kept, "requests_total") for kept in replicas),
        p50_s=quantile(0.5, "e2e_request_latency_seconds"),
        p99_s=quantile(0.99, "e2e_request_latency_seconds"),
        first_token_p50_s=quantile(0.5, "time_to_first_token_seconds"),
        first_token_p99_s=quantile(0.99, "time_to_first_token_seconds"),
        refused=total("refused_total"),
        failed=round(sum(scrape.total("requests_total", status=_FAILED) for scrape in now)),
        engines=_engines(replicas),
    )


def _engines(replicas: Sequence[deque[Scrape]]) -> list[EngineRow]:
    names = sorted({one.labels["engine"] for kept in replicas for one in kept[-1].of("engine_slots")})

    def most(series: str, engine: str) -> float:
        return max(kept[-1].total(series, engine=(engine,)) for kept in replicas)

    rows = []
    for name in names:
        pages = round(most("kv_pages", name))
        rows.append(
            EngineRow(
                name=name,
                running=round(most("num_requests_running", name)),
                slots=round(most("engine_slots", name)),
                waiting=round(most("num_requests_waiting", name)),
                pages=pages,
                pages_used=round(pages * most("kv_cache_usage", name)),
                tokens_per_s=max(
                    _rate(kept, "engine_generated_tokens_total", engine=(name,)) for kept in replicas
                ),
                preemptions=round(most("preemptions_total", name)),
            )
        )
    return rows


def _rate(kept: deque[Scrape], series: str, **labels: Sequence[str]) -> float:
    """A counter's growth a second, between the last two scrapes."""
    if len(kept) < 2:
        return 0.0
    before, now = kept[-2], kept[-1]
    grown = _growth(before.total(series, **labels), now.total(series, **labels))
    return grown / max(now.at_s - before.at_s, 1e-9)


def _growth(before: float, now: float) -> float:
    """A counter that is less than before has started anew."""
    return now - before if now >= before else now


def _buckets(replicas: Sequence[deque[Scrape]], series: str, *, since_start: bool) -> Mapping[float, float]:
    """The observations of a window up to each bound, in seconds, over all replicas."""
    found: dict[float, float] = {}
    for kept in replicas:
        old = (
            {}
            if since_start or len(kept) < 2
            else {one.labels["le"]: one.value for one in kept[0].of(f"{series}_bucket")}
        )
        for one in kept[-1].of(f"{series}_bucket"):
            bound = float(one.labels["le"])
            found[bound] = found.get(bound, 0.0) + _growth(old.get(one.labels["le"], 0.0), one.value)
    return found


def _quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """As Prometheus' `histogram_quantile`: within a bucket observations are taken to be spread evenly."""
    counts = sorted(buckets.items())
    rank = share * counts[-1][1] if counts else 0.0
    low, below = 0.0, 0.0
    for bound, count in counts:
        if rank and count >= rank:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return None
