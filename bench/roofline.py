"""Where a decode step's time goes: each op against what the machine could do.

    python bench/roofline.py [--out bench/results/roofline.json]

Steps of the random T5-small shape and of the bundled model with 1, 8 and 32 rows, in each precision. Every op
is timed within the running engine, without what runs inside it, so the parts add up to the step; what no op
claims is "rest": Python between them. For that the engine goes op by op. Where all ops are the C++
extension's, it otherwise runs a recorded step as one call, which is timed as a whole.

An op has to read its weights, its keys and values and its activations, and to do its operations: the larger
of the two times is its floor. The rates are this machine's with the step's own number of threads: reading as
many bytes as the step reads, which caches may serve, and large matrix products. Figures are means over the
faster half of the steps.

On a CPU only: on a GPU ops run behind the host's back.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import machine
import steps
import torch
from engine_loads import make_model
from rich.console import Console
from rich.table import Table

from tandem import kernels
from tandem.kernels import Int8Linear, Linear, PagedKV
from tandem.quickstart import PATH as QUICKSTART
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.execution.packet import Packet
from tandem.workers.models.attention import CrossAttention, SelfAttention
from tandem.workers.models.sublayers import FeedForward

ROWS = (1, 8, 32)
PRECISIONS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
}
INPUTS, OUTPUTS = 64, 64  # tokens of each sequence
PRODUCT = 2048  # rows, inputs and outputs of the product that measures operations/s
LEAST_BYTES = 2**22  # bytes read to measure a rate: fewer are over too soon

Work = tuple[float, float]  # bytes moved, floating-point operations
NOTHING: Work = (0.0, 0.0)


class Clock:
    """Each op's time within a step, without the ops that it calls."""

    def __init__(self) -> None:
        self.steps: list[dict[str, list[float]]] = []  # by op: seconds, calls, bytes, operations
        self._inside = [0.0]  # for each op that runs, seconds of the ops within it
        self._undo: list[Callable[[], None]] = []

    def watch(
        self, owner: Any, name: str, op: str | Callable[..., str], work: Callable[..., Work] | None = None
    ) -> None:
        """Times calls of `owner.name` as `op`; `work` says what a call has to do, from its arguments."""
        real = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = time.perf_counter()
            result = real(*args, **kwargs)
            seconds = time.perf_counter() - start
            own = seconds - self._inside.pop()
            self._inside[-1] += seconds
            if self.steps:
                key = op if isinstance(op, str) else op(*args)
                entry = self.steps[-1].setdefault(key, [0.0, 0, 0.0, 0.0])
                moved, computed = NOTHING if work is None else work(*args)
                for at, value in enumerate((own, 1, moved, computed)):
                    entry[at] += value
            return result

        own = name in vars(owner)
        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, real) if own else delattr(owner, name))

    def step(self, run: Callable[[], object]) -> None:
        self.steps.append({})
        self._inside = [0.0]
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        self.steps[-1]["rest"] = [seconds - self._inside[0], 1, 0.0, 0.0]

    def close(self) -> None:
        for undo in reversed(self._undo):
            undo()


def watch(clock: Clock, engine: Engine) -> None:
    """Times every op of this engine's steps."""
    decoder = engine.runner.decoder
    products: dict[int, tuple[str, int, int]] = {}  # by id: name, inputs, outputs
    number = engine.runner.dtype.itemsize
    weight = number if engine.config.quantization is None else 1

    def product(name: str, linear: Linear, inputs: int, outputs: int) -> None:
        products[id(linear)] = name, inputs, outputs

    spec = decoder.spec
    heads = spec.heads * spec.head_dim
    shared = spec.shared_heads * spec.head_dim
    for sublayer in chain(*decoder.layers):
        if isinstance(sublayer, SelfAttention):
            product("self q, k, v", sublayer.qkv.linear, spec.d_model, heads + 2 * shared)
            product("self output", sublayer.o.linear, heads, spec.d_model)
        elif isinstance(sublayer, CrossAttention):
            product("cross q", sublayer.q.linear, spec.d_model, heads)
            product("cross output", sublayer.o.linear, heads, spec.d_model)
        elif isinstance(sublayer, FeedForward):
            product("feed-forward", sublayer.up.linear, spec.d_model, spec.d_ff * (1 + spec.gated))
            product("feed-forward", sublayer.down.linear, spec.d_ff, spec.d_model)
    logits = decoder.head.projection._output
    assert logits is not None
    product("logits", logits, spec.d_model, engine.spec.vocab_size)

    def multiply(linear: Linear, x: torch.Tensor, *_: object) -> Work:
        _, inputs, outputs = products[id(linear)]
        moved = weight * inputs * outputs + number * len(x) * (inputs + outputs)
        return moved, 2.0 * len(x) * inputs * outputs

    def attend(q: torch.Tensor, kv: PagedKV, *_: object) -> Work:
        keys = int(kv.lengths.sum())
        return 2.0 * keys * shared * kv.k.itemsize + 2 * q.nbytes, 4.0 * keys * heads

    def norm(x: torch.Tensor, *_: object) -> Work:
        return 4.0 * x.nbytes, 0.0  # reads a sublayer's output and the sum so far, writes both anew

    clock.watch(type(logits), "__call__", lambda linear, *_: products[id(linear)][0], multiply)
    clock.watch(kernels, "paged_self_attention", "self-attention", attend)
    clock.watch(kernels, "paged_cross_attention", "cross-attention", attend)
    clock.watch(kernels, "activate", "activation", lambda x, *_, **__: (2.0 * x.nbytes, 0.0))
    for name in ("rms_norm", "add_rms_norm"):
        clock.watch(kernels, name, "norms", norm)
    clock.watch(kernels, "write_kv", "K/V write", lambda k, v, *_: (2.0 * (k.nbytes + v.nbytes), 0.0))
    clock.watch(
        decoder.embedding.tokens, "embed", "embedding",
        lambda ids: (2.0 * len(ids) * spec.d_model * number, 0.0),
    )  # fmt: skip
    clock.watch(engine.sampler, "sample", "sampling", lambda logits, *_: (float(logits.nbytes), 0.0))
    clock.watch(engine.scheduler, "plan", "host: scheduling")
    clock.watch(engine.scheduler, "apply", "host: scheduling")
    clock.watch(Packet, "of", "host: packing")
    clock.watch(engine.runner.state, "batch", "host: packing")
    clock.watch(kernels, "gather_rows", "host: packing")
    clock.watch(engine.runner, "finish", "host: packing")


def measure(folder: Path, precision: str, rows: int) -> dict[str, Any]:
    how = PRECISIONS[precision]
    config = EngineConfig.of(model=str(folder), max_num_seqs=rows, device="cpu", **how)
    engine, request_builder = Engine(config), steps.load(folder)
    clock, whole = Clock(), Clock()
    try:
        for number in range(3):  # the first warms up
            prepared = steps.batch(request_builder, rows, INPUTS, OUTPUTS)
            output_processors = {
                one.sequences[0].request_id: request_builder.output_processor(one) for one in prepared
            }
            steps.submit(engine, prepared)
            engine.step()  # admits them
            if number == 2:
                engine.runner._steps.clear()
                watch(clock, engine)
                for output_processor in output_processors.values():
                    clock.watch(output_processor, "push", "host: detokenizing")

            def step(output_processors: dict[str, Any] = output_processors) -> None:
                for delta in engine.step():
                    output_processors[delta.request_id].push(delta)

            while engine.has_work:
                (step, partial(whole.step, step), partial(clock.step, step))[number]()
    finally:
        clock.close()
    recorded_s = mean(map(_seconds, _faster_half(whole.steps)))
    return {"recorded_s": recorded_s} | _report(_faster_half(clock.steps), precision)


def _seconds(step: dict[str, list[float]]) -> float:
    return sum(entry[0] for entry in step.values())


def _faster_half(timed: list[dict[str, list[float]]]) -> list[dict[str, list[float]]]:
    return sorted(timed, key=_seconds)[: max(1, len(timed) // 2)]


def _report(fast: list[dict[str, list[float]]], precision: str) -> dict[str, Any]:
    means = {
        op: [mean(step.get(op, [0.0] * 4)[at] for step in fast) for at in range(4)]
        for op in sorted(set().union(*fast))
    }
    whole, moved = mean(map(_seconds, fast)), sum(values[2] for values in means.values())
    read, computed = reading_rate(int(moved)), product_rate(precision)
    ops = {}
    for op, (spent, calls, nbytes, operations) in means.items():
        floor = max(nbytes / read, operations / computed)
        ops[op] = {
            "calls": calls, "bytes": nbytes, "operations": operations, "seconds": spent, "floor_s": floor,
            "share": spent / whole, "over_floor": spent / floor if floor else None,
        }  # fmt: skip
    floor = sum(entry["floor_s"] for entry in ops.values())
    return {
        "step_s": whole, "floor_s": floor, "over_floor": whole / floor, "bytes": moved,
        "read_bytes_per_s": read, "operations_per_s": computed,
        "ops": dict(sorted(ops.items(), key=lambda item: -item[1]["seconds"])),
    }  # fmt: skip


def reading_rate(nbytes: int) -> float:
    """Bytes/s of reading `nbytes` again and again: the better of a sum and a product with a vector."""
    matrix = torch.ones(max(nbytes, LEAST_BYTES) // 4096, 1024)
    vector = torch.ones(1024)
    return matrix.nbytes / min(_best_s(matrix.sum), _best_s(lambda: torch.mv(matrix, vector)))


def product_rate(precision: str) -> float:
    """Operations/s of a product with a packed weight."""
    weight = torch.ones(PRODUCT, PRODUCT, dtype=getattr(torch, PRECISIONS[precision].get("dtype", "float32")))
    linear, x = (Int8Linear if precision == "int8" else Linear)(weight), torch.ones_like(weight)
    linear.pack()
    return 2.0 * PRODUCT**3 / _best_s(lambda: linear(x))


def _best_s(run: Callable[[], object], runs: int = 9) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return min(once() for _ in range(runs))


def main() -> None:
    args = machine.parser(__doc__, "roofline").parse_args()
    console = Console()
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "models": {},
    }
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name))
        for title, folder in (("random T5-small", Path(name)), ("quickstart", QUICKSTART)):
            models = result["models"][title] = {}
            for precision in PRECISIONS:
                by_rows = {str(rows): measure(folder, precision, rows) for rows in ROWS}
                models[precision] = by_rows
                console.print(_table(f"{title}, {precision}", by_rows))
    machine.write(args.out, result)
    console.print(f"wrote {args.out}")


def _table(title: str, by_rows: dict[str, Any]) -> Table:
    """Each op by number of rows: microseconds of a step, its share, and the multiple of its floor."""
    table = Table(
        "µs, share, × floor", *("1 row" if rows == "1" else f"{rows} rows" for rows in by_rows), title=title
    )

    def cell(seconds: float, share: float, over: float | None) -> str:
        return f"{1e6 * seconds:.0f}  {100 * share:.0f} %" + (f"  {over:.1f}" if over else "")

    for op in next(reversed(by_rows.values()))["ops"]:
        entries = [figures["ops"].get(op) for figures in by_rows.values()]
        table.add_row(op, *(e and cell(e["seconds"], e["share"], e["over_floor"]) for e in entries))
    whole = (cell(figures["step_s"], 1.0, figures["over_floor"]) for figures in by_rows.values())
    table.add_row("step, op by op", *whole, style="bold")
    recorded = (
        cell(
            figures["recorded_s"],
            figures["recorded_s"] / figures["step_s"],
            figures["recorded_s"] / figures["floor_s"],
        )
        for figures in by_rows.values()
    )
    table.add_row("step, recorded", *recorded, style="bold")
    table.caption = "\n".join(
        f"{rows} rows: {figures['bytes'] / 1e6:.0f} MB at {figures['read_bytes_per_s'] / 1e9:.0f} GB/s, "
        f"products at {figures['operations_per_s'] / 1e9:.0f} GFLOP/s"
        for rows, figures in by_rows.items()
    )
    return table


if __name__ == "__main__":
    main()
