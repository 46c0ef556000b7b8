"""The cluster against its own engine: throughput, time to first token.

    python bench/cluster.py [--rounds 3] [--out bench/results/cluster.json]

The bundled model; 32 and 128 clients, greedy, EOS ignored. The engine is `LLM`, which tokenizes and
detokenizes, too, and decodes as many requests at once as there are clients. Engine and cluster take turns. On
one machine clients, ingress, encoder and engine share the cores, which the figures include. So everything is
measured once more with encoder passes that take no time and steps that compute nothing for 10 ms, as on a
GPU, which shows the cost of serving: with answers of 64 to 192 tokens, and with answers of 32 to 96, where a
request's own cost weighs more.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from typing import Any

import machine
from rich.console import Console
from rich.table import Table
from simulated import SimulatedEncoder, simulated_decoder, simulated_llm

from tandem import LLM, AsyncClient, SamplingParams
from tandem.cluster import launch
from tandem.cluster.config import Placement, ServeConfig

CLIENTS = (32, 128)
TOKENS_EACH = 384  # about so many a client
# Tokens of an answer, spread evenly: were they equal, all clients would send at the same moments.
ANSWERS = {"long": (64, 192), "short": (32, 96)}
SIMULATED_STEP_S = 0.010
FIRST_TOKENS = 50  # requests, one after the other
WARM_UP = 10  # before them
QUIET_S = 0.02  # after each, for the cluster to be done with it
PLACEMENTS: tuple[Placement, ...] = ("disaggregated", "colocated")


_numbers = itertools.count()


Request = tuple[str, SamplingParams]


def requests(count: int, answers: str = "long") -> list[Request]:
    """Requests of which no two are alike, so that no encoder output is reused."""
    made, (shortest, longest) = [], ANSWERS[answers]
    for number in itertools.islice(_numbers, count):
        text = f"translate English to French: In {number} we had many dogs and cats."
        tokens = random.Random(number).randint(shortest, longest)
        made.append((text, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)))
    return made


async def rate(send: Callable[[Request], Awaitable[int]], asked: list[Request], clients: int) -> float:
    """Tokens/s with this many clients that share the requests."""
    queue = iter(asked)

    async def client() -> int:
        return sum([await send(request) for request in queue])

    start = time.perf_counter()
    tokens = sum(await asyncio.gather(*(client() for _ in range(clients))))
    assert tokens == sum(params.max_tokens or 0 for _, params in asked)
    return tokens / (time.perf_counter() - start)


async def throughput(
    llms: dict[int, LLM], address: str, rounds: int, kinds: Iterable[str]
) -> dict[str, dict[int, Any]]:
    """Tokens/s with these kinds of answers. llms: by how many sequences they decode at once."""

    def engine_alone(llm: LLM, asked: list[Request]) -> float:
        texts, params = zip(*asked, strict=True)
        start = time.perf_counter()
        outputs = llm.generate(texts, params, use_tqdm=False)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return tokens / (time.perf_counter() - start)

    async with AsyncClient(address) as client:

        async def unary(request: Request) -> int:
            return len((await client.generate(*request)).outputs[0].token_ids)

        async def stream(request: Request) -> int:
            return sum([len(piece.token_ids) async for piece in client.stream(*request)])

        async def compared(clients: int, answers: str) -> dict[str, Any]:
            rates: dict[str, list[float]] = {"engine": [], "unary": [], "streaming": []}
            for number in range(rounds + 1):
                # The first round warms up.
                count = clients * TOKENS_EACH * 2 // sum(ANSWERS[answers]) if number else clients
                result = {
                    "engine": engine_alone(llms[clients], requests(count, answers)),
                    "unary": await rate(unary, requests(count, answers), clients),
                    "streaming": await rate(stream, requests(count, answers), clients),
                }
                if number:
                    for name, value in result.items():
                        rates[name].append(value)
            return {
                "tokens_per_s": {name: machine.spread(values) for name, values in rates.items()},
                "over_engine": {
                    name: machine.spread([c / e for c, e in zip(rates[name], rates["engine"], strict=True)])
                    for name in ("unary", "streaming")
                },
            }

        return {
            answers: {clients: await compared(clients, answers) for clients in CLIENTS} for answers in kinds
        }


async def first_tokens(llm: LLM, address: str) -> dict[str, Any]:
    """Seconds to the first token of one request at a time, and what the cluster adds. Engine and cluster take
    turns, because the machine may be slower at one time than at another."""

    def engine_first(request: Request) -> float:
        start = time.perf_counter()
        stream = llm.stream(*request)
        next(stream)
        seconds = time.perf_counter() - start
        stream.close()  # type: ignore[attr-defined]
        return seconds

    async with AsyncClient(address) as client:

        async def first(request: Request) -> float:
            start = time.perf_counter()
            pieces = client.stream(*request)
            await anext(pieces)
            seconds = time.perf_counter() - start
            assert [piece async for piece in pieces] == []
            await asyncio.sleep(QUIET_S)
            return seconds

        # One token a request: nothing is left to do when it is there, while the other has its turn.
        one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        asked = [(text, one) for text, _ in requests(2 * (WARM_UP + FIRST_TOKENS))]
        pairs = zip(asked[::2], asked[1::2], strict=True)
        both = [(engine_first(ours), await first(other)) for ours, other in pairs][WARM_UP:]
    return {
        "engine": machine.spread([engine for engine, _ in both]),
        "cluster": machine.spread([cluster for _, cluster in both]),
        "added": machine.spread([cluster - engine for engine, cluster in both]),
    }


def main() -> None:
    args = machine.parser(__doc__, "cluster", rounds=3).parse_args()
    console = Console()
    results: dict[str, Any] = {}
    table = Table("steps", "answers", "clients", "", "tokens/s", "over engine")
    waits = Table("steps", "placement", "first token, engine, ms", "cluster, ms", "added, ms")
    ways: tuple[tuple[str, type[LLM], dict[str, Any], tuple[str, ...]], ...] = (
        (
            "simulated",
            simulated_llm(SIMULATED_STEP_S),
            {"encoder": SimulatedEncoder, "decoder": simulated_decoder(SIMULATED_STEP_S)},
            tuple(ANSWERS),
        ),
        ("real", LLM, {}, ("long",)),
    )
    for name, llm_class, stages, kinds in ways:
        concurrency: dict[str, Any] = {}
        firsts: dict[str, Any] = {}
        with ExitStack() as engines:
            llms = {clients: engines.enter_context(llm_class(max_num_seqs=clients)) for clients in CLIENTS}
            for placement in PLACEMENTS:
                config = ServeConfig(max_num_seqs=max(CLIENTS), placement=placement)
                with launch.RunningCluster(config) as cluster:
                    address = cluster.deploy(config, **stages).grpc[0]
                    firsts[placement] = asyncio.run(first_tokens(llms[min(llms)], address))
                    if placement == "disaggregated":
                        concurrency = asyncio.run(throughput(llms, address, args.rounds, kinds))
                medians = (f"{1e3 * values['median']:.1f}" for values in firsts[placement].values())
                waits.add_row(name, placement, *medians)
        results[name] = {"concurrency": concurrency, "first_token_s": firsts}
        for answers, clients in itertools.product(kinds, CLIENTS):
            figures = concurrency[answers][clients]
            for system, values in figures["tokens_per_s"].items():
                over = figures["over_engine"].get(system)
                table.add_row(
                    name,
                    answers,
                    str(clients),
                    system,
                    f"{values['median']:.0f}",
                    f"{over['median']:.2f}" if over else "",
                )
    console.print(table)
    console.print(waits)
    machine.write(
        args.out, {"machine": machine.describe(), "rounds": args.rounds, "answers": ANSWERS} | results
    )
    console.print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
