"""Engines on a GPU that is a fake: it answers what a CPU does, and sees what would wait, race or be compiled
while requests are served."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import EOS, PAD, decoding

pytest.importorskip("triton")

from fake_cuda import FakeCuda, Hazard
from mllama import make_mllama
from thread_group import ThreadGroup
from whisper import make_whisper

from tandem import kernels
from tandem.kernels.triton import splits
from tandem.workers.config import EngineConfig
from tandem.workers.device import HostCopy, Streams
from tandem.workers.engine import Engine
from tandem.workers.execution import step_graphs
from tandem.workers.execution.encoder import Encoder
from tandem.workers.follower import Follower
from tandem.workers.models import attention
from tandem.workers.models.spec import ModelSpec
from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest
from tandem.workers.requests.prompts.cross_spans import cross_spans

Checkpoint = Callable[..., Path]
BEAMS = BeamSearch(num_beams=2, num_return_sequences=1, length_penalty=1.0, early_stopping=False)
ONE_LAYER = {"num_layers": 1, "num_decoder_layers": 1}


def config_of(folder: Path, **options: Any) -> EngineConfig:
    return EngineConfig(
        str(folder), **{"device": "cpu", "dtype": "float32", "max_num_seqs": 3, "page_size": 4,
        "max_encoder_length": 40, "max_decoder_length": 30, "num_pages": 60, "draft_tokens": 2,
        "overlap": True, **options},
    )  # fmt: skip


def requests() -> list[EngineRequest]:
    """Of many lengths; greedy ones, which draft, drawn ones and beams; some share an encoder input."""
    made = []
    for number in range(7):
        ids = (*range(5, 6 + 5 * (number - (number % 3 == 2)) % 31), EOS)
        how: dict[str, Any] = {"max_tokens": 3 + 5 * number % 8, "temperature": float(number % 2)}
        if number == 4:
            how["beams"] = BEAMS
        prefix = (PAD, *range(3, 3 + 6 * (number % 3)))
        made.append(
            EngineRequest(str(number), EncoderInput(str(ids), ids), prefix, decoding(seed=number, **how))
        )
    return made


def answers(engine: Engine, asked: list[EngineRequest]) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {request.request_id: [] for request in asked}
    for request in asked:
        engine.submit(request)
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None
            tokens[delta.request_id] += delta.hypotheses[0].token_ids if delta.hypotheses else delta.token_ids
    return tokens


class States:
    """Hidden states from elsewhere."""

    def __init__(self, handle: int, states: torch.Tensor) -> None:
        self.handle, self._states = handle, states

    def __call__(self) -> torch.Tensor:
        return self._states


def handed_over(folder: Path, asked: list[EngineRequest], cuda: FakeCuda) -> list[EngineRequest]:
    """The requests, encoded by another worker, which is ready when it is made."""
    encoder = Encoder(config_of(folder, device="cuda"))
    with cuda.serving():
        return [
            replace(one, encoder=replace(one.encoder, hidden=States(number, encoder.encode([one.encoder]))))
            for number, one in enumerate(asked)
        ]


@pytest.mark.parametrize(
    ("variant", "options", "layers"),
    [
        ("flan", {}, ONE_LAYER),
        ("flan", {"with_encoder": False}, ONE_LAYER),
        ("bart", {"draft_tokens": 0, "async_encode": False}, {}),
        ("longt5-tglobal", {"cuda_graphs": False}, ONE_LAYER),
    ],
)
def test_served_steps(
    variant: str, options: dict[str, Any], layers: dict[str, int], checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """No wait, race, compilation or capture; and the K and V of an admission come in parts. Keys are split in
    as many ways as on a large device."""
    monkeypatch.setattr(attention, "_ROWS_AT_ONCE", 16)
    monkeypatch.setattr(splits, "MIN_SPLIT", 1)
    folder = checkpoint(variant, **layers)
    config, asked = config_of(folder, **options), requests()
    expected = answers(Engine(replace(config, with_encoder=True)), asked)
    with FakeCuda(processors=6) as cuda:
        engine = Engine(replace(config, device="cuda"))
        assert all(graph.stream.priority < 0 for graph in cuda.graphs)
        assert bool(cuda.graphs) == config.uses_graphs(torch.device("cuda"))
        if not config.with_encoder:
            asked = handed_over(folder, asked, cuda)
        with cuda.serving():
            assert answers(engine, asked) == expected
        assert engine.stats().compilations == 0
        assert {launch.constant("SPLITS") for launch in cuda.launches} == {None, *splits.SPLITS}
        with cuda.serving():
            states = engine.encode([asked[0].encoder]) if config.with_encoder else torch.ones(1)
        assert states.device.type == "cpu"
        engine.close()


def test_an_admission_takes_no_memory_of_its_size(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_ROWS_AT_ONCE", 16)
    config = config_of(checkpoint("flan", **ONE_LAYER), device="cuda", draft_tokens=0)
    with FakeCuda(most_bytes=1000) as cuda:
        runner = Engine(config).runner
        with runner.streams.on():
            hidden, slots = torch.ones(500, 32, device="cuda"), torch.arange(500, device="cuda") % 200
            with cuda.serving():
                runner.decoder.admit(hidden, slots, runner.pool)
            with cuda.serving(), pytest.raises(Hazard, match="bytes of device memory"):
                torch.empty_like(hidden)


def test_recordings_are_served(tmp_path: Path) -> None:
    """Their features come beside the steps."""
    folder = make_whisper(tmp_path / "model", "base")
    config = config_of(folder, max_encoder_length=2000, max_num_seqs=2, max_decoder_length=16, page_size=64)
    spec = Engine(config).spec
    assert spec.encoder is not None
    front = spec.encoder.front
    assert front is not None
    features = torch.randn(1, *front.features, generator=torch.Generator().manual_seed(0))
    sound = EncoderInput("sound", (front.placeholder_id,) * front.positions, features=features)
    asked = [EngineRequest("0", sound, (3, 4), decoding(max_tokens=4))]
    expected = answers(Engine(config), asked)
    with FakeCuda() as cuda:
        engine = Engine(replace(config, device="cuda"))
        with cuda.serving():
            assert answers(engine, asked) == expected
        engine.close()
        encoder = Encoder(replace(config, device="cuda"))
        with cuda.serving():
            assert len(encoder.encode([sound])) == front.positions


def test_a_kernel_that_is_compiled_while_requests_wait_is_counted(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(checkpoint("flan", **ONE_LAYER), device="cuda", max_num_seqs=1, draft_tokens=0)
    with FakeCuda() as cuda:
        engine = Engine(config)
        cuda.forget_kernels()
        engine.encode([requests()[0].encoder])
        encoding = engine.stats().compilations
        assert encoding > 0
        monkeypatch.setattr(splits, "SPLITS", (8,))  # which nothing has warmed up
        answers(engine, requests()[:2])
        assert engine.stats().compilations > encoding
        engine.close()


# -- ranks


class Ranks(ThreadGroup):
    """Ranks on devices of their own."""

    def _parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = self.meeting.exchange(self.rank, HostCopy(x).wait()[0].as_subclass(torch.Tensor))
        return [part.to(x.device, non_blocking=True) for part in parts]

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(torch.stack(self._parts(x)).sum(0))

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor | None:
        parts = self._parts(x)
        return torch.cat(parts, dim=-1) if self.rank == 0 else None

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(self._parts(x)[0])


def pictures(spec: ModelSpec) -> list[EngineRequest]:
    """Of one, two and four tiles."""
    assert spec.encoder is not None
    front = spec.encoder.front
    assert front is not None
    assert front.vision is not None
    assert front.padding_id is not None
    assert spec.media_token_id is not None
    made, noise = [], torch.Generator().manual_seed(0)
    for number in (1, 2, 6):  # of their arrangements
        own = int(np.prod(front.vision.arrangements[number - 1])) * front.vision.tile_positions
        features = torch.rand(1, *front.features, generator=noise)
        features[..., -1] = number
        ids = [front.placeholder_id] * own + [front.padding_id] * (front.positions - own)
        prefix = (spec.media_token_id, 1, 5, 6)
        made.append(
            EngineRequest(
                str(number), EncoderInput(str(number), tuple(ids), features=features), prefix,
                decoding(max_tokens=3),
                cross_spans=cross_spans(prefix, spec.media_token_id, [own], len(ids)),
            )
        )  # fmt: skip
    return made


@pytest.mark.parametrize("model", ["flan", "mllama"])
def test_each_rank_works_on_its_own_device(model: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its current one: Triton's kernels go there, wherever their tensors are. Ranks that have no features
    know without asking the device which positions of an image are padding."""
    folder = make_mllama(tmp_path) if model == "mllama" else checkpoint(model, **ONE_LAYER)
    config = config_of(folder, tensor_parallel_size=2, draft_tokens=0)
    alone = Engine(config_of(folder, draft_tokens=0))
    asked = pictures(alone.spec) if model == "mllama" else requests()[:3]
    expected = answers(alone, asked)
    on_cuda = replace(config, device="cuda")
    ranks, ready = Ranks.ranks(2), threading.Event()
    with FakeCuda(2) as cuda:

        def follow() -> None:
            follower = Follower(on_cuda, ranks[1])
            ready.set()
            follower.run()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        engine = Engine(on_cuda, ranks[0])
        assert ready.wait(60)
        with cuda.serving():
            assert answers(engine, asked) == expected
        engine.close()
        thread.join()
        indices = {tensor.device.index for launch in cuda.launches for tensor in launch.tensors}
    assert indices == {0, 1}


def test_a_thread_may_have_had_another_device(checkpoint: Checkpoint) -> None:
    """Whoever steps an engine, encodes with it or closes it."""
    config = config_of(checkpoint("flan", **ONE_LAYER), draft_tokens=0)
    asked = requests()[:3]
    engine = Engine(config)
    expected, states = answers(engine, asked), engine.encode([asked[0].encoder])
    with FakeCuda(2):
        torch.cuda.set_device(1)
        on_first = replace(config, device="cuda")
        engine, encoder = Engine(on_first), Encoder(on_first)
        assert answers(engine, asked) == expected
        for encode in (engine.encode, encoder.encode):
            torch.testing.assert_close(encode([asked[0].encoder]).as_subclass(torch.Tensor), states)
        engine.close()
        assert torch.cuda.current_device() == 1


# -- memory, and the size of graphs


@pytest.mark.parametrize(("device", "closes"), [("cpu", False), ("cuda", True), ("cuda", False)])
def test_an_engine_gives_back_its_memory(*, device: str, closes: bool, checkpoint: Checkpoint) -> None:
    """At once, whether it is closed or dropped, and without the collector: the next one sizes its pool by
    what is free."""
    config = config_of(checkpoint("flan", **ONE_LAYER), max_num_seqs=1, draft_tokens=0)
    with FakeCuda() as cuda:
        engine = Engine(replace(config, device=device))
        runner = engine.runner
        gone = [weakref.ref(one) for one in (runner.pool, runner.decoder, runner.encoder, runner.state)]
        of_graphs = [weakref.ref(block) for graph in cuda.graphs for block in graph.accesses]
        assert bool(of_graphs) == (device == "cuda")
        cuda.graphs.clear()
        cuda.launches.clear()
        answers(engine, requests()[:2])
        gc.collect()
        gc.disable()
        try:
            if closes:
                engine.close()
            else:
                del engine, runner
            assert not any(one() for one in gone)
            # But for the numbers 0, 1, 2, … that all engines read.
            assert sum(block() is not None for block in of_graphs) <= len(of_graphs) // 4
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("running_s", "sizes"), [(0.001, [8, 4, 2, 1]), (0.004, [4, 2, 1]), (0.015, [1]), (9.0, [1])]
)
def test_steps_are_graphs_while_their_launches_take_longer(
    running_s: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host launches for 10 ms whatever the size; the device takes so long for each row."""

    def measured(run: partial[Any]) -> tuple[float, float]:
        return 0.01, running_s * run.args[0].shape[1]

    monkeypatch.setattr(step_graphs, "_measured", measured)
    device = torch.device("cuda", 0)
    with FakeCuda() as cuda, Streams.of(device).on():
        before = kernels.compilations()
        graphs = step_graphs.StepGraphs(lambda rows: rows.T + 1, [0], 8, device)
        assert graphs.most == sizes[0]
        assert len(cuda.graphs) == kernels.compilations() - before == len(sizes)
