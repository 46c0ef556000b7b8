"""`/metrics` of several servers, fetched together and parsed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tandem.errors import InvalidRequest

_TIMEOUT_S: Final = 5.0
_PREFIX: Final = "tandem_"
_NOT_OK: Final = {
    401: "asks for a key",
    404: "has no /metrics here: its metrics may have a port of their own",
}


@dataclass(frozen=True, slots=True)
class Sample:
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Scrape:
    """One answer. A proxy passes a scrape on to one ingress replica, which the label `replica` names."""

    url: str
    at_s: float  # of a monotonic clock
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)  # by name, without "tandem_"
    problem: str = ""  # why there is none

    @property
    def replica(self) -> str:
        return next((one.labels.get("replica", "") for one in self.of("engines")), "")

    def of(self, name: str) -> Sequence[Sample]:
        return self.samples.get(name, ())

    def total(self, name: str, **labels: Sequence[str]) -> float:
        """The sum over the series that have one of these values of each label."""
        return sum(
            one.value for one in self.of(name) if all(one.labels.get(key) in labels[key] for key in labels)
        )


def metrics_url(given: str) -> str:
    """A server as people name it → where its metrics are. Raises InvalidRequest."""
    scheme, _, rest = (given if "://" in given else f"http://{given}").partition("://")
    host, _, path = rest.rstrip("/").partition("/")
    if scheme not in ("http", "https") or not host:
        raise InvalidRequest(
            f"must be an HTTP address, such as localhost:8000, got {given!r:.80}", field="URL"
        )
    parts = [host, *filter(None, path.split("/"))]
    return f"{scheme}://{'/'.join(parts if parts[-1] == 'metrics' else [*parts, 'metrics'])}"


def parsed(text: str) -> dict[str, list[Sample]]:
    """Tandem's series, by their names without "tandem_". Raises ValueError for what is no such text."""
    found: dict[str, list[Sample]] = {}
    for sample in _samples(text):
        found.setdefault(sample[0], []).append(sample[1])
    return found


def _samples(text: str) -> Iterator[tuple[str, Sample]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(_PREFIX):
                yield sample.name.removeprefix(_PREFIX), Sample(sample.labels, sample.value)


async def scrape(urls: Sequence[str], key: str | None) -> list[Scrape]:
    """An answer of each server. What goes wrong is in its `problem`."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        return list(await asyncio.gather(*(_one(session, url) for url in urls)))


async def _one(session: aiohttp.ClientSession, url: str) -> Scrape:
    problem, samples = "", {}
    try:
        async with session.get(url, allow_redirects=False) as answer:
            text = await answer.text()
            if answer.status == 200:
                samples = parsed(text)
                problem = "" if samples else "says nothing of Tandem"
            else:
                problem = _NOT_OK.get(answer.status, f"answers with status {answer.status}")
    except TimeoutError:
        problem = f"has not answered within {_TIMEOUT_S:g} s"
    except aiohttp.ClientError as error:
        problem = f"cannot be reached: {error}"
    except ValueError:
        problem = "answers with what are no metrics"
    return Scrape(url, time.monotonic(), samples, problem)
