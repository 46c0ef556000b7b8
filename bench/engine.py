"""The engine against its peers: tokens/s and latency, in turns.

    python bench/engine.py [--rounds 5] [--out bench/results/engine.json]

Two models: a random T5-small shape (d_model 512, 6 + 6 layers, vocabulary 32,128) that never ends by itself,
so that every system generates just what it is asked for; and the bundled translation model on sentences of
mixed lengths, which ends by EOS. Loads:

    1, 8        requests at once, greedy
    stream      96 requests of mixed lengths, 32 at once, greedy. Tandem lets requests join and leave. The
                others run batches of 32: transformers in order of arrival; CTranslate2 at its best, sorted by
                length (for the random model by the answer's length, which no server knows beforehand)
    arrivals    the stream's requests at random times, at four fifths of what Tandem's float32 keeps up with.
                The others serve as servers around them do: whatever waits is the next batch, up to 32
    beam 4      16 requests at once, four beams

Each system has a process of its own, with all cores. They take turns in every round, and each goes first in
turn; figures are medians over rounds with their extremes. CTranslate2 joins where it is installed.
transformers stays away from arrivals and beams.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import machine
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from turns import PAUSE_S, Process, rotated

from tandem import LLM, BeamSearchParams, SamplingParams
from tandem.quickstart import PATH as QUICKSTART

VOCABULARY = 32128
EOS = 1
BATCH = 32  # the static batches' size, and Tandem's sequences at once

# Left out: they take minutes and decide nothing.
LEFT_OUT = {"transformers": ("arrivals", "beam 4")}


@dataclass(frozen=True)
class Request:
    ids: list[int]
    tokens: int | None  # to generate; None: until the model ends


Make = Callable[[int, random.Random], list[Request]]


@dataclass(frozen=True)
class Load:
    name: str
    requests: list[Request]
    beams: int = 1
    at_once: int = BATCH
    arrivals: list[float] | None = None  # each request's arrival, seconds from the start


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
        self._model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def run(self, requests: Sequence[Request], beams: int) -> list[int]:
        longest = max(len(request.ids) for request in requests)
        ids = torch.tensor([request.ids + [0] * (longest - len(request.ids)) for request in requests])
        most = max(request.tokens or 64 for request in requests)
        least = {} if requests[0].tokens is None else {"min_new_tokens": most}
        out = self._model.generate(
            ids, attention_mask=(ids != 0).long(), do_sample=False, num_beams=beams, max_new_tokens=most,
            **least,
        )  # fmt: skip
        return [
            request.tokens or int((row[1:] != 0).sum()) for row, request in zip(out, requests, strict=True)
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
            beam_size=beams, max_batch_size=0, max_decoding_length=most,
            min_decoding_length=1 if requests[0].tokens is None else most,
        )  # fmt: skip
        # Its answers leave out EOS, which was generated as well.
        return [
            request.tokens or len(result.hypotheses[0]) + 1
            for request, result in zip(requests, results, strict=True)
        ]

    def batches(self, requests: list[Request], size: int) -> Iterator[list[Request]]:
        return super().batches(sorted(requests, key=lambda r: (r.tokens or 0, len(r.ids))), size)


def systems(folder: Path, work: Path) -> list[Process[Load, Outcome]]:
    """The systems that are installed, Tandem's float32 first."""
    made: dict[str, Callable[[], System]] = {
        f"tandem {precision}": partial(Tandem, folder, precision)
        for precision in ("float32", "bfloat16", "int8")
    }
    made["transformers"] = partial(Transformers, folder)
    if find_spec("ctranslate2") is not None:
        for compute_type in ("float32", "int8"):
            made[f"ctranslate2 {compute_type}"] = partial(CTranslate2, folder, work, compute_type)
    return [Process(name, make) for name, make in made.items()]


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0))
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def random_requests(count: int, rng: random.Random) -> list[Request]:
    return [
        Request(
            [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(10, 80))] + [EOS], rng.randrange(8, 65)
        )
        for _ in range(count)
    ]


def sentences(count: int, rng: random.Random, tokenizer: Any) -> list[Request]:
    who = ["I", "We", "My mother", "The teacher", "Tom", "Mary", "The old man next door", "Nobody"]
    does = ["saw", "would like to buy", "forgot", "was looking for", "never liked", "read about", "sold"]
    what = ["a house", "the book on the table", "a small red car", "the train to Paris", "some bread", "it"]
    when = ["yesterday", "last year", "when it was raining", "before the war", "at the station", "again"]
    requests = []
    for _ in range(count):
        clauses = [
            " ".join(map(rng.choice, (who, does, what, when))) for _ in range(rng.choice((1, 1, 1, 2, 3, 5)))
        ]
        text = f"translate English to {rng.choice(('French', 'German'))}: {', and '.join(clauses)}."
        requests.append(Request(tokenizer(text).input_ids, None))
    return requests


def loads(make: Make, seed: int) -> list[Load]:
    rng = random.Random(seed)
    stream = make(3 * BATCH, rng)
    return [
        Load("1", make(5, rng), at_once=1),
        Load("8", make(8, rng), at_once=8),
        Load("stream", stream),
        Load("arrivals", stream, arrivals=[]),  # the times are set when Tandem's rate is known
        Load("beam 4", make(16, rng), beams=4, at_once=16),
    ]


def measure(systems: list[Process[Load, Outcome]], rounds: int, make: Make) -> dict[str, Any]:
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    per_second = 1.0  # requests of the stream that Tandem answers
    for number in range(rounds + 1):
        for load in loads(make, number):
            if load.arrivals is not None:
                rng, at, times = random.Random(number), 0.0, []
                for _ in load.requests:
                    times.append(at)
                    at += rng.expovariate(0.8 * per_second)
                load = replace(load, arrivals=times)
            for system in rotated(systems, number):
                if load.name in LEFT_OUT.get(system.name, ()):
                    continue
                time.sleep(PAUSE_S)
                outcome = system.do(load)
                if load.name == "stream" and system is systems[0]:
                    per_second = len(load.requests) / outcome.seconds
                if number:  # the first round warms up
                    outcomes.setdefault(load.name, {}).setdefault(system.name, []).append(outcome)
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
    args = machine.parser(__doc__, "engine", rounds=5).parse_args()
    console = Console()
    result: dict[str, Any] = {"machine": machine.describe(), "rounds": args.rounds, "models": {}}
    with tempfile.TemporaryDirectory() as name:
        random_model = Path(name) / "t5-small"
        make_model(random_model)
        tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
        for title, folder, make in (
            ("random T5-small", random_model, random_requests),
            ("quickstart", QUICKSTART, lambda count, rng: sentences(count, rng, tokenizer)),
        ):
            made = systems(folder, Path(name) / title)
            result["models"][title] = figures = measure(made, args.rounds, make)
            for system in made:
                system.close()
            console.print(_table(title, figures))
    machine.write(args.out, result)
    console.print(f"wrote {args.out}")


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
