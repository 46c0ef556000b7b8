"""How throughput and tail latency grow with the cluster, and where its routers saturate.

    python bench/simulate.py [--costs bench/results/simulate.json] [--out bench/results/simulate.json]

Measures what a request, a message, a batch and a step cost, with the bundled model on this machine: encoder
and decoder steps on one core each, and the ingress of a cluster of one encoder and one decoder. Compares the
simulation (`simulation.py`) of just this cluster with it. Then simulates clusters of up to 64 encoders and
256 decoders, each on a core of its own. With `--costs` it takes the costs of an earlier result, or of a file
you have written for other machines, and measures nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np
import steps
import torch
import traffic
from rich.console import Console
from rich.table import Table
from simulated import SimulatedEncoder, simulated_decoder, simulated_runner
from simulation import Costs, Outcome, Shape, Simulation, Traffic

from tandem import AsyncClient
from tandem.cluster.endpoints import Endpoints
from tandem.cluster.handoff import pack
from tandem.quickstart import PATH as QUICKSTART
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.engine import Engine
from tandem.workers.execution.encoder import Encoder
from tandem.workers.execution.runner import Runner

MEASURED = Traffic((10, 80), (8, 65))  # the traffic of the measured costs, and of the comparison
# The simulated traffic, with as much work for four decoders as for an encoder.
TRAFFIC = Traffic((10, 80), (64, 257))
SLOTS = 32
ROWS = (1, 4, 8, 16, 32)
# The longest that steps gather, see `StepInbox`: so each is a message of its own.
SIMULATED_STEP_S = 0.020
# clients, requests, tokens, streaming: the measurements that the router's costs are fitted to.
PROBES = (
    (1, 3, 64, False),
    (32, 256, 1, False),
    (8, 16, 64, False),
    (32, 64, 64, False),
    (32, 64, 64, True),
)
VALIDATION_REQUESTS = 300
VALIDATION_LOAD = 0.4  # share of the rate when all ask at once: everything has to fit two cores
SCALES = ((1, 4), (4, 16), (16, 64), (64, 256))  # encoders, decoders
LOADS = (0.5, 0.8, 0.95)  # shares of what encoders or decoders can do, whichever is less
ROUTER_LOAD = 0.7  # the most a router is busy, when their number is chosen
REQUESTS_EACH = 100  # requests a decoder: three times its slots
SATURATION_DECODERS = (1, 2, 3, 4, 6, 8)


# -- what things cost


def encoder_costs() -> dict[str, float]:
    encoder = Encoder(EngineConfig.of(model=str(QUICKSTART), dtype="float32"))
    length = round(MEASURED.mean_input)
    tokens, seconds = [], []
    for inputs in (1, 2, 4, 8, 16):
        runs = []
        for _ in range(9):
            start = time.perf_counter()
            pack(encoder.encode([[5] * length] * inputs))
            runs.append(time.perf_counter() - start)
        tokens.append(inputs * length)
        seconds.append(median(runs[1:]))
    step, token = _line(tokens, seconds)
    return {"encoder_step": step, "encoder_token": token}


def decoder_costs(make_runner: Callable[[EngineConfig, Group], Runner]) -> dict[str, float]:
    config = EngineConfig.of(model=str(QUICKSTART), dtype="float32", with_encoder=False, max_num_seqs=SLOTS)
    engine = Engine(config, None, make_runner)
    request_builder, length = steps.load(QUICKSTART), round(MEASURED.mean_input)
    seconds, admissions = [], []
    for rows in ROWS:
        for _ in range(2):  # the first warms up
            steps.submit(engine, steps.batch(request_builder, rows, length, round(MEASURED.mean_output)))
            times = []
            while engine.has_work:
                start = time.perf_counter()
                engine.step()
                times.append(time.perf_counter() - start)
        seconds.append(median(times[1:]))
        admissions.append(max(0.0, times[0] - seconds[-1]) / (rows * length))
    step, row = _line(ROWS, seconds)
    return {"decoder_step": step, "decoder_row": row, "decoder_token": median(admissions[-3:])}


async def router_costs(endpoints: Endpoints) -> dict[str, float]:
    """Seconds of the ingress's Python, by what it does: a least-squares fit to PROBES."""
    process = _ingress()
    rng, work, spent = random.Random(0), [], []
    async with AsyncClient(endpoints.grpc[0]) as client:
        warm_up = [traffic.ask(40, 8, rng) for _ in range(64)]
        await traffic.in_turn(client, warm_up, 16, streaming=True)
        for clients, requests, tokens, streaming in PROBES:
            asks = [traffic.ask(round(MEASURED.mean_input), tokens, rng) for _ in range(requests)]
            messages, before = traffic.counters(endpoints)["tandem_engine_steps_total"], _python_s(process)
            answers, _ = await traffic.in_turn(client, asks, clients, streaming=streaming)
            spent.append(_python_s(process) - before)
            messages = traffic.counters(endpoints)["tandem_engine_steps_total"] - messages
            chunks = sum(answer.chunks for answer in answers) if streaming else 0
            work.append([requests, messages, requests * tokens, chunks])
    # Relative errors count, else the largest probe decides alone.
    found, *_ = np.linalg.lstsq(np.array(work) / np.array(spent)[:, None], np.ones(len(spent)), rcond=None)
    names = ("router_request", "router_message", "router_delta", "router_chunk")
    return dict(zip(names, np.maximum(found, 0.0).tolist(), strict=True))


async def lone_request_s(endpoints: Endpoints) -> float:
    """Seconds until a request of one token is answered when no other is there."""
    rng = random.Random(1)
    async with AsyncClient(endpoints.grpc[0]) as client:
        asks = [traffic.ask(round(MEASURED.mean_input), 1, rng) for _ in range(25)]
        answers, _ = await traffic.in_turn(client, asks, 1, streaming=True)
    return median(answer.whole_s for answer in answers[5:])


def _line(x: Any, y: list[float]) -> tuple[float, float]:
    """Intercept and slope of a line through the points."""
    slope, start = np.polyfit(x, y, 1)
    return max(0.0, float(start)), max(0.0, float(slope))


def _ingress() -> Path:
    """The ingress' folder in /proc, if this process started its cluster."""
    parents, found = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            parents[int(process.name)] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has ended
            continue
        if command.startswith(b"ray::ServeReplica") and b"Ingress" in command:
            found.append(int(process.name))
    for pid in found:
        parent = pid
        while parent in parents and parent != os.getpid():
            parent = parents[parent]
        if parent == os.getpid():
            return Path(f"/proc/{pid}")
    raise RuntimeError("there is no ingress among this process's children")


def _python_s(process: Path) -> float:
    """CPU seconds of a Ray worker's Python threads, of which one runs at a time. They have the process' name;
    threads of Ray's and gRPC's own code are named by what they do."""
    total = 0
    for thread in process.glob("task/*"):
        if (thread / "comm").read_text().startswith("ray::"):
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


# -- measured and simulated


async def served(endpoints: Endpoints) -> tuple[float, dict[str, float]]:
    """The traffic on the real cluster: requests/s and latencies."""
    rng = random.Random(2)
    asks = [
        traffic.ask(rng.randrange(*MEASURED.inputs), rng.randrange(*MEASURED.outputs), rng)
        for _ in range(VALIDATION_REQUESTS + 3 * SLOTS)
    ]
    async with AsyncClient(endpoints.grpc[0]) as client:
        _, seconds = await traffic.in_turn(client, asks[: 3 * SLOTS], SLOTS, streaming=True)
        rate = VALIDATION_LOAD * 3 * SLOTS / seconds
        answers = await traffic.at_random(client, asks[3 * SLOTS :], rate, rng, streaming=True)
    settled = answers[len(answers) // 3 :]
    return rate, _quantiles([a.first_s for a in settled], [a.whole_s for a in settled])


def _quantiles(first: Any, whole: Any) -> dict[str, float]:
    return {
        f"{name}_{quantile}_s": round(float(np.quantile(values, int(quantile[1:]) / 100)), 5)
        for name, values in (("first_token", first), ("whole", whole))
        for quantile in ("p50", "p99")
    }


def simulated(
    shape: Shape, costs: Costs, traffic: Traffic, rate: float, count: int
) -> tuple[Outcome, dict[str, float]]:
    outcome = Simulation(shape, costs, traffic, rate, count).run()
    return outcome, _quantiles(outcome.settled(outcome.first), outcome.settled(outcome.end))


def measure() -> tuple[Costs, list[dict[str, Any]]]:
    """The costs, and how the simulation compares with the cluster they were measured on."""
    torch.set_num_threads(1)
    encoder = encoder_costs()
    # The encoder of simulated steps computes nothing.
    ways: tuple[tuple[str, dict[str, float], dict[str, float], dict[str, Any]], ...] = (
        (
            "simulated",
            dict.fromkeys(encoder, 0.0),
            decoder_costs(simulated_runner(SIMULATED_STEP_S)),
            {"encoder": SimulatedEncoder, "decoder": simulated_decoder(SIMULATED_STEP_S)},
        ),
        ("real", encoder, decoder_costs(Runner), {}),
    )
    validation = []
    config = traffic.one_core_each(max_num_seqs=SLOTS)
    with traffic.cluster(config) as cluster:
        router: dict[str, float] = {}
        for name, of_encoder, of_decoder, stages in ways:
            endpoints = cluster.deploy(config, **stages)
            router = router or asyncio.run(router_costs(endpoints))
            costs = Costs(**router, **of_encoder, **of_decoder, transport=0.0)
            alone = Simulation(Shape(1, 1, 1, SLOTS), costs, Traffic((45, 46), (1, 2)), 0.1, 9).run()
            lone_s = asyncio.run(lone_request_s(endpoints))
            costs = replace(costs, transport=max(0.0, lone_s - float(np.median(alone.end - alone.arrived))))
            rate, measured = asyncio.run(served(endpoints))
            _, expected = simulated(Shape(1, 1, 1, SLOTS), costs, MEASURED, rate, 20 * VALIDATION_REQUESTS)
            validation.append(
                {"steps": name, "requests_per_s": rate, "costs": asdict(costs)}
                | {"measured": measured, "simulated": expected}
                | {"deviation": {name: expected[name] / measured[name] - 1 for name in measured}}
            )
    return costs, validation


# -- what is simulated


def routers_for(costs: Costs, encoders: int, decoders: int, rate: float) -> int:
    """The fewest routers of which none is busier than ROUTER_LOAD."""
    routers = 1
    while costs.router_load(Shape(encoders, decoders, routers, SLOTS), TRAFFIC, rate) > ROUTER_LOAD:
        routers = math.ceil(1.05 * routers + 0.5)
    return routers


def capacity(costs: Costs, encoders: int, decoders: int) -> float:
    """Requests/s that these encoders and decoders can answer."""
    return min(encoders * costs.encoder_rate(TRAFFIC), decoders * costs.decoder_rate(TRAFFIC, SLOTS))


def saturation(costs: Costs) -> dict[str, Any]:
    """One router with more and more engines, at four fifths of what they can do: where it falls behind."""
    rows = []
    for decoders in SATURATION_DECODERS:
        encoders = math.ceil(decoders / 4)
        rate = 0.8 * capacity(costs, encoders, decoders)
        rows.append(_row(Shape(encoders, decoders, 1, SLOTS), costs, rate, 2000))
    carried = [row["tokens_per_s"] for row in rows]
    return {"rows": rows, "router_tokens_per_s": max(carried)}


def scaling(costs: Costs) -> list[dict[str, Any]]:
    """Every scale at every load, with the routers that the highest load needs."""
    rows = []
    for encoders, decoders in SCALES:
        full = capacity(costs, encoders, decoders)
        routers = routers_for(costs, encoders, decoders, LOADS[-1] * full)
        for load in LOADS:
            shape = Shape(encoders, decoders, routers, SLOTS)
            rows.append({"load": load} | _row(shape, costs, load * full, REQUESTS_EACH * decoders))
    return rows


def choices(costs: Costs) -> list[dict[str, Any]]:
    """The largest cluster but one, with the routers' way of choosing workers, and where each takes what looks
    least loaded to it."""
    encoders, decoders = SCALES[-2]
    rate = LOADS[1] * capacity(costs, encoders, decoders)
    shape = Shape(encoders, decoders, routers_for(costs, encoders, decoders, rate), SLOTS)
    return [
        {"by_chance": by_chance}
        | _row(replace(shape, by_chance=by_chance), costs, rate, REQUESTS_EACH * decoders)
        for by_chance in (False, True)
    ]


def _row(shape: Shape, costs: Costs, rate: float, count: int) -> dict[str, Any]:
    outcome, latency = simulated(shape, costs, TRAFFIC, rate, max(count, 2000))
    return {
        "encoders": shape.encoders, "decoders": shape.decoders, "routers": shape.routers,
        "requests_per_s": float(rate), "tokens_per_s": outcome.tokens_per_s,
        "answered": outcome.tokens_per_s / (rate * TRAFFIC.mean_output),
        "router": float(outcome.routers.mean()), "encoder": float(outcome.encoders.mean()),
        "busiest_encoder": float(outcome.encoders.max()), "decoder": float(outcome.decoders.mean()),
        "busiest_decoder": float(outcome.decoders.max()),
    } | latency  # fmt: skip


def main() -> None:
    parser = machine.parser(__doc__, "simulate")
    parser.add_argument("--costs", type=Path)
    args = parser.parse_args()
    console = Console(width=120)
    if args.costs is None:
        costs, validation = measure()
        measured = {"machine": machine.describe(), "costs": asdict(costs), "validation": validation}
    else:
        measured = json.loads(args.costs.read_text(encoding="utf-8"))
        costs = Costs(**measured["costs"])
    for point in measured.get("validation", []):
        console.print(_validation_table(point))
    console.print({name: f"{1e6 * seconds:.1f} µs" for name, seconds in asdict(costs).items()})
    result = {name: measured[name] for name in ("machine", "costs", "validation") if name in measured}
    result |= {"saturation": saturation(costs), "scaling": scaling(costs), "choices": choices(costs)}
    for title, rows in (
        ("one router", result["saturation"]["rows"]),
        ("by size", result["scaling"]),
        ("all routers take the least loaded worker; the less loaded of two", result["choices"]),
    ):
        console.print(_table(title, rows))
    console.print(f"one router carries {result['saturation']['router_tokens_per_s']:.0f} tokens/s")
    machine.write(args.out, result)
    console.print(f"wrote {args.out}")


def _validation_table(point: dict[str, Any]) -> Table:
    title = f"1 encoder, 1 decoder, {point['steps']} steps, {point['requests_per_s']:.1f} requests/s"
    table = Table("ms", "measured", "simulated", "deviation", title=title)
    for name, seconds in point["measured"].items():
        deviation = f"{100 * point['deviation'][name]:+.0f} %"
        table.add_row(name, f"{1e3 * seconds:.0f}", f"{1e3 * point['simulated'][name]:.0f}", deviation)
    return table


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "encoders", "decoders", "routers", "requests/s", "tokens/s", "answered", "router", "encoder",
        "decoder",
        "first token p50, p99, ms", "whole p50, p99, ms", title=title,
    )  # fmt: skip
    for row in rows:
        shares = (f"{100 * row[name]:.0f} %" for name in ("answered", "router", "encoder", "decoder"))
        times = (
            ", ".join(f"{1e3 * row[f'{what}_{quantile}_s']:.0f}" for quantile in ("p50", "p99"))
            for what in ("first_token", "whole")
        )
        table.add_row(
            *(str(row[name]) for name in ("encoders", "decoders", "routers")),
            f"{row['requests_per_s']:.0f}", f"{row['tokens_per_s']:.0f}", *shares, *times,
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
