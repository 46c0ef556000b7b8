"""The engine against its peers: tokens/s and latency, in turns.

    python bench/engine.py [--models NAME ...] [--loads NAME ...] [--systems NAME ...] [--rounds 5]
        [--out bench/results/engine.json]

Models, by default all: random weights in T5-small's, T5-base's and BART-large's shapes, which never end by
themselves, so that every system generates just what it is asked for; and the bundled translation model on
sentences of mixed lengths, which ends by EOS. Loads, by default all that a model takes:

    1, 8        requests at once, greedy
    stream      96 requests of mixed lengths, 32 at once, greedy. Tandem lets requests join and leave. The
                others run batches of 32: transformers in order of arrival; CTranslate2 at its best, sorted by
                length (for random weights by the answer's length, which no server knows beforehand)
    arrivals    the stream's requests at random times, at four fifths of what Tandem's float32 keeps up with,
                in this round's stream. The others serve as servers around them do: whatever waits is the next
                batch, up to 32
    beam 4      16 requests at once, four beams
    512 in      one request at a time, greedy, of so many tokens, with 8 out; also `1024 in`, `2048 in`,
                `4000 in`, as far as the model has positions

Each system has a process of its own, with all cores. They take turns in every round, and each goes first in
turn; figures are medians over rounds with their extremes. CTranslate2 joins where it is installed. The larger
shapes are for Tandem and CTranslate2, in float32 and int8; transformers also stays away from arrivals, beams
and long inputs. Loads of earlier runs that are not run again stay in the file.

A short run:

    python bench/engine.py --models "random T5-base" --loads "512 in" "2048 in" --rounds 2 \\
        --systems "tandem int8" "ctranslate2 int8"
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import machine
import torch
from engine_loads import BATCH, LOADS, MODELS, Load, Request, loads
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from turns import Process, in_turns

from tandem import LLM, BeamSearchParams, SamplingParams

REFERENCE = "tandem float32"
SMALL_ONLY = ("tandem bfloat16", "transformers")  # they take minutes with larger models, and decide nothing
WITH_TRANSFORMERS = ("1", "8", "stream")  # nor do the other loads


@dataclass(frozen=True)
class Outcome:
    tokens: int  # asked for, in all answers
    seconds: float
    latency_s: float  # mean seconds from a request's arrival to its answer

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class System(ABC):
    """Something that generates. `run` takes requests that are all there and says how long each answer is."""

    @abstractmethod
    def run(self, requests: Sequence[Request], beams: int) -> list[int]: ...

    def batches(self, requests: list[Request], size: int) -> Iterator[list[Request]]:
        for start in range(0, len(requests), size):
            yield requests[start : start + size]

    def do(self, load: Load) -> Outcome:
        start = time.perf_counter()
        if load.arrivals is not None:
            tokens, latency_s = self.serve(load, start)
        else:
            tokens, latencies = 0, []
            for batch in self.batches(load.requests, load.at_once):
                began = time.perf_counter()
                tokens += sum(self.run(batch, load.beams))
                latencies.append(time.perf_counter() - began)
            latency_s = mean(latencies)
        return Outcome(tokens, time.perf_counter() - start, latency_s)

    def serve(self, load: Load, start: float) -> tuple[int, float]:
        """Answers requests as they come: whatever waits is the next batch."""
        assert load.arrivals is not None
        todo = list(zip(load.arrivals, load.requests, strict=True))
        tokens, latencies = 0, []
        while todo:
            time.sleep(max(0.0, todo[0][0] - (time.perf_counter() - start)))
            now = time.perf_counter() - start
            batch = [item for item in todo if item[0] <= now][: load.at_once]
            todo = todo[len(batch) :]
            tokens += sum(self.run([request for _, request in batch], load.beams))
            ended = time.perf_counter() - start
            latencies += [ended - arrived for arrived, _ in batch]
        return tokens, mean(latencies)


class Tandem(System):
    def __init__(self, folder: Path, precision: str) -> None:
        how = {"quantization": precision} if precision == "int8" else {"dtype": precision}
        self._llm = LLM(str(folder), **how, max_num_seqs=BATCH)

    def run(self, requests: Sequence[Request], beams: int) -> list[int]:
        outputs = self._llm.generate(
            [{"prompt_token_ids": request.ids} for request in requests],
            [self._params(request, beams) for request in requests],
            use_tqdm=False,
        )
        return [len(output.outputs[0].token_ids) for output in outputs]

    def _params(self, request: Request, beams: int) -> Any:
        most = request.tokens or 64
        if beams > 1:
            return BeamSearchParams(num_beams=beams, max_tokens=most, min_tokens=request.tokens or 0)
        return SamplingParams(temperature=0, max_tokens=most, ignore_eos=request.tokens is not None)

    def batches(self, requests: list[Request], size: int) -> Iterator[list[Request]]:
        """One request at a time if asked; otherwise all, of which the engine runs BATCH at once."""
        return super().batches(requests, 1 if size == 1 else len(requests))

    def serve(self, load: Load, start: float) -> tuple[int, float]:
        """Submits each request when it comes."""
        assert load.arrivals is not None

        def one(item: tuple[float, Request]) -> tuple[int, float]:
            [tokens] = self.run([item[1]], load.beams)
            return tokens, time.perf_counter() - start - item[0]

        with ThreadPoolExecutor(len(load.requests)) as threads:
            futures = []
            for item in zip(load.arrivals, load.requests, strict=True):
                time.sleep(max(0.0, item[0] - (time.perf_counter() - start)))
                futures.append(threads.submit(one, item))
            done = [future.result() for future in futures]
        return sum(tokens for tokens, _ in done), mean(latency for _, latency in done)


class Transformers(System):
    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()

    def run(self, requests: Sequence[Request], beams: int) -> list[int]:
        longest = max(len(request.ids) for request in requests)
        pad = self._model.config.pad_token_id
        ids = torch.tensor([request.ids + [pad] * (longest - len(request.ids)) for request in requests])
        most = max(request.tokens or 64 for request in requests)
        least = {} if requests[0].tokens is None else {"min_new_tokens": most}
        out = self._model.generate(
            ids, attention_mask=(ids != pad).long(), do_sample=False, num_beams=beams, max_new_tokens=most,
            **least,
        )  # fmt: skip
        return [
            request.tokens or int((row[1:] != pad).sum()) for row, request in zip(out, requests, strict=True)
        ]


class CTranslate2(System):
    def __init__(self, folder: Path, work: Path, compute_type: str) -> None:
        import ctranslate2

        converted = work / f"ctranslate2-{compute_type}"
        quantization = None if compute_type == "float32" else compute_type
        ctranslate2.converters.TransformersConverter(str(folder)).convert(
            str(converted), quantization=quantization
        )
        self._translator = ctranslate2.Translator(
            str(converted), compute_type=compute_type, intra_threads=torch.get_num_threads(), inter_threads=1
        )
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def run(self, requests: Sequence[Request], beams: int) -> list[int]:
        most = max(request.tokens or 64 for request in requests)
        results = self._translator.translate_batch(
            [self._tokenizer.convert_ids_to_tokens(request.ids) for request in requests],
            beam_size=beams, max_batch_size=0, max_input_length=0, max_decoding_length=most,
            min_decoding_length=1 if requests[0].tokens is None else most,
        )  # fmt: skip
        # Its answers leave out EOS, which was generated as well.
        return [
            request.tokens or len(result.hypotheses[0]) + 1
            for request, result in zip(requests, results, strict=True)
        ]

    def batches(self, requests: list[Request], size: int) -> Iterator[list[Request]]:
        return super().batches(sorted(requests, key=lambda r: (r.tokens or 0, len(r.ids))), size)


# Tandem's float32 first, whose stream says how fast requests arrive.
SYSTEMS: dict[str, Callable[[Path, Path], System]] = {
    "tandem float32": lambda folder, _: Tandem(folder, "float32"),
    "tandem bfloat16": lambda folder, _: Tandem(folder, "bfloat16"),
    "tandem int8": lambda folder, _: Tandem(folder, "int8"),
    "transformers": lambda folder, _: Transformers(folder),
    "ctranslate2 float32": lambda folder, work: CTranslate2(folder, work, "float32"),
    "ctranslate2 int8": lambda folder, work: CTranslate2(folder, work, "int8"),
}


def make_system(name: str, folder: Path, work: Path) -> System:
    """folder: the model's; work: for what a system makes of it."""
    return SYSTEMS[name](folder, work)


def measure(
    systems: Sequence[Process[Load, Outcome]], rounds: int, of_round: Callable[[int], Iterable[Load]]
) -> dict[str, Any]:
    """of_round: the loads of the round with this number. The first round warms up."""
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    per_second = 1.0  # requests of the stream that Tandem answers
    for number in range(rounds + 1):
        for load in of_round(number):
            if load.arrivals is not None:
                rng, at, times = random.Random(number), 0.0, []
                for _ in load.requests:
                    times.append(at)
                    at += rng.expovariate(0.8 * per_second)
                load = replace(load, arrivals=times)
            some = [one for one in systems if one.name != "transformers" or load.name in WITH_TRANSFORMERS]
            for name, outcome in in_turns(some, load, number):
                if load.name == "stream" and name == REFERENCE:
                    per_second = len(load.requests) / outcome.seconds
                if number:
                    outcomes.setdefault(load.name, {}).setdefault(name, []).append(outcome)
    return {load: _figures(by_system) for load, by_system in outcomes.items()}


def _figures(by_system: dict[str, list[Outcome]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for system, outcomes in by_system.items():
        figures[system] = {
            "tokens_per_s": machine.spread([one.rate for one in outcomes]),
            "latency_s": machine.spread([one.latency_s for one in outcomes]),
            # Ratios within a round: how many times as fast Tandem is.
            "tandem_over_this": {
                ours: machine.spread(
                    [mine.rate / one.rate for mine, one in zip(mines, outcomes, strict=True)]
                )
                for ours, mines in by_system.items()
                if ours.startswith("tandem") and ours != system
            },
        }
    return figures


def main() -> None:
    parser = machine.parser(__doc__, "engine", rounds=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS), metavar="NAME")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="NAME")
    args = parser.parse_args()
    arrivals = "arrivals" in args.loads and any("arrivals" in MODELS[model].loads for model in args.models)
    if arrivals and not ("stream" in args.loads and REFERENCE in args.systems):
        parser.error(f"arrivals come as fast as {REFERENCE} answers the stream: name both, or leave them out")
    console = Console()
    result: dict[str, Any] = {"machine": machine.describe(), "rounds": args.rounds, "models": {}}
    if args.out.exists():
        result["models"] = json.loads(args.out.read_text(encoding="utf-8"))["models"]
    for title in args.models:
        model = MODELS[title]
        names = [name for name in LOADS if name in args.loads and name in model.loads]
        if not names:
            continue
        with tempfile.TemporaryDirectory() as work:
            folder, make = model.prepare(Path(work) / "model")
            made = [
                Process(name, partial(make_system, name, folder, Path(work)))
                for name in SYSTEMS
                if name in args.systems and not (model.larger and name in SMALL_ONLY) and _installed(name)
            ]
            figures = measure(made, args.rounds, partial(loads, make, names=names))
            for system in made:
                system.close()
        kept = result["models"].setdefault(title, {})
        kept.update(figures)
        result["models"][title] = {name: kept[name] for name in LOADS if name in kept}
        console.print(_table(title, figures))
        machine.write(args.out, result)
    console.print(f"wrote {args.out}")


def _installed(system: str) -> bool:
    return not system.startswith("ctranslate2") or find_spec("ctranslate2") is not None


def _table(title: str, figures: dict[str, Any]) -> Table:
    ours = ("tandem float32", "tandem bfloat16", "tandem int8")
    table = Table("load", "system", "tokens/s", "latency, ms", *(f"{name}/it" for name in ours), title=title)
    for load, by_system in figures.items():
        for system, values in by_system.items():
            ratios = [values["tandem_over_this"].get(name) for name in ours]
            table.add_row(
                load, system, f"{values['tokens_per_s']['median']:.0f}",
                f"{1e3 * values['latency_s']['median']:.0f}",
                *(r and f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratios),
            )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
