"""Tandem on a GPU: sampler and beams against a CPU's, decode steps, the encoder, whole answers, Whisper's
clips, images, kernels against their twins and the device's roofline, drafts, and answers next to
transformers'.

    python bench/gpu.py [--quick] [--only PART …] [--out FILE]

Needs torch, triton, transformers, Pillow and this checkout, neither Ray, git nor an installation. The parts,
in this order: sampling, models, agreement, speech, vision, kernels, drafts, peers. From its start on it takes
40 minutes at most, with `--quick` 8: nothing begins in the last two, after which whatever runs is ended.
FILE, by default bench/results/gpu.json, has every figure as soon as it is there, and says what was not
measured. `--quick` leaves transformers' static cache out. The models have random weights in bfloat16, in the
shapes of BART-large-CNN, T5-small, Flan-T5-XL, Whisper large-v3 and turbo, TrOCR-base, Florence-2 base and
large, and Llama 3.2 Vision (11B); compared systems take turns, and figures are medians with their extremes.
`--device cpu` runs tiny shapes through the same code, to see that it works.
"""

from __future__ import annotations

import faulthandler
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import checkout
import copier
import gpu_sampling
import machine
import torch
from clock import Clock, Roofline
from drafts import Contender, contenders, copies, measure
from gpu_kernels import TINY, XL, cases
from gpu_media import MediaBench
from gpu_models import MODELS, TINY_MODELS, Bench, Budget, Model
from gpu_speech import SPEECH, TINY_SPEECH, SpeechBench
from gpu_vision import TINY_VISION, VISION, VisionBench

# Seconds since the script began, its imports included.
QUICK_S = 360  # until then parts begin
FULL_S = 2280
GRACE_S = 115  # then what still runs is ended
DRAFTS_S = 0.2  # least seconds of a round of drafts, with and without each

B = TypeVar("B", bound=Bench)


class Report:
    """The results so far, written after each part: a run that is cut short leaves what it has."""

    def __init__(self, path: Path, budget: Budget) -> None:
        self.path, self.budget, self.failed = path, budget, False
        self.result: dict[str, Any] = {}

    def part(self, into: dict[str, Any], name: str, work: Callable[[], Any]) -> None:
        """Adds what `work` finds. Where it fails, or no time is left for it, the report says so."""
        into[name] = {"skipped": "the time was over"}
        if not self.budget.over:
            machine.write(self.path, self.result)  # it may be ended
            try:
                into[name] = work()
            except Exception as error:  # the other parts are worth having all the same
                self.failed = True
                into[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(name, *_lines(into[name]), sep="\n    ", flush=True)
        machine.write(self.path, self.result)


def _lines(found: Any) -> list[str]:
    """The figures worth reading while it runs; the file has them all."""
    if isinstance(found, list):
        return [line for part in found for line in _lines(part)]
    if not isinstance(found, dict) or "failed" in found or "skipped" in found:
        return [str(found)]
    if "host_us" in found:
        times = f"{found['us']['median']:.0f} us, {found['host_us']['median']:.0f} us of the host"
        share = f"{found['of_bound']:.1%} of its bound, the target being {found['target'] or 'none'}"
        return [f"batch {found['batch']}: {times}; {share}"]
    if "of_bound" in found:
        rates = f"{found['gb_per_s']:.0f} GB/s, {found['tflop_per_s']:.1f} TFLOP/s"
        share = f"{found['of_bound']:.0%} of its bound, the target being {found['target']}"
        return [f"{found['us']['median']:.1f} us, {rates}: {share}"]
    if "steps_ratio" in found:
        ratio, right = found["ratio"]["median"], found["accepted_per_drafted"]["median"]
        rate = found["tokens_per_s"]["with"]["median"]
        return [
            f"{rate:.0f} tokens/s, {ratio:.2f} times those without drafts, of which {right:.0%} are right"
        ]
    if "of_floor" in found:
        told = ", ".join(
            f"{found[f'ms, {how}']['median']:.2f} ms with {how}" for how in ("graphs", "no graphs")
        )
        return [f"batch {found['batch']}: {told}; {found['of_floor']} times its floor, the target being 2"]
    if "launches" in found:
        return [f"batch {found['batch']}: {found['launches']} kernels and copies"]
    if "beside_ms" in found:
        quiet, beside = found["quiet_ms"]["median"], found["beside_ms"]
        return [
            f"batch {found['batch']}: {quiet:.2f} ms, {beside['median']:.2f} (at most {beside['max']:.2f}) "
            f"while inputs are encoded"
        ]
    if "loads" in found:
        return [f"target: {found['target'] or 'none'}"] + [
            f"{load}: {of['seconds']['median']:.3f} s, {of['tokens_per_s']['median']:.0f} tokens/s"
            for load, of in found["loads"].items()
        ]
    if "concurrent" in found:
        [unit] = (name.removesuffix("_per_s") for name in found if name.endswith("_per_s"))
        rate, target = found[f"{unit}_per_s"]["median"], found["target"]
        return [
            f"{found['concurrent']} at once: {rate:.1f} {unit}/s, {found['p95_s']:.3f} s at most for 95 %; "
            f"target: {target or 'none'}"
        ]
    if "front_ms" in found:
        front, whole, rate = (found[name]["median"] for name in ("front_ms", "encoder_ms", "images_per_s"))
        return [
            f"batch {found['batch']}: {front:.2f} ms in the front, {whole:.2f} ms in all, {rate:.1f} "
            f"images/s, {found['of_peak']:.0%} of the device's FLOPs"
        ]
    if "of_peak" in found:
        return [
            f"{found['tokens_per_s']['median']:.0f} tokens/s, {found['of_peak']:.0%} of the device's FLOPs"
        ]
    loads = {load: systems for load, systems in found.items() if load in ("batch", "stream")}
    return [f"without {name}: {why}" for name, why in found["left_out"].items()] + [
        f"{load}, {name}: {rate['tokens_per_s']['median']:.0f} tokens/s, "
        f"tandem {rate['tandem_over_this']['median']:.2f} times that"
        for load, systems in loads.items()
        for name, rate in systems.items()
    ]


def draft_cases(
    folder: Path, device: torch.device, dtype: torch.dtype, rounds: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Drafts of the model that copies its input, see `copier.py`."""
    real = device.type == "cuda"
    size = copier.T5_SMALL if real else copier.TINY
    longest, round_s, counts = (120, DRAFTS_S, (1, 8, 32, 128)) if real else (30, 0.0, (1, 2))
    options = {"device": device.type, "dtype": str(dtype).removeprefix("torch."), "max_num_seqs": counts[-1]}

    @cache
    def both() -> list[Contender]:
        copier.make_copier(folder, **size)
        return contenders(folder, copier.EOS, copier.EOS, **options)

    for title, wrong in (("copies all", 0.0), ("copies 4 of 5", 0.2), ("copies nothing", 1.0)):
        make = copies(wrong, size["vocab_size"], longest)
        for count in counts:
            yield (
                f"{title}, {count} at once",
                lambda c=count, m=make: measure(both(), c, rounds, m, round_s),
            )


@dataclass(frozen=True)
class Setup:
    """What the parts are given."""

    report: Report
    clock: Clock
    roofline: Roofline
    device: torch.device
    dtype: torch.dtype
    rounds: int
    real: bool  # the models' shapes, on a GPU
    quick: bool

    def begun(self, *names: str) -> dict[str, Any]:
        """Where in the result a part writes."""
        into = self.report.result
        for name in names:
            into = into.setdefault(name, {})
        return into

    @contextmanager
    def bench(self, kind: type[B], model: Model, dtype: torch.dtype | None = None) -> Iterator[B]:
        with tempfile.TemporaryDirectory() as folder:
            made = kind(model, Path(folder), self.device, dtype or self.dtype)
            yield made
            made.close()


def sampling(s: Setup) -> None:
    for choice in gpu_sampling.cases(*((32128, (1, 8, 32, 128)) if s.real else (96, (1, 8)))):
        name = f"{choice.name}, {choice.rows} rows"
        s.report.part(s.begun("sampling"), name, partial(choice.measured, s.clock, s.roofline, 10 * s.rounds))


def agreement(s: Setup) -> None:
    model = next(one for one in (MODELS if s.real else TINY_MODELS) if "t5" in one.name)
    with s.bench(Bench, model, torch.float32) as bench:
        s.report.part(s.begun(), "answers in float32 that are transformers'", bench.agreement)


def models(s: Setup) -> None:
    for model in MODELS if s.real else TINY_MODELS:
        into = s.begun("models", model.name)
        with s.bench(Bench, model) as bench:
            s.report.part(into, "answers", partial(bench.answers, s.rounds, s.report.budget))
            _stacks(s, into, bench, 10 * s.rounds)


def speech(s: Setup) -> None:
    _media(s, "speech", SpeechBench, SPEECH if s.real else TINY_SPEECH)


def vision(s: Setup) -> None:
    _media(s, "vision", VisionBench, VISION if s.real else TINY_VISION)


def _media(s: Setup, part: str, kind: type[MediaBench], models: Iterable[Model]) -> None:
    for model in models:
        into = s.begun(part, model.name)
        with s.bench(kind, model) as bench:
            s.report.part(into, bench.unit, partial(bench.served, s.rounds))
            s.report.part(into, "answers that transformers' logits agree with", bench.agreement)
            _stacks(s, into, bench, s.rounds)


def _stacks(s: Setup, into: dict[str, Any], bench: Bench, rounds: int) -> None:
    """A model's decoder and encoder, and both at once. rounds: the encoder's."""
    s.report.part(into, "decode", partial(bench.steps, s.rounds, s.roofline, s.report.budget))
    s.report.part(into, "launches", bench.launches)
    s.report.part(into, "encoder", partial(bench.encoder, rounds, s.roofline))
    s.report.part(into, "beside", partial(bench.beside, s.rounds))


def kernels(s: Setup) -> None:
    for case in cases(XL if s.real else TINY, s.device, s.dtype):
        name = f"{case.op} {case.shape}"
        s.report.part(s.begun("kernels"), name, partial(case.measured, s.clock, s.roofline, 10 * s.rounds))


def drafts(s: Setup) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, work in draft_cases(Path(folder), s.device, s.dtype, s.rounds):
            s.report.part(s.begun("drafts"), name, work)
    gc.collect()


def peers(s: Setup) -> None:
    static = s.real and not s.quick
    for model in MODELS if s.real else TINY_MODELS:
        with s.bench(Bench, model) as bench:
            against = partial(bench.against, s.rounds, s.report.budget, static=static)
            s.report.part(s.begun("peers"), model.name, against)


PARTS = {
    part.__name__: part for part in (sampling, models, agreement, speech, vision, kernels, drafts, peers)
}


def main(arguments: list[str] | None = None) -> int:
    parser = machine.parser(__doc__, "gpu")
    parser.add_argument("--quick", action="store_true", help="end within eight minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="some parts, by name")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: torch sees none here. --device cpu runs tiny shapes", file=sys.stderr)
        return 2
    real = args.device == "cuda"
    device, dtype = torch.device(args.device), torch.bfloat16 if real else torch.float32
    report = Report(args.out, Budget(QUICK_S if args.quick else FULL_S))
    # Whatever a kernel or a compiler does then, and whether it holds Python's lock: the report has the rest.
    left_s = report.budget.seconds + GRACE_S - (time.monotonic() - checkout.BEGUN)
    faulthandler.dump_traceback_later(max(left_s, 1), exit=True, file=sys.__stderr__)
    report.result["machine"] = machine.describe()
    clock = Clock(device)
    roofline = Roofline.measured(clock, large=real)
    report.result["roofline"] = {
        "copy_gb_per_s": round(roofline.bytes_per_s / 1e9, 1),
        "bfloat16_tflop_per_s": round(roofline.flops_per_s / 1e12, 2),
    }
    rounds = (3 if args.quick else 7) if real else 1
    setup = Setup(report, clock, roofline, device, dtype, rounds, real, args.quick)
    for name, part in PARTS.items():
        if not args.only or name in args.only:
            part(setup)
    faulthandler.cancel_dump_traceback_later()
    print(f"wrote {args.out}")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
