"""The cluster against its own engine: throughput, time to first token, the hand-off.

    python bench/cluster.py [--rounds 3] [--out bench/results/cluster.json]

The bundled model; 32 and 128 clients, answers of 32 to 96 tokens (EOS ignored), greedy. The engine decodes as
many at once as there are clients. Engine and cluster take turns in every round. On one machine clients,
ingress, encoder and engine share the cores, which the figures include; therefore all of it once more with
steps that compute nothing and take 10 ms, as on a GPU: what is measured then is the cost of serving.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import machine
import ray
import torch
from rich.console import Console
from rich.table import Table

from tandem import LLM, AsyncClient, SamplingParams
from tandem.cluster import launch
from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import HiddenLoader, HiddenSlice, fetch, pack

CLIENTS = (32, 128)
REQUESTS_EACH = 4  # of a client, on average
TOKENS = (32, 97)  # of an answer, evenly: else all clients would send at the same moments
SIMULATED_STEP_MS = 10.0
FIRST_TOKENS = 20  # requests, one after the other
HANDOFF_SHAPES = ((32, 256), (512, 512), (512, 2048))  # tokens, d_model


_numbers = itertools.count()


Request = tuple[str, SamplingParams]


def requests(count: int) -> list[Request]:
    """No two alike, so that no encoder output is reused."""
    made = []
    for number in itertools.islice(_numbers, count):
        text = f"translate English to French: In {number} we had many dogs and cats."
        tokens = random.Random(number).randrange(*TOKENS)
        made.append((text, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)))
    return made


async def rate(send: Callable[[Request], Awaitable[int]], asked: list[Request], clients: int) -> float:
    """Tokens/s of so many clients that share the requests."""
    queue = iter(asked)

    async def client() -> int:
        return sum([await send(request) for request in queue])

    start = time.perf_counter()
    tokens = sum(await asyncio.gather(*(client() for _ in range(clients))))
    assert tokens == sum(params.max_tokens or 0 for _, params in asked)
    return tokens / (time.perf_counter() - start)


async def measure(llms: dict[int, LLM], address: str, rounds: int) -> dict[str, Any]:
    """llms: by how many sequences they decode at once."""

    def engine_alone(llm: LLM, asked: list[Request]) -> float:
        texts, params = zip(*asked, strict=True)
        start = time.perf_counter()
        outputs = llm.generate(texts, params, use_tqdm=False)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return tokens / (time.perf_counter() - start)

    def engine_first(request: Request) -> float:
        start = time.perf_counter()
        stream = llms[max(llms)].stream(*request)
        next(stream)
        seconds = time.perf_counter() - start
        stream.close()  # type: ignore[attr-defined]
        return seconds

    async with AsyncClient(address) as client:

        async def unary(request: Request) -> int:
            return len((await client.generate(*request)).outputs[0].token_ids)

        async def stream(request: Request) -> int:
            return sum([len(piece.token_ids) async for piece in client.stream(*request)])

        async def first(request: Request) -> float:
            start = time.perf_counter()
            pieces = client.stream(*request)
            await anext(pieces)
            seconds = time.perf_counter() - start
            await pieces.aclose()  # type: ignore[attr-defined]
            return seconds

        throughput = {}
        for clients in CLIENTS:
            rates: dict[str, list[float]] = {"engine": [], "unary": [], "streaming": []}
            count = clients * REQUESTS_EACH
            for number in range(rounds + 1):
                result = {
                    "engine": engine_alone(llms[clients], requests(count)),
                    "unary": await rate(unary, requests(count), clients),
                    "streaming": await rate(stream, requests(count), clients),
                }
                if number:  # the first round warms up
                    for name, value in result.items():
                        rates[name].append(value)
            throughput[clients] = {
                "tokens_per_s": {name: machine.spread(values) for name, values in rates.items()},
                "over_engine": {
                    name: machine.spread([c / e for c, e in zip(rates[name], rates["engine"], strict=True)])
                    for name in ("unary", "streaming")
                },
            }
        # In turns, for the machine may be slower at one time than at another.
        firsts: dict[str, list[float]] = {"engine": [], "cluster": []}
        asked = requests(2 * FIRST_TOKENS)
        for one, other in zip(asked[::2], asked[1::2], strict=True):
            firsts["engine"].append(engine_first(one))
            firsts["cluster"].append(await first(other))
    return {
        "concurrency": throughput,
        "first_token_s": {name: machine.spread(values) for name, values in firsts.items()},
    }


def handoff() -> list[dict[str, Any]]:
    """From an encoder's tensor to a decoder's, through the object store of one node."""

    @ray.remote(num_cpus=0.1)
    class Producer:
        def make(self, tokens: int, width: int) -> Any:
            return pack(torch.zeros(tokens, width))

    producer: Any = Producer.remote()
    rows = []
    for tokens, width in HANDOFF_SHAPES:
        seconds, size = [], 0
        for _ in range(20):
            start = time.perf_counter()
            reference = producer.make.remote(tokens, width)
            fetched = asyncio.run(fetch(reference))
            hidden = HiddenLoader(0, HiddenSlice(reference, 0, tokens), fetched)()
            seconds.append(time.perf_counter() - start)
            size = hidden.numel() * hidden.element_size()
            del hidden, fetched, reference
        rows.append(
            {"tokens": tokens, "d_model": width, "bytes": size, "seconds": machine.spread(seconds[2:])}
        )
    return rows


def main() -> None:
    args = machine.parser(__doc__, "cluster", rounds=3).parse_args()
    console = Console()
    results: dict[str, Any] = {}
    table = Table("steps", "clients", "", "tokens/s", "over engine")
    for name, step_ms in (("simulated", SIMULATED_STEP_MS), ("real", None)):
        config = ServeConfig(max_num_seqs=max(CLIENTS), simulated_step_ms=step_ms)
        with launch.serve(config) as cluster, ExitStack() as engines:
            llms = {
                clients: engines.enter_context(LLM(max_num_seqs=clients, simulated_step_ms=step_ms))
                for clients in CLIENTS
            }
            result = asyncio.run(measure(llms, cluster.endpoints().grpc[0], args.rounds))
            if step_ms is None:
                results["handoff"] = handoff()
        results[name] = result
        for clients, figures in result["concurrency"].items():
            for system, values in figures["tokens_per_s"].items():
                over = figures["over_engine"].get(system)
                table.add_row(
                    name,
                    str(clients),
                    system,
                    f"{values['median']:.0f}",
                    f"{over['median']:.2f}" if over else "",
                )
    console.print(table)
    for name in ("simulated", "real"):
        for system, values in results[name]["first_token_s"].items():
            console.print(f"first token, {name} steps, {system}: {1e3 * values['median']:.1f} ms")
    for row in results["handoff"]:
        console.print(
            f"hand-off of {row['tokens']} x {row['d_model']} float32, {row['bytes'] / 2**20:.2f} MiB: "
            f"{1e3 * row['seconds']['median']:.1f} ms"
        )
    machine.write(args.out, {"machine": machine.describe(), "rounds": args.rounds} | results)
    console.print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
