"""Whether a cluster stays as it is under hours of work: nothing that it holds may grow.

    python bench/soak.py [--seconds 1200] [--rate 4] [--out bench/results/soak.json] [--picture docs/soak.svg]
    python bench/soak.py --draw bench/results/soak.json [--picture docs/soak.svg]

A cluster with the bundled model, and requests at a steady rate, whether or not others are answered: plain and
streamed, over gRPC and HTTP, greedy, sampled and with beams, some given up half way, some refused. All the
time it is asked for the KV pages in use, the objects in Ray's object store and their bytes, and of each of
its processes for the private memory and the open files. A straight line is fitted to each series after the
first third; where it rises by more than an allowance, the run fails, as where pages are held in the end.
`--draw` draws a result again and measures nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import machine
import numpy as np
import ray
from picture import Panel, picture
from ray._private.internal_api import node_stats
from rich.console import Console
from rich.table import Table
from traffic import EOS, VOCABULARY, cluster, counters

from tandem import AsyncClient, SamplingParams
from tandem.cluster.config import ServeConfig
from tandem.cluster.endpoints import Endpoints
from tandem.errors import DeadlineExceeded, InvalidRequest, Overloaded, TandemError
from tandem.params import BeamSearchParams

SAMPLES = 300  # of a run, but no more than one a second
WARM_UP = 1 / 3  # of a run, in which caches fill and allocators find their size
# Small, so that it is full long before the warm-up is over, as any cache is after hours.
CACHE_BYTES = 8 * 2**20
DRAIN_S = 60.0
# How much a fitted line may rise while it is looked at: what allocators, garbage collectors and traffic's own
# chance do.
ALLOWED = {"pages": 40.0, "objects": 40.0, "object_mib": 8.0, "rss_mib": 12.0, "files": 6.0}
PAGES = 1000.0  # the pool, of which pages are told as a share
POINTS = 40  # of a series, that are kept and drawn
SHARE = 0.03  # or this much of the series' mean, where that is more


@dataclass(frozen=True)
class Line:
    """A series after its warm-up."""

    mean: float
    rise: float  # of the straight line that fits best, from its start to its end
    allowed: float

    @property
    def grows(self) -> bool:
        return self.rise > self.allowed


def fitted(points: Sequence[tuple[float, float]], allowance: float) -> Line:
    """The line of (seconds, value) points after the first third of the time."""
    start, end = points[0][0], points[-1][0]
    late = np.array([point for point in points if point[0] >= start + WARM_UP * (end - start)])
    slope = np.polyfit(late[:, 0] - late[0, 0], late[:, 1], 1)[0] if len(late) > 1 else 0.0
    mean = float(late[:, 1].mean())
    rise = float(slope * (late[-1, 0] - late[0, 0]))
    return Line(mean, rise, max(allowance, SHARE * mean))


def processes() -> dict[str, tuple[float, int]]:
    """The private memory in MiB and the open files of each process of the cluster, by its name and id."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it ends meanwhile
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text().split("\0")
            # An actor's process has the method that runs in its title.
            ours = command[0].startswith("ray::")
            names[pid] = command[0].split(".")[0] if ours else Path(command[0]).name
    found = {}
    for pid, name in names.items():
        above = parents.get(pid, 0)
        while above > 1 and above != _self():
            above = parents.get(above, 0)
        if above == _self() and not name.startswith("ray::IDLE"):
            with contextlib.suppress(OSError, StopIteration):
                status = Path(f"/proc/{pid}/status").read_text().splitlines()
                private = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
                files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                found[f"{name} {pid}"] = private / 1024, files
    return found


def _self() -> int:
    return int(Path("/proc/self").readlink().name)


class Watch:
    """The series of a run: (seconds since it began, value) by kind and, where there are several, by name."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.series: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        self._endpoints, self._began = endpoints, time.monotonic()
        [node] = ray.nodes()
        self._raylet = node["NodeManagerAddress"], node["NodeManagerPort"]

    def look(self) -> None:
        now = time.monotonic() - self._began
        found = counters(self._endpoints)
        store = node_stats(*self._raylet, include_memory_info=False).store_stats
        self._add(now, "pages", "", pages(found))
        self._add(now, "objects", "", store.num_local_objects)
        self._add(now, "object_mib", "", store.object_store_bytes_used / 2**20)
        for name, (memory, files) in processes().items():
            self._add(now, "rss_mib", name, memory)
            self._add(now, "files", name, files)

    def _add(self, now: float, kind: str, name: str, value: float) -> None:
        self.series[kind][name].append((now, value))

    async def go_on(self, seconds: float) -> None:
        period = max(1.0, seconds / SAMPLES)
        while time.monotonic() - self._began < seconds:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(period)


def pages(found: Mapping[str, float]) -> float:
    """The KV pages in use, in thousandths of the pool."""
    return PAGES * found["tandem_kv_cache_usage"]


class Traffic:
    """Requests of all kinds, in random order, and what became of them."""

    def __init__(self, endpoints: Endpoints, seed: int = 0) -> None:
        self.ends: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._endpoints = endpoints

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        base = f"http://{self._endpoints.http[0]}"
        async with AsyncClient(self._endpoints.grpc[0]) as self._grpc:
            async with httpx.AsyncClient(base_url=base, timeout=120) as self._http:
                yield

    async def go_on(self, seconds: float, rate: float) -> None:
        """Sends `rate` requests a second, at random times, and waits for their ends."""
        kinds = (self.plain, self.streamed, self.sampled, self.beams, self.completion, self.translate,
                 self.given_up, self.refused)  # fmt: skip
        at, tasks = time.monotonic(), []
        end = at + seconds
        while at < end:
            tasks.append(asyncio.create_task(self._counted(self._rng.choice(kinds))))
            at += self._rng.expovariate(rate)
            await asyncio.sleep(at - time.monotonic())
        await asyncio.gather(*tasks)

    async def _counted(self, kind: Any) -> None:
        try:
            await kind()
        except (Overloaded, DeadlineExceeded):
            self.ends["told to come later"] += 1  # the machine is busy with something else
        except (TandemError, httpx.HTTPError, AssertionError) as error:
            self.ends[f"{kind.__name__}: {type(error).__name__} {error!s:.80}"] += 1
        else:
            self.ends[kind.__name__] += 1

    def _ids(self) -> dict[str, list[int]]:
        length = self._rng.randrange(8, 300)  # hidden states of more than 100 KB are objects of the store
        return {"prompt_token_ids": [self._rng.randrange(3, VOCABULARY) for _ in range(length)] + [EOS]}

    def _text(self) -> str:
        return f"I have {self._rng.randrange(10**6)} dogs and {self._rng.randrange(10**6)} cats."

    def _tokens(self) -> int:
        return self._rng.randrange(4, 40)

    async def plain(self) -> None:
        await self._grpc.generate(self._ids(), SamplingParams(temperature=0, max_tokens=self._tokens()))

    async def streamed(self) -> None:
        async for _ in self._grpc.stream(self._ids(), SamplingParams(max_tokens=self._tokens())):
            pass

    async def sampled(self) -> None:
        await self._grpc.generate(self._ids(), SamplingParams(n=3, logprobs=2, max_tokens=self._tokens()))

    async def beams(self) -> None:
        await self._grpc.generate(self._ids(), BeamSearchParams(num_beams=4, max_tokens=self._tokens()))

    async def completion(self) -> None:
        body = {"prompt": self._text(), "max_tokens": self._tokens(), "stream": True}
        async with self._http.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_bytes():
                pass
            assert answer.status_code == 200

    async def translate(self) -> None:
        body = {"q": [self._text(), self._text()], "source": "en", "target": "fr"}
        assert (await self._http.post("/translate", json=body)).status_code == 200

    async def given_up(self) -> None:
        params = SamplingParams(max_tokens=400, ignore_eos=True)
        async with contextlib.aclosing(self._grpc.stream(self._ids(), params)) as deltas:
            async for _ in deltas:
                break

    async def refused(self) -> None:
        with contextlib.suppress(InvalidRequest):
            await self._grpc.generate(self._ids(), SamplingParams(top_p=7.0))
            raise AssertionError("it was not refused")


async def measure(endpoints: Endpoints, seconds: float, rate: float) -> dict[str, Any]:
    traffic, watch = Traffic(endpoints), Watch(endpoints)
    async with traffic.connected():
        await asyncio.gather(traffic.go_on(seconds, rate), watch.go_on(seconds))
    deadline = time.monotonic() + DRAIN_S
    while (left := pages(counters(endpoints))) > 0 and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return {"ends": dict(traffic.ends), "pages_left": left, "series": watch.series}


def lines(series: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Line]:
    """By kind and name; what came or went during the run has none."""
    whole = len(series["pages"][""])
    return {
        (kind, name): fitted(points, ALLOWED[kind])
        for kind, named in series.items()
        for name, points in named.items()
        if len(points) > 0.9 * whole
    }


def thinned(series: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[list[float]]]]:
    """What is drawn and kept: of each kind the three largest, of each every so many points."""

    def some(points: Any) -> list[list[float]]:
        every = max(1, len(points) // POINTS)
        return [[round(at), round(value, 1)] for at, value in points[::every]]

    def largest(named: Mapping[str, Any]) -> list[str]:
        return sorted(named, key=lambda name: -max(value for _, value in named[name]))[:3]

    return {kind: {name: some(named[name]) for name in largest(named)} for kind, named in series.items()}


def drawn(result: Mapping[str, Any]) -> str:
    series = result["series"]

    def minutes(points: Any) -> list[tuple[float, float]]:
        return [(at / 60, value) for at, value in points]

    def named(kind: str) -> dict[str, Any]:
        return {short(name): minutes(points) for name, points in series[kind].items()}

    x = "minutes"
    panels = [
        Panel("KV pages in use, thousandths of the pool", x, {"pages": minutes(series["pages"][""])}),
        Panel("Objects in the object store", x, {"objects": minutes(series["objects"][""])}),
        Panel("Private memory, MiB, the three largest", x, named("rss_mib")),
        Panel("Open files, the three with most", x, named("files")),
    ]
    return picture(panels, "What a cluster holds over the time of a soak")


def short(name: str) -> str:
    return name.split()[0].removeprefix("ray::").split(":")[-1][:14]


def main() -> None:
    parser = machine.parser(__doc__, "soak")
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--picture", type=Path, default=Path(__file__).parents[1] / "docs" / "soak.svg")
    parser.add_argument("--draw", type=Path)
    args = parser.parse_args()
    if args.draw is not None:
        args.picture.write_text(drawn(json.loads(args.draw.read_text())))
        return
    console = Console(width=110)
    config = ServeConfig(device="cpu", encoder_cache_bytes=CACHE_BYTES, drain_timeout_s=60.0)
    with cluster(config) as running:
        found = asyncio.run(measure(running.deploy(config), args.seconds, args.rate))
    fits = lines(found["series"])
    table = Table("", "of", "mean", "rises by", "allowed")
    for (kind, name), line in fits.items():
        mark = "[red]" if line.grows else ""
        table.add_row(f"{mark}{kind}", name, f"{line.mean:.1f}", f"{line.rise:+.1f}", f"{line.allowed:.1f}")
    console.print(table, found["ends"])
    failed = [f"{kind} of {name or 'the cluster'} grows" for (kind, name), line in fits.items() if line.grows]
    failed += [f"pages are held by nobody: {found['pages_left']:.1f} ‰"] * (found["pages_left"] > 0)
    failed += [f"{count} of {end}" for end, count in found["ends"].items() if ":" in end]
    result = {
        "machine": machine.describe(), "seconds": args.seconds, "rate": args.rate, "failed": failed, **found,
        "series": thinned(found["series"]),
        "lines": [{"kind": kind, "name": name, **vars(line)} for (kind, name), line in fits.items()],
    }  # fmt: skip
    machine.write(args.out, result)
    args.picture.write_text(drawn(result))
    console.print(f"wrote {args.out} and {args.picture}", *failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
