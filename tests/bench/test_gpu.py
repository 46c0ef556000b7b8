"""bench/gpu.py on tiny shapes: a machine with a GPU is rare, and the script must work when there is one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import checkout
import clock as clock_module
import gpu
import gpu_sampling
import machine
import pytest
import torch
from clock import Clock, Roofline
from gpu_kernels import TINY, cases
from gpu_models import Bench, Budget
from gpu_vision import VISION

from tandem.workers.sampling.sampler import Sampled, Sampler
from tandem.workers.scheduling.plan import Row

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu.py"


def parts(value: Any) -> list[dict[str, Any]]:
    """All objects in a result."""
    if not isinstance(value, dict):
        return [part for one in value for part in parts(one)] if isinstance(value, list) else []
    return [value, *(part for one in value.values() for part in parts(one))]


def test_every_part_works(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    run = subprocess.run(
        [sys.executable, SCRIPT, "--device", "cpu", "--quick", "--out", out], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    result = json.loads(out.read_text())
    assert not [part for part in parts(result) if part.keys() & {"failed", "skipped"} or part.get("left_out")]
    assert {"torch", "triton", "transformers", "cuda"} <= set(result["machine"]["versions"])
    assert {name.split()[0] for name in result["kernels"]} == {
        "add_rms_norm", "add_layer_norm", "activate", "encoder_attention", "paged_self_attention",
        "paged_beam_attention", "paged_cross_attention", "write_kv", "gather_rows",
        "match_prompt_tokens",
    }  # fmt: skip
    assert {(name.rsplit(", ", 1)[0], case["batch"]) for name, case in result["sampling"].items()} == {
        ("greedy", 1), ("greedy", 8), ("top-k, top-p, penalties", 1), ("top-k, top-p, penalties", 8),
        ("4 beams", 8),
    }  # fmt: skip
    assert {case["agreement"] for case in result["sampling"].values()} == {1.0}
    assert len(result["drafts"]) == 6
    assert result["drafts"]["copies all, 2 at once"]["accepted_per_drafted"]["median"] > 0.9
    assert result["answers in float32 that are transformers'"] == 1.0
    for figures in result["models"].values():
        assert [step["batch"] for step in figures["decode"]] == [1, 3]
        assert figures["encoder"]["tokens_per_s"]["median"] > 0
        assert set(figures["answers"]["loads"]) == {"batch of 2", "batch of 4", "stream"}
        assert all(step["launches"] > 20 for step in figures["launches"])
        assert figures["beside"]["beside_ms"]["median"] > 0
    for figures in result["peers"].values():
        assert set(figures["batch"]) == {"tandem", "transformers, dynamic cache"}
        assert figures["stream"]["tandem"]["tandem_over_this"]["median"] == 1.0
    [speech] = result["speech"].values()
    assert speech["answers that transformers' logits agree with"] == 1.0
    assert [step["batch"] for step in speech["decode"]] == [1, 3]
    assert [case["batch"] for case in speech["encoder"]] == [1, 3]
    assert [case["concurrent"] for case in speech["clips"]] == [1, 32]
    assert all(
        case["clips_per_s"]["median"] > 0 and case["p50_s"] <= case["p95_s"] for case in speech["clips"]
    )
    assert set(result["vision"]) == {"tiny-trocr", "tiny-florence", "tiny-llama"}
    for figures in result["vision"].values():
        assert [case["concurrent"] for case in figures["images"]] == [1, 32]
        assert figures["answers that transformers' logits agree with"] == 1.0
        assert all(case["images_per_s"]["median"] > 0 for case in figures["images"])
        assert [step["batch"] for step in figures["decode"]] == [1, 3]
        assert all(step["launches"] > 20 for step in figures["launches"])
        assert figures["beside"]["beside_ms"]["median"] > 0
        assert [case["batch"] for case in figures["encoder"]] == [1, 3]
        # On a CPU the products are not PyTorch's, which alone are counted.
        assert all(case["front_ms"]["median"] > 0 and case["of_peak"] >= 0 for case in figures["encoder"])


def test_the_shapes_are_the_published_models() -> None:
    """TrOCR-base has 334 million parameters, Florence-2 0.23 and 0.77 billion, Llama 3.2 Vision 10.67."""
    found = {}
    for model in VISION:
        with torch.device("meta"):
            found[model.name] = sum(weight.numel() for weight in model.make().parameters())
    assert found == {
        "trocr-base": 333_921_792, "florence-2-base": 231_414_784, "florence-2-large": 770_174_976,
        "llama-3.2-11b-vision": 10_670_220_835,
    }  # fmt: skip


def test_some_parts_alone(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--only", "sampling", "--out", str(out)]) == 0
    assert set(json.loads(out.read_text())) == {"machine", "roofline", "sampling"}


def test_the_time_ends_what_runs(tmp_path: Path) -> None:
    """All but the part that runs is in the file."""
    code = f"""
import sys, time
sys.path.insert(0, {str(SCRIPT.parent)!r})
import ctypes
import gpu
gpu.checkout.BEGUN, gpu.QUICK_S, gpu.GRACE_S = time.monotonic(), 3, 1
def holds_the_lock():
    ctypes.PyDLL(None).sleep(600)
gpu.PARTS = {{"sampling": lambda s: s.report.part(s.begun("sampling"), "one", lambda: [1]),
             "models": lambda s: s.report.part(s.begun("models"), "long", holds_the_lock)}}
gpu.main(["--device", "cpu", "--quick", "--out", {str(tmp_path / "gpu.json")!r}])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "holds_the_lock" in run.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["sampling"] == {"one": [1]}
    assert result["models"] == {"long": {"skipped": "the time was over"}}


def test_the_time_runs_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "BEGUN", time.monotonic() - 50)
    assert Budget(40).over
    assert not Budget(60).over


def test_our_own_figures_come_first() -> None:
    assert list(gpu.PARTS) == [
        "sampling", "models", "agreement", "speech", "vision", "kernels", "drafts", "peers",
    ]  # fmt: skip
    assert [(model.name, model.answered) for model in gpu.MODELS] == [
        (name, (32, 128)) for name in ("bart-large-cnn", "t5-small", "flan-t5-xl")
    ]


@pytest.mark.parametrize(("real", "quick"), [(True, True), (True, False), (False, False)])
def test_a_static_cache_takes_too_long_for_quick(
    real: bool, quick: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[set[str]] = []

    class Their(Bench):
        def against(self, *_: Any, **how: Any) -> dict[str, Any]:
            asked.append(set(self._their_ways(**how)))
            return {"left_out": {}}

    monkeypatch.setattr(gpu, "Bench", Their)
    report = gpu.Report(tmp_path / "gpu.json", Budget(1e9))
    clock = Clock(torch.device("cpu"))
    setup = gpu.Setup(report, clock, Roofline(1, 1), clock.device, torch.float32, 1, real=real, quick=quick)
    gpu.peers(setup)
    ways = {"dynamic cache"} | ({"static cache, compiled"} if real and not quick else set())
    assert asked == [ways] * len(gpu.MODELS if real else gpu.TINY_MODELS)


@pytest.mark.parametrize("budget_s", [1e9, 0.0])
def test_what_there_is_no_time_for_is_not_compiled(budget_s: float, tmp_path: Path) -> None:
    tried: list[str] = []

    class Their(Bench):
        def _their_ways(self, **_: bool) -> dict[str, Any]:
            return {name: lambda *_, name=name: tried.append(name) for name in ("dynamic", "static")}

    bench = Their(gpu.TINY_MODELS[0], tmp_path, torch.device("cpu"), torch.float32)
    found = bench.against(1, Budget(budget_s), static=True)
    assert set(found["left_out"]) == (set() if budget_s else {"dynamic", "static"})
    assert bool(tried) == bool(budget_s)


# -- the parts that only a GPU runs, on one that is a fake


@pytest.fixture
def on_fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("triton")
    from fake_cuda import FakeCuda

    monkeypatch.setattr(clock_module, "FLUSH_BYTES", 1000)
    with FakeCuda() as cuda:
        yield cuda


def test_many_launches_to_a_graph_over_buffers_in_turn(on_fake: Any) -> None:
    device = torch.device("cuda", 0)
    order: list[int] = []

    def work(number: int) -> None:
        order.append(number)
        torch.ones(9, device=device)

    works = [partial(work, number) for number in range(3)]
    clock = Clock(device)
    assert clock.copies(400) == 4
    assert len(clock.time(works, 2)) == 2
    [graph] = on_fake.graphs
    assert order == [0, 1, 2, *(number % 3 for number in range(clock_module.LAUNCHES))]
    assert len(graph.calls) == clock_module.LAUNCHES


@pytest.mark.usefixtures("on_fake")
def test_every_kernel_in_a_graph_and_a_sampler_beside_a_busy_device() -> None:
    device = torch.device("cuda", 0)
    clock = Clock(device)
    for case in cases(TINY, device, torch.float32):
        assert case.measured(clock, Roofline(1e9, 1e9), 1)["us"]["median"] > 0
    choice = next(gpu_sampling.cases(96, (8,)))
    assert choice.measured(clock, Roofline(1e9, 1e9), 1)["agreement"] == 1.0


def test_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.describe()["commit"] is None


def test_a_result_is_replaced_at_once(tmp_path: Path) -> None:
    """A reader finds the one before where writing fails."""
    path = tmp_path / "new" / "gpu.json"
    machine.write(path, {"one": 1})
    with pytest.raises(TypeError):
        machine.write(path, {"one": object()})
    assert json.loads(path.read_text()) == {"one": 1}


@pytest.mark.parametrize("name", ["greedy", "top-k, top-p, penalties", "4 beams"])
def test_a_device_that_chooses_otherwise_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(torch.device("cpu"))
    [case] = (case for case in gpu_sampling.cases(96, (8,)) if case.name == name)
    case.measured(clock, Roofline(1e9, 1e9), 1)
    samplers = iter([Reversed, Sampler])  # the device's, then the CPU's
    monkeypatch.setattr(gpu_sampling, "Sampler", lambda *how: next(samplers)(*how))
    with pytest.raises(AssertionError, match="of the choices are those of a CPU"):
        case.measured(clock, Roofline(1e9, 1e9), 1)


class Reversed(Sampler):
    def sample(self, logits: torch.Tensor, rows: Sequence[Row]) -> Sampled:
        return super().sample(logits.flip(1), rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("no CUDA device")
    assert not run.stdout


def test_a_checkout_needs_no_installation(tmp_path: Path) -> None:
    """The script runs without an installation, and with no packages but those that it names and theirs."""
    code = f"""
import re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")
                 and "editable" not in getattr(finder, "__name__", "")]

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

needed, found = {{"torch", "triton", "transformers", "pillow"}}, set()
while needed:
    found.add(name := needed.pop())
    try:
        lines = [line for line in requires(name) or () if "extra ==" not in line]
    except PackageNotFoundError:  # another platform's
        continue
    needed |= {{plain(re.match("[A-Za-z0-9._-]+", line)[0]) for line in lines}} - found
found.add("tandem-serve")  # the installation, which is hidden above
others = [name for name, owners in packages_distributions().items() if not found & set(map(plain, owners))]
assert "ray" in others and "av" in others and "numpy" not in others
sys.modules |= dict.fromkeys(others)
sys.path.insert(0, {str(SCRIPT.parent)!r})
import checkout, gpu_models, gpu_kernels, gpu_speech, gpu_vision, tandem
assert tandem.__file__.startswith(checkout.sys.path[0]), tandem.__file__
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_manual_has_every_kernel() -> None:
    pytest.importorskip("triton")
    from tandem.kernels.triton import ops as triton_ops

    manual = (ROOT / "docs" / "add-a-kernel.md").read_text()
    assert not [name for name in triton_ops.__all__ if f"| `{name}` |" not in manual]
