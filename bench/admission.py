"""Does it pay to admit requests in another order than they arrive in?

    python bench/admission.py [--rounds 3] [--out bench/results/admission.json]

An engine of the random T5-small shape with 32 slots, given encoder outputs of 16 to 512 tokens, whose lengths
are known on arrival; answers of 8 to 64 tokens. Three orders:

    arrival     the engine's own
    shortest    a token of input counts as SECONDS_PER_TOKEN of later arrival, so that nobody waits for ever
    nearest     among the first WINDOW that wait, the one whose length is nearest to the mean of those that
                run; the first is passed over WINDOW times at most

Requests come all at once, and at random times at nine tenths of what arrival order keeps up with. Orders take
turns in every round, and each goes first in turn; ratios are of the same round.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import machine
import numpy as np
import steps
from engine_loads import make_model
from rich.console import Console
from rich.table import Table

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.requests.answers.output_processor import PreparedRequest
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.scheduling.plan import Sequence
from tandem.workers.scheduling.queue import SequenceQueue
from tandem.workers.scheduling.sequence_heap import Key, SequenceHeap

SLOTS = 32
REQUESTS = 96
LENGTHS = (16, 513)  # encoder tokens, evenly over their logarithms
OUTPUTS = (8, 65)
LOAD = 0.9
SECONDS_PER_TOKEN = 0.01
WINDOW = 16


def _length(sequence: Sequence) -> int:
    return len(sequence.request.encoder.token_ids)


class Shortest(SequenceHeap):
    def push(self, key: Key, sequence: Sequence) -> None:
        super().push((key[0] + SECONDS_PER_TOKEN * _length(sequence), key[1]), sequence)


class Nearest(SequenceHeap):
    def __init__(self, queue: SequenceQueue) -> None:
        super().__init__()
        self._queue = queue
        self._passed = 0  # how often the first has been passed over

    def first(self) -> tuple[Key, Sequence] | None:
        if (first := super().first()) is None:
            return None
        running = [_length(sequence) for sequence in self._queue.running]
        if not running or self._passed >= WINDOW:
            return first
        middle = mean(running)
        return min(sorted(self.living())[:WINDOW], key=lambda entry: abs(_length(entry[1]) - middle))

    def pop(self) -> None:
        chosen, first = self.first(), super().first()
        assert chosen is not None
        self._passed = 0 if chosen is first else self._passed + 1
        self._entries.remove(chosen)
        self._entries.sort()  # a sorted list is a heap


ORDERS: dict[str, Callable[[SequenceQueue], SequenceHeap]] = {
    "arrival": lambda _: SequenceHeap(),
    "shortest": lambda _: Shortest(),
    "nearest": Nearest,
}


def requests(request_builder: RequestBuilder, rng: random.Random) -> list[PreparedRequest]:
    low, high = np.log(LENGTHS)
    return [
        steps.batch(request_builder, 1, int(np.exp(rng.uniform(low, high))), rng.randrange(*OUTPUTS))[0]
        for _ in range(REQUESTS)
    ]


def serve(engine: Engine, prepared: list[PreparedRequest], arrivals: list[float]) -> dict[str, float]:
    """The number of tokens, tokens/s, and each request's seconds from arrival to its end."""
    todo = list(zip(arrivals, prepared, strict=True))
    arrived = {one.sequences[0].request_id: at for at, one in todo}
    waited, tokens, start = [], 0, time.perf_counter()
    while todo or engine.has_work:
        if not engine.has_work:
            time.sleep(max(0.0, todo[0][0] - (time.perf_counter() - start)))
        now = time.perf_counter() - start
        due = [one for at, one in todo if at <= now]
        todo = todo[len(due) :]
        steps.submit(engine, due)
        for delta in engine.step():
            tokens += len(delta.token_ids)
            if delta.last:
                waited.append(time.perf_counter() - start - arrived[delta.request_id])
    return {
        "tokens": tokens,
        "tokens_per_s": tokens / (time.perf_counter() - start),
        "mean_s": mean(waited),
        "p50_s": float(np.quantile(waited, 0.5)),
        "p99_s": float(np.quantile(waited, 0.99)),
    }


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    config = EngineConfig.of(
        model=str(folder), dtype="float32", device="cpu", with_encoder=False, max_num_seqs=SLOTS
    )
    engine, request_builder = Engine(config), steps.load(folder)
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        load: {order: [] for order in ORDERS} for load in ("at once", "arrivals")
    }
    for number in range(rounds + 1):
        rng = random.Random(number)
        prepared, rate = requests(request_builder, rng), 0.0
        gaps = [rng.expovariate(1.0) for _ in prepared]
        names = list(ORDERS)
        for load, by_order in found.items():
            for order in names[number % len(names) :] + names[: number % len(names)]:
                engine.scheduler.queue.waiting = ORDERS[order](engine.scheduler.queue)
                times = np.cumsum(gaps) / rate if load == "arrivals" else np.zeros(len(prepared))
                outcome = serve(engine, prepared, times.tolist())
                if load == "at once" and order == "arrival":
                    rate = LOAD * REQUESTS * outcome["tokens_per_s"] / outcome["tokens"]
                if number:  # the first round warms up
                    by_order[order].append(outcome)
    return {load: _figures(by_order) for load, by_order in found.items()}


def _figures(by_order: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    return {
        order: {
            name: machine.spread([one[name] for one in rounds]) for name in rounds[0]
        } | {
            f"{name}_over_arrival": machine.spread(
                [one[name] / first[name] for one, first in zip(rounds, by_order["arrival"], strict=True)]
            )
            for name in rounds[0]
        }
        for order, rounds in by_order.items()
    }  # fmt: skip


def main() -> None:
    args = machine.parser(__doc__, "admission", rounds=3).parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name))
        loads = measure(Path(name), args.rounds)
    table = Table("load", "order", "tokens/s", "of arrival's", "mean, s", "p50, s", "p99, s", "of arrival's")
    for load, figures in loads.items():
        for order, values in figures.items():
            rate, tail = values["tokens_per_s_over_arrival"], values["p99_s_over_arrival"]
            table.add_row(
                load, order, f"{values['tokens_per_s']['median']:.0f}", _ratio(rate),
                *(f"{values[name]['median']:.2f}" for name in ("mean_s", "p50_s", "p99_s")), _ratio(tail),
            )  # fmt: skip
    console.print(table)
    machine.write(args.out, {"machine": machine.describe(), "rounds": args.rounds, "loads": loads})
    console.print(f"wrote {args.out}")


def _ratio(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


if __name__ == "__main__":
    main()
