"""Decode steps in graphs. On a CPU there are none; what can be held to it here is that the rows are padded,
that padding leaves no trace, and that nothing of a step is known to what is captured. tests/parity compares
the tokens with transformers'."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import EOS, PAD, decoding
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from tandem import kernels
from tandem.errors import InvalidRequest
from tandem.kernels import PagedKV, RowGroups, Scores, reference
from tandem.kernels.cpu import ops as cpu_ops
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.engine import Engine
from tandem.workers.execution import step_graphs
from tandem.workers.execution.runner import Runner
from tandem.workers.execution.step_graphs import StepGraphs, sizes_up_to
from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest

CPU = torch.device("cpu")


def beams(width: int) -> BeamSearch:
    return BeamSearch(num_beams=width, num_return_sequences=1, length_penalty=1.0, early_stopping=False)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (13, [1, 2, 4, 8, 13])]
)
def test_sizes(most: int, sizes: list[int]) -> None:
    assert sizes_up_to(most) == sizes


def test_rows_are_padded_to_the_next_size() -> None:
    seen, places = [], set()

    def forward(rows: Tensor) -> Tensor:
        seen.append(rows.tolist())
        return rows.t() * 10

    graphs = StepGraphs(forward, [7, 0], 6, CPU)
    for count in (1, 3, 2, 5, 6):  # a smaller step after a larger one finds nothing of it
        seen.clear()
        rows = np.arange(2 * count).reshape(2, count)
        out = graphs(rows)
        size = next(size for size in (1, 2, 4, 6) if size >= count)
        assert seen == [
            [[*row, *[fill] * (size - count)] for row, fill in zip(rows.tolist(), [7, 0], strict=True)]
        ]
        assert out is not None
        assert out.tolist() == (rows.T * 10).tolist()
        places.add(out.data_ptr())
    assert len(places) == 1, "the graphs share the memory of their results"


def test_garbage_is_collected_before_the_captures() -> None:
    """A graph in it would be destroyed during them."""

    class Cycle:
        def __init__(self) -> None:
            self.own = self

    gone = weakref.ref(Cycle())
    StepGraphs(lambda rows: rows, [0], 1, CPU)
    assert gone() is None


@pytest.fixture
def config(checkpoint: Callable[..., Path]) -> EngineConfig:
    return EngineConfig(
        str(checkpoint("flan")), max_num_seqs=6, page_size=4, max_encoder_length=40, max_decoder_length=40,
        num_pages=50, cuda_graphs=True, overlap=True, check_invariants=True,
    )  # fmt: skip


def requests(count: int) -> list[EngineRequest]:
    """Of many lengths; every third reads its neighbour's encoder input."""
    made = []
    for number in range(count):
        ids = (*range(5, 6 + 3 * (number - (number % 3 == 2)) % 31), EOS)
        how = decoding(max_tokens=4 + 5 * number % 17, temperature=number % 2, seed=number)
        made.append(EngineRequest(str(number), EncoderInput(str(ids), ids), (PAD, 7)[: 1 + number % 2], how))
    return made


def searches(count: int) -> list[EngineRequest]:
    """Two and three beams."""
    return [
        replace(one, decoding=decoding(max_tokens=one.decoding.max_tokens, beams=beams(2 + number % 2)))
        for number, one in enumerate(requests(count))
    ]


def answers(engine: Engine, asked: list[EngineRequest]) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {request.request_id: [] for request in asked}
    for request in asked:
        engine.submit(request)
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.request_id] += delta.hypotheses[0].token_ids if delta.hypotheses else delta.token_ids
    return tokens


def test_padding_leaves_no_trace(config: EngineConfig) -> None:
    """The pages hold the same, whatever fills the batch; only the last one, which is nobody's, does not."""
    asked, pools = requests(9), []
    for graphs in (True, False):
        engine = Engine(replace(config, cuda_graphs=graphs))
        engine.runner.pool.k[:, -1] = float("nan")
        answers(engine, asked)
        pools.append(engine.runner.pool)
    padded, plain = pools
    for with_padding, without in ((padded.k, plain.k), (padded.v, plain.v)):
        torch.testing.assert_close(with_padding[:, :-1], without[:, :-1], rtol=1e-4, atol=1e-5)
        assert without[:, :-1].any()
    assert not padded.k[:, -1, :, 0].isnan().any()
    assert padded.k[:, -1, :, 1:].isnan().all()  # one position serves all
    assert plain.k[:, -1].isnan().all()


def test_a_group_of_ranks_has_no_graphs() -> None:
    with pytest.raises(InvalidRequest) as caught:
        EngineConfig("model", cuda_graphs=True, tensor_parallel_size=2)
    assert caught.value.field == "cuda_graphs"
    assert EngineConfig("model").uses_graphs(torch.device("cuda"))
    assert not EngineConfig("model").uses_graphs(CPU)
    assert not EngineConfig("model", tensor_parallel_size=2).uses_graphs(torch.device("cuda"))


# -- what a capture sees: each kernel as one opaque call, all else operator by operator


def _attention(name: str) -> Callable[..., Tensor]:
    """As one call of tensors and numbers, which is all that an operator may take."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, table: Tensor, lengths: Tensor, begins: Tensor | None,
        cu_rows: Tensor | None, max_rows: int, scale: float, bias: Tensor | None, softcap: float | None,
    ) -> Tensor:  # fmt: skip
        groups = () if cu_rows is None else (RowGroups(cu_rows, max_rows),)
        return getattr(reference, name)(
            q, PagedKV(k, v, table, lengths, begins), *groups, Scores(scale, bias, softcap)
        )

    op = torch.library.custom_op(f"tandem_tests::{name}", attend, mutates_args=())

    def call(q: Tensor, kv: PagedKV, *how: Any) -> Tensor:
        *groups, scores, sums = how
        assert sums is None
        rows = (groups[0].cu_rows, groups[0].max_rows) if groups else (None, 1)
        return op(q, *kv, *rows, *scores[:3])

    return call


def _write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    reference.write_kv(k, v, k_pages, v_pages, slots)


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return reference.add_rms_norm(x, residual, weight, eps)


def _add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return reference.add_layer_norm(x, residual, weight, bias, eps)


def _activate(x: Tensor, activation: str, gated: bool) -> Tensor:
    return reference.activate(x, activation, gated=gated)


def _opaque(name: str, twin: Callable[..., Any], changes: tuple[str, ...] = ()) -> Callable[..., Any]:
    return torch.library.custom_op(f"tandem_tests::{name}", twin, mutates_args=changes)


_activation = _opaque("activate", _activate)
OPAQUE = {
    **{
        name: _attention(name)
        for name in ("paged_self_attention", "paged_cross_attention", "paged_beam_attention")
    },
    "write_kv": _opaque("write_kv", _write_kv, ("k_pages", "v_pages")),
    "add_rms_norm": _opaque("add_rms_norm", _add_rms_norm),
    "add_layer_norm": _opaque("add_layer_norm", _add_layer_norm),
    "activate": lambda x, activation, gated=False: _activation(x, activation, gated),
}


@dataclass
class Traced:
    """A size of batch, captured as a CUDA graph is: with all that the host knows before the first request."""

    forward: step_graphs.Forward
    rows: Tensor
    module: GraphModule = field(init=False)
    replays: int = 0

    def __post_init__(self) -> None:
        self.module = make_fx(lambda rows: self.forward(rows))(self.rows)

    def __call__(self) -> Tensor:
        self.replays += 1
        return self.module(self.rows)

    def kernels(self) -> int:
        """Calls that compute something. The others look at memory in another way."""
        calls = [node for node in self.module.graph.nodes if node.op == "call_function"]
        return sum(
            not (node.target is operator.getitem or getattr(node.target, "is_view", False)) for node in calls
        )


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Traced]:
    """All that is captured from here on, the largest batch of an engine first."""
    monkeypatch.setattr(cpu_ops, "COMPILED", False)
    for name, op in OPAQUE.items():
        monkeypatch.setattr(kernels, name, op)
    made: list[Traced] = []

    def capture(forward: step_graphs.Forward, rows: Tensor, pool: None) -> step_graphs.Replay:
        assert pool is None
        made.append(Traced(forward, rows))
        return made[-1]

    monkeypatch.setattr(step_graphs, "capture", capture)
    return made


def test_a_graph_knows_nothing_of_the_step_it_was_captured_in(
    config: EngineConfig, traced: list[Traced]
) -> None:
    """Replayed, it gives the tokens of steps it has never seen."""
    engine, plain = Engine(config), Engine(replace(config, cuda_graphs=False))
    for number, asked in enumerate((requests(14), searches(9)), 1):
        assert answers(engine, asked) == answers(plain, asked)
        # Those of beams, which draft nothing, are captured when the first ones come.
        sizes = [48, 32, 16, 8, 4, 2, 1, 6, 4, 2, 1][: 7 if number == 1 else 11]
        assert [len(one.rows[0]) for one in traced] == sizes
    assert all(one.replays for one in traced[3:-1])  # there is no step of one beam


@pytest.mark.parametrize(
    ("variant", "layers"),
    [("t5", "num_decoder_layers"), ("flan", "num_decoder_layers"), ("bart", "decoder_layers")],
)
def test_a_decoder_layer_is_thirteen_kernels(
    variant: str, layers: str, checkpoint: Callable[..., Path], traced: list[Traced]
) -> None:
    """docs/add-a-kernel.md lists them."""
    for count in (2, 3):
        folder = str(checkpoint(variant, **{layers: count}))
        Runner(EngineConfig(folder, device="cpu", max_num_seqs=1, cuda_graphs=True), Group())
    two, three = (one for one in traced if one.rows.shape[1] == 1)
    assert three.kernels() - two.kernels() == 13
