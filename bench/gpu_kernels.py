"""The kernels against their twins in `kernels/reference.py`, and against the device's roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import machine
import torch
from clock import Clock, Roofline
from torch import Tensor

from tandem import kernels
from tandem.kernels import DecodeTables, PagedKV, RowGroups, Scores, reference
from tandem.kernels.values import LENGTH, SOURCE

REACH = 128  # of T5's bias
PAGE = 64  # positions
# Relative to the largest entry: the twins round after each operator, the kernels once.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}

Run = Callable[[Any], Any]  # given the module that has the op


@dataclass(frozen=True)
class Shapes:
    """The shapes of a model and of a batch."""

    d_model: int
    d_ff: int
    heads: int
    dim: int  # of a head
    batch: int  # sequences decoded at once
    source: int  # tokens of an encoder input
    target: int  # positions of a decoder
    packed: int  # tokens of the encoder's batch

    @property
    def inputs(self) -> int:
        """How many encoder inputs are in the encoder's batch."""
        return self.packed // self.source


XL = Shapes(2048, 5120, 32, 64, batch=128, source=350, target=128, packed=32 * 350)
TINY = Shapes(64, 96, 2, 32, batch=4, source=9, target=5, packed=18)


@dataclass(frozen=True)
class Case:
    """An op on inputs of some shape. Reads and writes are counted once each, see docs/add-a-kernel.md."""

    op: str
    shape: str
    make: Callable[[], Run]  # on new inputs each time
    size: float  # bytes
    flops: float
    target: str  # on an H200, an estimate

    def measured(self, clock: Clock, roofline: Roofline, rounds: int) -> dict[str, Any]:
        run = self.make()
        error = difference(run(kernels), run(reference))
        runs = [run, *(self.make() for _ in range(clock.copies(self.size) - 1))]
        seconds = clock.time([partial(one, kernels) for one in runs], rounds)
        typical, bound = median(seconds), roofline.bound_s(self.size, self.flops)
        return {
            "op": self.op,
            "shape": self.shape,
            "error": error,
            "us": machine.spread([1e6 * value for value in seconds]),
            "bound_us": round(1e6 * bound, 4),
            "of_bound": round(bound / typical, 4),
            "gb_per_s": round(self.size / typical / 1e9, 2),
            "tflop_per_s": round(self.flops / typical / 1e12, 3),
            "target": self.target,
        }


def difference(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest entry. Raises AssertionError where it is too large."""
    if not isinstance(found, tuple):
        found, expected = (found,), (expected,)
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        error = (one.float() - other.float()).abs().max() / other.float().abs().max()
        assert error <= TOLERANCE[one.dtype], f"off by {float(error):.2e} of the largest entry"
        worst = max(worst, float(error))
    return worst


def cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    torch.manual_seed(0)
    s, b = shapes, dtype.itemsize

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    for rows in (s.batch, s.packed):

        def norm(name: str, rows: int = rows) -> Run:
            x, residual, weight, bias = (
                random(*shape) for shape in [(rows, s.d_model)] * 2 + [(s.d_model,)] * 2
            )
            given = (weight, bias, 1e-5) if name == "add_layer_norm" else (weight, 1e-6)
            return _call(name, x, residual, *given)

        def activate(rows: int = rows) -> Run:
            return _call("activate", random(rows, 2 * s.d_ff), "gelu_new", gated=True)

        size, shape = 4 * rows * s.d_model * b, f"[{rows}, {s.d_model}]"
        for name in ("add_rms_norm", "add_layer_norm"):
            yield Case(name, shape, partial(norm, name), size, 0, "85 %")
        size, shape = 3 * rows * s.d_ff * b, f"[{rows}, 2 * {s.d_ff}]"
        yield Case("activate", shape, activate, size, 0, "85 %")

    cu_seqlens = _borders([s.source] * s.inputs, device)
    flops = 4 * s.heads * s.dim * s.source**2 * s.inputs
    shape = f"{s.inputs} inputs of {s.source}, {s.heads} heads of {s.dim}"
    for title, biased in (("with bias", True), ("without bias", False)):

        def attend(biased: bool = biased) -> Run:
            table = torch.randn(s.heads, 2 * REACH + 1, device=device) if biased else None
            qkv = random(s.packed, 3, s.heads, s.dim).unbind(1)
            return _call("encoder_attention", *qkv, cu_seqlens, s.source, Scores(s.dim**-0.5, table))

        size = 4 * s.packed * s.heads * s.dim * b
        yield Case("encoder_attention", f"{shape}, {title}", attend, size, flops, "320 TFLOP/s")

    causal = torch.randn(s.heads, REACH + 1, device=device)
    for sequences, length in ((s.batch, s.target), (1, 8 * s.target)):
        yield _paged(s, "paged_self_attention", sequences, 1, length, causal, device, dtype)
    yield _paged(s, "paged_beam_attention", s.batch, 1, s.target, causal, device, dtype)
    for sequences, rows in ((s.batch, 1), (s.batch // 4, 4)):
        yield _paged(s, "paged_cross_attention", sequences, rows, s.source, None, device, dtype)
    yield _written(s, device, dtype)
    yield _laid_out(s, device)
    yield _followed(s, device)


def _call(name: str, *inputs: Any, **how: Any) -> Run:
    return lambda module: getattr(module, name)(*inputs, **how)


def _borders(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def _paged(
    s: Shapes, op: str, sequences: int, rows: int, length: int, bias: Tensor | None, device: torch.device,
    dtype: torch.dtype,
) -> Case:  # fmt: skip
    """`rows` queries of each sequence, over pages that lie anywhere."""
    pages = -(-length // PAGE)
    # In the dtype of an engine's pool, see EngineConfig.kv_dtype.
    kv = torch.float32 if device.type == "cpu" else dtype
    numbers = length * sequences * 2 * s.heads * s.dim
    size = numbers * kv.itemsize + 2 * sequences * rows * s.heads * s.dim * dtype.itemsize
    if op == "paged_beam_attention":
        size += 4 * length * sequences

    def make() -> Run:
        k, v = torch.randn(2, sequences * pages, s.heads, PAGE, s.dim, device=device, dtype=kv)
        order = torch.randperm(sequences * pages, device=device).view(sequences, pages).int()
        lengths = torch.full((sequences,), length, dtype=torch.int32, device=device)
        q = torch.randn(sequences * rows, s.heads, s.dim, device=device, dtype=dtype)
        table, groups = order, [RowGroups(_borders([rows] * sequences, device), rows)]
        if op == "paged_beam_attention":
            cells = order.unsqueeze(2) * PAGE + torch.arange(PAGE, device=device)
            table, groups = cells.flatten(1)[:, :length].int(), []
        return _call(op, q, PagedKV(k, v, table, lengths), *groups, Scores(s.dim**-0.5, bias))

    return Case(
        op, f"{sequences} x {rows} rows over {length} keys, {s.heads} heads of {s.dim}", make, size,
        2.0 * rows * numbers, "80 %" if op == "paged_cross_attention" else "50 %",
    )  # fmt: skip


def _written(s: Shapes, device: torch.device, dtype: torch.dtype) -> Case:
    rows = min(s.packed, s.batch * PAGE)

    def make() -> Run:
        k, v = torch.randn(2, rows, s.heads, s.dim, device=device, dtype=dtype)
        slots = torch.randperm(s.batch * PAGE, device=device)[:rows]
        pools = torch.zeros(2, 2, s.batch, s.heads, PAGE, s.dim, device=device, dtype=dtype)

        def write(module: Any) -> tuple[Tensor, ...]:
            own = pools[int(module is reference)]
            module.write_kv(k, v, *own, slots)
            return tuple(own)

        return write

    size = 4 * rows * s.heads * s.dim * dtype.itemsize
    return Case("write_kv", f"[{rows}, {s.heads}, {s.dim}]", make, size, 0, "85 %")


def _sequences(s: Shapes, device: torch.device) -> Tensor:
    """A batch's table of sequences, whose sources repeat one token."""
    width = SOURCE + s.source
    sequences = torch.zeros(s.batch, width, dtype=torch.int64, device=device)
    sequences[:, LENGTH] = s.source
    return sequences


def _laid_out(s: Shapes, device: torch.device) -> Case:
    own, cross = (-(-length // PAGE) for length in (s.target, s.source))

    def make() -> Run:
        self_pages, cross_pages = (
            torch.randint(0, s.batch, (s.batch, pages), dtype=torch.int32, device=device)
            for pages in (own, cross)
        )
        lengths = torch.full((s.batch,), s.source, dtype=torch.int32, device=device)
        tables = DecodeTables(PAGE, self_pages, _sequences(s, device), cross_pages, lengths)
        slots = torch.arange(s.batch, device=device)
        rows = torch.stack([slots, slots * 0 + s.target - 1, slots, slots * 0 - 1])

        def gather_rows(module: Any) -> tuple[Tensor, ...]:
            placed = module.gather_rows(rows, tables, beams=False)
            return placed.write_slots.float(), placed.lengths.float(), placed.cross_lengths.float()

        return gather_rows

    shape = f"{s.batch} rows of {own} and {cross} pages"
    return Case("gather_rows", shape, make, 8 * s.batch * (own + cross), 0, "its launch")


def _followed(s: Shapes, device: torch.device) -> Case:
    """Each sequence says the token that its source repeats, and its match is at the source's end."""

    def make() -> Run:
        states = _sequences(s, device), _sequences(s, device)
        slots = torch.arange(s.batch, device=device)
        rows = torch.stack([slots, slots * 0 - 1, slots * 0 + 1, slots])

        def follow(module: Any) -> Tensor:
            state = states[int(module is reference)]
            seen: Tensor = module.match_prompt_tokens(slots * 0, rows, state)
            return seen.float()

        return follow

    shape = f"{s.batch} sequences, sources of {s.source}"
    size = 8 * s.batch * (SOURCE + s.source)
    return Case("match_prompt_tokens", shape, make, size, 0, "its launch")
