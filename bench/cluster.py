"""The cluster against its own engine: throughput, time to first token, the hand-off.

    python bench/cluster.py [--rounds 3] [--out bench/results/cluster.json]

The bundled model; 32 clients, 32 tokens an answer (EOS ignored), greedy. Engine and cluster take turns in
every round. On one machine clients, ingress, encoder and engine share the cores, which the figures include.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
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

CLIENTS = 32
REQUESTS = 256
TOKENS = 32
PARAMS = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
FIRST_TOKENS = 20  # requests, one after the other
HANDOFF_SHAPES = ((32, 256), (512, 512), (512, 2048))  # tokens, d_model


def prompts(round_number: int) -> list[str]:
    """No two alike, so that no encoder output is reused."""
    return [
        f"translate English to French: In {1000 * round_number + n} we had {n} dogs." for n in range(REQUESTS)
    ]


async def rate(send: Callable[[str], Awaitable[int]], texts: list[str]) -> float:
    """Tokens/s of CLIENTS clients that share the texts."""
    queue = iter(texts)

    async def client() -> int:
        return sum([await send(text) for text in queue])

    start = time.perf_counter()
    tokens = sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))
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

        rates: dict[str, list[float]] = {"engine": [], "unary": [], "streaming": []}
        for number in range(rounds + 1):
            result = {
                "engine": engine_alone(prompts(3 * number)),
                "unary": await rate(unary, prompts(3 * number + 1)),
                "streaming": await rate(stream, prompts(3 * number + 2)),
            }
            if number:  # the first round warms up
                for name, value in result.items():
                    rates[name].append(value)
        texts = prompts(10**6)[: 2 * FIRST_TOKENS]
        firsts = {
            "engine": [engine_first(text) for text in texts[:FIRST_TOKENS]],
            "cluster": [await first(text) for text in texts[FIRST_TOKENS:]],
        }
    return {
        "tokens_per_s": {name: machine.spread(values) for name, values in rates.items()},
        "over_engine": {
            name: round(median(c / e for c, e in zip(rates[name], rates["engine"], strict=True)), 3)
            for name in ("unary", "streaming")
        },
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
    with launch.serve(ServeConfig(max_num_seqs=CLIENTS)) as cluster, LLM(max_num_seqs=CLIENTS) as llm:
        result = asyncio.run(measure(llm, cluster.endpoints().grpc[0], args.rounds))
        result["handoff"] = handoff()
    table = Table("", "tokens/s", "over engine")
    for name, values in result["tokens_per_s"].items():
        table.add_row(name, f"{values['median']:.0f}", str(result["over_engine"].get(name, "")))
    console.print(table)
    for name, values in result["first_token_s"].items():
        console.print(f"first token, {name}: {1e3 * values['median']:.1f} ms")
    for row in result["handoff"]:
        console.print(
            f"hand-off of {row['tokens']} x {row['d_model']} float32, {row['bytes'] / 2**20:.2f} MiB: "
            f"{1e3 * row['seconds']['median']:.1f} ms"
        )
    machine.write(args.out, {"machine": machine.describe(), "rounds": args.rounds} | result)
    console.print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
