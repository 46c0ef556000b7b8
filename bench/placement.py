"""Disaggregated against colocated with the same number of cores, and what the encoder cache saves.

    python bench/placement.py [--rounds 3] [--out bench/results/placement.json]

The bundled model, a worker on each of two cores: an encoder and a decoder, or two decoders that encode for
themselves. Three workloads through gRPC, CLIENTS at once, with answers of exactly these lengths:

    long in    inputs of 400 to 500 tokens, 8 tokens out
    long out   inputs of 8 to 16 tokens, 96 tokens out
    mixed      both in equal numbers, in random order

The placements take turns in every round, and each goes first in turn; clients and ingress share the cores
with them. Figures are medians over rounds with their extremes; latencies cover all requests of a round. The
encoder cache: one document with many decoder prompts at once, and new documents against known ones, one after
the other.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import machine
import numpy as np
import traffic
from rich.console import Console
from rich.table import Table

from tandem import AsyncClient, SamplingParams
from tandem.cluster.config import ServeConfig
from tandem.cluster.endpoints import Endpoints

CLIENTS = 32
REQUESTS = 96  # in a workload and round
LONG_IN = (400, 501), 8
LONG_OUT = (8, 17), 96
WORKLOADS = {"long in": [LONG_IN], "long out": [LONG_OUT], "mixed": [LONG_IN, LONG_OUT]}
QUESTIONS = 20  # about one document
DOCUMENTS = 20
DOCUMENT = 500  # tokens

PLACEMENTS: dict[str, dict[str, Any]] = {
    "disaggregated": {"placement": "disaggregated"},
    "colocated": {"placement": "colocated", "min_decoder_replicas": 2},
}


async def workload(endpoints: Endpoints, kinds: list[Any], rng: random.Random) -> dict[str, float]:
    asks = [
        traffic.ask(rng.randrange(*inputs), outputs, rng)
        for inputs, outputs in kinds
        for _ in range(REQUESTS // len(kinds))
    ]
    rng.shuffle(asks)
    async with AsyncClient(endpoints.grpc[0]) as client:
        await traffic.in_turn(client, asks[:4], 4, streaming=False)
        answers, seconds = await traffic.in_turn(client, asks[4:], CLIENTS, streaming=False)
    whole = [answer.whole_s for answer in answers]
    return {
        "tokens_per_s": sum(answer.tokens for answer in answers) / seconds,
        "requests_per_s": len(answers) / seconds,
        "p50_s": float(np.quantile(whole, 0.5)),
        "p95_s": float(np.quantile(whole, 0.95)),
    }


async def cache(endpoints: Endpoints) -> dict[str, Any]:
    rng = random.Random(7)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)

    def document() -> dict[str, list[int]]:
        return {"prompt_token_ids": traffic.ask(DOCUMENT, 0, rng).ids}

    async with AsyncClient(endpoints.grpc[0]) as client:
        await client.generate(document(), params)
        before, one = traffic.counters(endpoints), document()
        await asyncio.gather(
            *(
                client.generate(one, params, decoder_prompt={"prompt_token_ids": [number]})
                for number in range(10, 10 + QUESTIONS)
            )
        )
        after = traffic.counters(endpoints)
        counted = {
            name: after[f"tandem_encoder_{name}_total"] - before[f"tandem_encoder_{name}_total"]
            for name in ("batches", "batch_tokens", "cache_hits", "cache_misses")
        }

        async def seconds(prompt: dict[str, list[int]]) -> float:
            start = time.perf_counter()
            await client.generate(prompt, SamplingParams(temperature=0, max_tokens=1))
            return time.perf_counter() - start

        times: dict[str, list[float]] = {"miss": [], "hit": []}
        for _ in range(DOCUMENTS):
            one = document()
            times["miss"].append(await seconds(one))
            times["hit"].append(await seconds(one))
    return {"questions": QUESTIONS, "document_tokens": DOCUMENT, **counted} | {
        f"{name}_s": machine.spread(values) for name, values in times.items()
    }


def main() -> None:
    args = machine.parser(__doc__, "placement", rounds=3).parse_args()
    console = Console()
    configs: dict[str, ServeConfig] = {
        name: traffic.one_core_each(max_num_seqs=CLIENTS, **options) for name, options in PLACEMENTS.items()
    }
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {placement: [] for placement in configs} for name in WORKLOADS
    }
    result: dict[str, Any] = {"machine": machine.describe(), "rounds": args.rounds, "clients": CLIENTS}
    with traffic.cluster(configs["disaggregated"]) as cluster:
        for number in range(args.rounds):
            for placement in list(configs)[:: -1 if number % 2 else 1]:
                endpoints = cluster.deploy(configs[placement])
                for name, kinds in WORKLOADS.items():
                    rng = random.Random(number)
                    found[name][placement].append(asyncio.run(workload(endpoints, kinds, rng)))
                if placement == "disaggregated" and "encoder_cache" not in result:
                    result["encoder_cache"] = asyncio.run(cache(endpoints))
    result["workloads"] = {name: _figures(rounds) for name, rounds in found.items()}
    console.print(_table(result["workloads"]))
    figures = result["encoder_cache"]
    console.print(
        f"{QUESTIONS} questions of one document: {figures['batches']:.0f} encoder pass, "
        f"{figures['cache_hits']:.0f} hits; {DOCUMENT} tokens in, one out: "
        f"{1e3 * figures['miss_s']['median']:.0f} ms new, {1e3 * figures['hit_s']['median']:.0f} ms known"
    )
    machine.write(args.out, result)
    console.print(f"wrote {args.out}")


def _figures(by_placement: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    pairs = zip(by_placement["disaggregated"], by_placement["colocated"], strict=True)
    figures: dict[str, Any] = {
        placement: {name: machine.spread([one[name] for one in rounds]) for name in rounds[0]}
        for placement, rounds in by_placement.items()
    }
    figures["ratio"] = machine.spread([one["tokens_per_s"] / other["tokens_per_s"] for one, other in pairs])
    return figures


def _table(workloads: dict[str, Any]) -> Table:
    table = Table("workload", "placement", "tokens/s", "p50, ms", "p95, ms", "disaggregated/colocated")
    for name, figures in workloads.items():
        ratio = figures["ratio"]
        for placement in PLACEMENTS:
            values = {key: value["median"] for key, value in figures[placement].items()}
            table.add_row(
                name, placement, f"{values['tokens_per_s']:.0f}", f"{1e3 * values['p50_s']:.0f}",
                f"{1e3 * values['p95_s']:.0f}",
                f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
            )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
