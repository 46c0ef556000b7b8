"""Whatever a step tells the device, it says without waiting for an answer: else no step could be launched
while the one before is under way. On a CPU nothing waits; what is watched here is how things are said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from models import EOS, PAD, decoding
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest
from tandem.workers.sampling.sampler import Sampled, Sampler
from tandem.workers.sampling.to_device import to_device
from tandem.workers.scheduling.plan import Row
from tandem.workers.scheduling.plan import Sequence as EngineSequence

READ = (Tensor.item, Tensor.tolist, Tensor.nonzero, Tensor.__bool__, Tensor.__int__, Tensor.__float__)
INDEX = (Tensor.__getitem__, Tensor.__setitem__)


class Watch(TorchFunctionMode):
    """Raises where CUDA would make the host wait. `reads`: also where the device's numbers are looked at,
    which a CPU's kernels may do."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self._reads, self.seen = reads, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.seen += 1
        options = kwargs or {}
        assert func is not torch.tensor or "device" not in options, "torch.tensor(..., device=...)"
        if func is Tensor.to:
            moves = any(isinstance(one, str | torch.device) for one in (*args, *options.values()))
            assert not moves or options.get("non_blocking"), "a copy that waits"
        if self._reads:
            assert func not in READ, f"the host reads: {func.__name__}"
            if func in INDEX:
                parts = args[1] if isinstance(args[1], tuple) else (args[1],)
                assert not any(isinstance(one, list) for one in parts), "an index from the host"
                masks = [one for one in parts if isinstance(one, Tensor) and one.dtype == torch.bool]
                assert not masks, "as many as are true: the host must know"
        return func(*args, **options)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: torch.tensor([1], device=x.device),
        lambda x: x.to(x.device),
        lambda x: x.to("cpu", torch.float64),
        lambda x: x.sum().item(),
        lambda x: x[[0, 1]],
        lambda x: x[x > 0],
        lambda x: x.__setitem__(x > 0, 1.0),
        lambda x: bool(x.sum()),
    ],
)
def test_the_watch_sees(wait: Callable[[Tensor], object]) -> None:
    x = torch.ones(2)
    with pytest.raises(AssertionError), Watch(reads=True):
        wait(x)


def test_numbers() -> None:
    cpu = torch.device("cpu")
    with Watch(reads=True):
        made = [to_device([1, 2], cpu), to_device([[0.5], [True]], cpu), to_device([3], cpu, torch.int32)]
    assert [one.dtype for one in made] == [torch.int64, torch.float32, torch.int32]
    assert [one.tolist() for one in made] == [[1, 2], [[0.5], [1.0]], [3]]


def requests() -> list[EngineRequest]:
    """Everything the sampler can be asked for, at once and alone."""
    beams = BeamSearch(2, 1, 1.0, early_stopping=False, renormalize=True)
    asked: list[dict[str, Any]] = [
        {},
        {"logprobs": 3, "prompt_logprobs": 2},
        {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
        {"repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.1},
        {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3, "bad_words": ((5, 6), (7,))},
        {"min_tokens": 3, "forced_bos_id": 9, "forced_eos_ids": (EOS,), "logit_bias": ((4, 1.0),)},
        {"suppress_ids": (8,), "begin_suppress_ids": (9,)},
        {"beams": beams},
        {"beams": beams, "temperature": 0.9, "repetition_penalty": 1.1},
    ]
    return [
        EngineRequest(str(n), EncoderInput(str(n), (*range(3, 9 + n), EOS)), (PAD, 5), decoding(**how))
        for n, how in enumerate(asked)
    ]


def serve(engine: Engine, asked: list[EngineRequest]) -> None:
    for request in asked:
        engine.submit(request)
    while engine.has_work:
        engine.step()


@pytest.mark.parametrize("graphs", [False, True])
def test_steps_wait_for_nothing(
    graphs: bool, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admissions, prefills and decoding; of the sampler also that it reads nothing."""
    start, sample, watches = Sampler.start, Sampler.sample, []

    def watched_start(self: Sampler, sequences: Sequence[EngineSequence]) -> None:
        with Watch(reads=True) as watch:
            start(self, sequences)
        watches.append(watch)

    def watched_sample(self: Sampler, logits: Tensor, rows: Sequence[Row], positions: Tensor) -> Sampled:
        with Watch(reads=True) as watch:
            sampled = sample(self, logits, rows, positions)
        watches.append(watch)
        return sampled

    monkeypatch.setattr(Sampler, "start", watched_start)
    monkeypatch.setattr(Sampler, "sample", watched_sample)
    folder = str(checkpoint("flan"))
    engine = Engine(EngineConfig(folder, device="cpu", max_num_seqs=12, overlap=True, cuda_graphs=graphs))
    serve(engine, requests()[-1:])  # graphs of beams are captured when the first ones come, which takes time
    for together in (requests(), *([one] for one in requests())):
        with Watch(reads=False):
            serve(engine, together)
    assert engine.stats().generated_tokens > 100
    assert sum(watch.seen for watch in watches) > 1000
