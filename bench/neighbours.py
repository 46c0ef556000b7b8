"""What a caller notices of others on the same server: a greedy one, and attackers without a key.

    python bench/neighbours.py [--seconds 20] [--out bench/results/neighbours.json]

The cluster of bench/overload.py. One caller sends 5 short requests a second over HTTP, whether or not others
are answered: alone; beside another caller with 64 clients that send one request after another; and beside 20
attackers of each kind, who try as often as `RATES` says, from a process of their own. All share the
machine's cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import httpx
import machine
import numpy as np
from overload import SLOTS, STEP_S
from rich.console import Console
from rich.table import Table
from simulated import SimulatedEncoder, simulated_decoder
from soak import processes
from traffic import EOS, VOCABULARY, cluster

from tandem.cluster.callers import Quotas
from tandem.cluster.config import ServeConfig
from tandem.cluster.keys import line_of

SMALL: Final = 5.0  # requests a second
TOKENS: Final = 20  # of each answer: 0.4 s
GREEDY: Final = 64  # clients
GREEDY_TOKENS: Final = 80
ATTACKERS: Final = 20
# How often an attacker of a kind tries, a second.
RATES: Final = {"slow headers": 5.0, "connections": 20.0, "huge bodies": 1.0, "wrong keys": 20.0}
HUGE: Final = 64 * 2**20  # bytes announced of a body; what is read of it is the server's to decide
PIECE: Final = 2**16
HELD_S: Final = 15.0  # a connection with half a header, if the server lets it
TIMEOUT_S: Final = 60.0
BEGUN_S: Final = 2.0  # from when the others begin to the first request that counts


def body(rng: random.Random, tokens: int) -> dict[str, Any]:
    ids = [rng.randrange(3, VOCABULARY) for _ in range(20)] + [EOS]
    return {"prompt": ids, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


async def small(base: str, key: str, seconds: float) -> tuple[Counter[str], list[float]]:
    """How its requests ended, and the seconds of the whole answers from when they were due."""
    rng, ends, times = random.Random(1), Counter[str](), list[float]()
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=TIMEOUT_S) as client:

        async def one(due: float) -> None:
            try:
                answer = await client.post("/v1/completions", json=body(rng, TOKENS))
            except httpx.TransportError as error:
                ends[type(error).__name__] += 1
                return
            ends[str(answer.status_code)] += 1
            if answer.status_code == httpx.codes.OK:
                times.append(time.perf_counter() - due)

        due, tasks = time.perf_counter(), []
        until = due + seconds
        while (due := due + rng.expovariate(SMALL)) < until:
            await asyncio.sleep(due - time.perf_counter())
            tasks.append(asyncio.create_task(one(due)))
        await asyncio.gather(*tasks)
    return ends, times


async def greedy(base: str, key: str) -> None:
    rng = random.Random(2)
    headers = {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=GREEDY)
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=TIMEOUT_S, limits=limits) as client:

        async def one() -> None:
            while True:
                answer = await client.post("/v1/completions", json=body(rng, GREEDY_TOKENS))
                if answer.status_code != httpx.codes.OK:
                    await asyncio.sleep(float(answer.headers.get("retry-after", 1)))

        await asyncio.gather(*(one() for _ in range(GREEDY)))


async def slow_headers(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.closing(writer), contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HELD_S):
            writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
            while not reader.at_eof():
                writer.write(f"x-{secrets.token_hex(2)}: 1\r\n".encode())
                await writer.drain()
                await asyncio.sleep(1)


async def connections(host: str, port: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()


async def huge_bodies(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.closing(writer):
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {HUGE}\r\n\r\n"
        writer.write(head.encode())
        for _ in range(HUGE // PIECE):
            writer.write(bytes(PIECE))
            await writer.drain()
        await reader.read()


async def wrong_keys(host: str, port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=TIMEOUT_S) as client:
        headers = {"authorization": f"Bearer tandem-{secrets.token_hex(16)}"}
        await client.post("/v1/completions", json={"prompt": "x"}, headers=headers)


ATTACKS: Final[dict[str, Callable[[str, int], Awaitable[None]]]] = {
    "slow headers": slow_headers,
    "connections": connections,
    "huge bodies": huge_bodies,
    "wrong keys": wrong_keys,
}


async def attack(kind: str, host: str, port: int) -> None:
    async def guarded() -> None:
        with contextlib.suppress(OSError, httpx.TransportError):
            await ATTACKS[kind](host, port)

    async def attacker() -> None:
        async with asyncio.TaskGroup() as tries:
            while True:
                tries.create_task(guarded())
                await asyncio.sleep(1 / RATES[kind])

    await asyncio.gather(*(attacker() for _ in range(ATTACKERS)))


def _beside(kind: str, address: str, key: str) -> None:
    host, _, port = address.rpartition(":")
    asyncio.run(greedy(f"http://{address}", key) if kind == "greedy" else attack(kind, host, int(port)))


@contextlib.contextmanager
def others(kind: str, address: str, key: str) -> Iterator[None]:
    """A process of the others, while the block runs; "alone": none."""
    if kind == "alone":
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_beside, args=(kind, address, key))
    process.start()
    try:
        time.sleep(BEGUN_S)
        yield
    finally:
        process.kill()
        process.join()


def ingress_mib() -> float:
    return sum(memory for name, (memory, _) in processes().items() if ":Ingress" in name)


def figures(ends: Counter[str], times: list[float], grown_mib: float) -> dict[str, Any]:
    quantiles = {f"p{q}": round(float(np.percentile(times, q)), 4) for q in (50, 99)} if times else None
    return {"ends": dict(sorted(ends.items())), "whole_s": quantiles, "ingress_grew_mib": round(grown_mib, 1)}


def measure(address: str, keys: dict[str, str], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    asyncio.run(small(f"http://{address}", keys["small"], 3.0))  # connections, and the first passes
    for kind in ("alone", "greedy", *ATTACKS):
        before = ingress_mib()
        with others(kind, address, keys["greedy"]):
            ends, times = asyncio.run(small(f"http://{address}", keys["small"], seconds))
        found[kind] = figures(ends, times, ingress_mib() - before)
    return found


def main() -> None:
    parser = machine.parser(__doc__, "neighbours")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each case")
    args = parser.parse_args()
    keys = {name: f"tandem-{secrets.token_hex(16)}" for name in ("small", "greedy")}
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("\n".join(line_of(name, key, Quotas()) for name, key in keys.items()))
        file.flush()
        config = ServeConfig(max_num_seqs=SLOTS, device="cpu", api_keys=file.name, call_log=False)
        with cluster(config) as running:
            endpoints = running.deploy(config, encoder=SimulatedEncoder, decoder=simulated_decoder(STEP_S))
            found = measure(endpoints.http[0], keys, args.seconds)
    table = Table("beside", "whole", "others", "p50, s", "p99, s", "p99 / alone", "ingress, MiB")
    for kind, one in found.items():
        ends, whole = one["ends"], one["whole_s"]
        beside = {name: count for name, count in ends.items() if name != "200"}
        ratio = whole["p99"] / found["alone"]["whole_s"]["p99"] if whole else float("nan")
        table.add_row(
            kind, str(ends.get("200", 0)), str(beside or "–"),
            *(f"{whole[q]:.3f}" if whole else "–" for q in ("p50", "p99")),
            f"{ratio:.2f}", f"{one['ingress_grew_mib']:+.0f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    machine.write(args.out, {"machine": machine.describe(), "seconds": args.seconds, **found})
    console.print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
