"""Tandem on a GPU: kernels against their twins and the device's roofline, sampler and beams against a CPU's,
decode steps, the encoder, drafts, whole answers next to transformers', and Whisper's clips.

    python bench/gpu.py [--quick] [--out bench/results/gpu.json]

Needs torch, triton, transformers and this checkout, neither Ray nor an installation. `--quick` begins
nothing after five minutes, to end within eight. The models have random weights in bfloat16, in the shapes of
Flan-T5-XL, BART-large-CNN, T5-small, Whisper large-v3 and turbo; compared systems take turns, and figures are
medians with their extremes. `--device cpu` runs tiny shapes through the same code, to see that it works.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import copier
import gpu_sampling
import machine
import torch
from clock import Clock, Roofline
from drafts import Contender, contenders, copies, measure
from gpu_kernels import TINY, XL, cases
from gpu_models import MODELS, TINY_MODELS, Bench, Budget
from gpu_speech import SPEECH, TINY_SPEECH, SpeechBench

QUICK_S = 300  # what begins before may take two minutes more
FULL_S = 2400
DRAFTS_S = 0.2  # least seconds of a round of drafts, with and without each


class Report:
    """The results so far, written after each part: a run that is cut short leaves what it has."""

    def __init__(self, path: Path, budget: Budget) -> None:
        self.path, self.budget, self.failed = path, budget, False
        self.result: dict[str, Any] = {}

    def part(self, into: dict[str, Any], name: str, work: Callable[[], Any]) -> None:
        """Adds what `work` finds. Where it fails, or no time is left for it, the report says so."""
        if self.budget.over:
            into[name] = {"skipped": "the time was over"}
        else:
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
    if "clips_per_s" in found:
        rate, target = found["clips_per_s"]["median"], found["target"]
        return [
            f"{found['concurrent']} at once: {rate:.1f} clips/s, {found['p95_s']:.3f} s at most for 95 %; "
            f"target: {target or 'none'}"
        ]
    if "of_peak" in found:
        return [
            f"{found['tokens_per_s']['median']:.0f} tokens/s, {found['of_peak']:.0%} of the device's FLOPs"
        ]
    loads = {load: systems for load, systems in found.items() if load in ("batch", "stream")}
    return [
        f"target: {found['target'] or 'none'}",
        *(f"without {name}: {why}" for name, why in found["left_out"].items()),
    ] + [
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


def main(arguments: list[str] | None = None) -> int:
    parser = machine.parser(__doc__, "gpu")
    parser.add_argument("--quick", action="store_true", help="begin nothing after five minutes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: torch sees none here. --device cpu runs tiny shapes", file=sys.stderr)
        return 2
    real = args.device == "cuda"
    device, dtype = torch.device(args.device), torch.bfloat16 if real else torch.float32
    rounds = (3 if args.quick else 7) if real else 1
    report = Report(args.out, Budget(QUICK_S if args.quick else FULL_S))
    result, clock = report.result, Clock(device)
    result["machine"] = machine.describe()
    roofline = Roofline.measured(clock, large=real)
    result["roofline"] = {
        "copy_gb_per_s": round(roofline.bytes_per_s / 1e9, 1),
        "bfloat16_tflop_per_s": round(roofline.flops_per_s / 1e12, 2),
    }
    kernels: dict[str, Any] = result.setdefault("kernels", {})
    for case in cases(XL if real else TINY, device, dtype):
        report.part(
            kernels, f"{case.op} {case.shape}", lambda c=case: c.measured(clock, roofline, 10 * rounds)
        )
    sampling: dict[str, Any] = result.setdefault("sampling", {})
    for choice in gpu_sampling.cases(*((32128, (1, 8, 32, 128)) if real else (96, (1, 8)))):
        report.part(
            sampling,
            f"{choice.name}, {choice.rows} rows",
            lambda c=choice: c.measured(clock, roofline, 10 * rounds),
        )
    models = MODELS if real else TINY_MODELS
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(models[-1], Path(folder), device, torch.float32)
        report.part(result, "answers in float32 that are transformers'", bench.agreement)
    for model in models:
        figures: dict[str, Any] = result.setdefault("models", {}).setdefault(model.name, {})
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(model, Path(folder), device, dtype)
            report.part(figures, "decode", lambda b=bench: b.steps(rounds, roofline))
            report.part(figures, "encoder", lambda b=bench: b.encoder(10 * rounds, roofline))
            report.part(figures, "answers", lambda b=bench: b.answers(rounds, report.budget))
    for model in SPEECH if real else TINY_SPEECH:
        figures = result.setdefault("speech", {}).setdefault(model.name, {})
        with tempfile.TemporaryDirectory() as folder:
            windows = SpeechBench(model, Path(folder), device, dtype)
            report.part(figures, "answers that transformers' logits agree with", windows.agreement)
            report.part(figures, "decode", lambda b=windows: b.steps(rounds, roofline))
            report.part(figures, "encoder", lambda b=windows: b.encoder(rounds, roofline))
            report.part(figures, "clips", lambda b=windows: b.clips(rounds))
    with tempfile.TemporaryDirectory() as folder:
        for name, work in draft_cases(Path(folder), device, dtype, rounds):
            report.part(result.setdefault("drafts", {}), name, work)
    print(f"wrote {args.out}")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
