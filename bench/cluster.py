"""The cluster against its own engine: throughput, time to first token, the hand-off.

    python bench/cluster.py [--rounds 3] [--out bench/results/cluster.json]

The bundled model; 32 and 128 clients, 32 tokens an answer (EOS ignored), greedy. Engine and cluster take
turns in every round. On one machine clients, ingress, encoder and engine share the cores, which the figures
include; therefore all of it once more with steps that compute nothing and take 10 ms, as on a GPU: what is
measured then is the cost of serving.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
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
TOKENS = 32
SIMULATED_STEP_MS = 10.0
PARAMS = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
FIRST_TOKENS = 20  # requests, one after the other
HANDOFF_SHAPES = ((32, 256), (512, 512), (512, 2048))  # tokens, d_model


_numbers = itertools.count()


def prompts(count: int) -> list[str]:
    """No two alike, so that no encoder output is reused."""
    return [
        f"translate English to French: In {next(_numbers)} we had many dogs and cats." for _ in range(count)
    ]


async def rate(send: Callable[[str], Awaitable[int]], texts: list[str], clients: int) -> float:
    """Tokens/s of so many clients that share the texts."""
    queue = iter(texts)

    async def client() -> int:
        return sum([await send(text) for text in queue])

    start = time.perf_counter()
    tokens = sum(await asyncio.gather(*(client() for _ in range(clients))))
    assert tokens == len(texts) * TOKENS
    return tokens / (time.perf_counter() - start)


async def measure(llm: LLM, address: str, rounds: int) -> dict[str, Any]:
    def engine_alone(texts: list[str]) -> float:
        start = time.perf_counter()
        outputs = llm.generate(list(texts), PARAMS, use_tqdm=False)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return tokens / (time.perf_counter() - start)

    def engine_first(text: str) -> float:
        start = time.perf_counter()
        stream = llm.stream(text, PARAMS)
        next(stream)
        seconds = time.perf_counter() - start
        stream.close()  # type: ignore[attr-defined]
        return seconds

    async with AsyncClient(address) as client:

        async def unary(text: str) -> int:
            return len((await client.generate(text, PARAMS)).outputs[0].token_ids)

        async def stream(text: str) -> int:
            return sum([len(piece.token_ids) async for piece in client.stream(text, PARAMS)])

        async def first(text: str) -> float:
            start = time.perf_counter()
            pieces = client.stream(text, PARAMS)
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
                    "engine": engine_alone(prompts(count)),
                    "unary": await rate(unary, prompts(count), clients),
                    "streaming": await rate(stream, prompts(count), clients),
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
        for text in prompts(FIRST_TOKENS):
            firsts["engine"].append(engine_first(text))
            firsts["cluster"].append(await first(text + " Really."))
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cluster.json")
    args = parser.parse_args()
    console = Console()
    results: dict[str, Any] = {}
    table = Table("steps", "clients", "", "tokens/s", "over engine")
    for name, step_ms in (("simulated", SIMULATED_STEP_MS), ("real", None)):
        options: dict[str, Any] = {"max_num_seqs": max(CLIENTS), "simulated_step_ms": step_ms}
        with launch.serve(ServeConfig(**options)) as cluster, LLM(**options) as llm:
            result = asyncio.run(measure(llm, cluster.endpoints().grpc[0], args.rounds))
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
