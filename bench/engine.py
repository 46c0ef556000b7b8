"""The engine against its peers: tokens/s and latency at 1, 8 and 32 concurrent requests.

    python bench/engine.py [--rounds 5] [--out bench/results/engine.json]

A random T5-small shape (d_model 512, 6 + 6 layers, vocabulary 32,128), greedy, mixed input and output
lengths. Each system is given the same requests. Tandem lets requests join and leave; a static batch
(transformers, CTranslate2) runs until its longest answer is done. Systems take turns in every round; the
figures are medians over rounds. CTranslate2 joins where it is installed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tandem import LLM, SamplingParams

VOCABULARY = 32128
EOS = 1


# Before each measurement: threads of the system before spin for a while, waiting for more.
PAUSE_S = 0.5
ALONE = 5  # requests, where they come one after the other


@dataclass(frozen=True)
class Workload:
    """Requests that are all there at the start, or come one after the other."""

    concurrency: int
    inputs: list[list[int]]
    outputs: list[int]  # tokens to generate

    @classmethod
    def make(cls, concurrency: int, seed: int) -> Workload:
        rng = random.Random(seed)
        count = max(concurrency, ALONE)
        inputs = [
            [rng.randrange(2, VOCABULARY) for _ in range(rng.randrange(10, 80))] + [EOS] for _ in range(count)
        ]
        return cls(concurrency, inputs, [rng.randrange(8, 65) for _ in range(count)])

    def parts(self) -> list[Workload]:
        """What is in work together."""
        if self.concurrency > 1:
            return [self]
        return [Workload(1, [ids], [n]) for ids, n in zip(self.inputs, self.outputs, strict=True)]


Run = Callable[[Workload], None]  # generates everything the workload asks for


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0))
    # Never EOS: every system generates as many tokens as it is asked for.
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def tandem_runner(folder: Path, dtype: str) -> Run:
    llm = LLM(str(folder), dtype=dtype, max_num_seqs=32)

    def run(work: Workload) -> None:
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in work.inputs],
            [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in work.outputs],
            use_tqdm=False,
        )
        assert [len(output.outputs[0].token_ids) for output in outputs] == work.outputs

    return run


def transformers_runner(folder: Path) -> Run:
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def run(work: Workload) -> None:
        longest = max(map(len, work.inputs))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in work.inputs])
        most = max(work.outputs)
        out = model.generate(
            ids, attention_mask=(ids != 0).long(), do_sample=False, min_new_tokens=most, max_new_tokens=most
        )
        assert out.shape[1] == most + 1

    return run


def ctranslate2_runner(folder: Path, compute_type: str) -> Run:
    import ctranslate2

    converted = folder / f"ctranslate2-{compute_type}"
    ctranslate2.converters.TransformersConverter(str(folder)).convert(
        str(converted), quantization=None if compute_type == "float32" else compute_type
    )
    translator = ctranslate2.Translator(
        str(converted), compute_type=compute_type, intra_threads=torch.get_num_threads(), inter_threads=1
    )
    names = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(3, VOCABULARY))]

    def run(work: Workload) -> None:
        most = max(work.outputs)
        results = translator.translate_batch(
            [[names[i] for i in ids] for ids in work.inputs],
            beam_size=1, min_decoding_length=most, max_decoding_length=most, max_batch_size=0,
        )  # fmt: skip
        assert all(len(result.hypotheses[0]) == most for result in results)

    return run


def rotated(names: list[str], by: int) -> list[str]:
    at = by % len(names)
    return names[at:] + names[:at]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engine.json")
    args = parser.parse_args()
    console = Console()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        systems: dict[str, Run] = {
            "tandem float32": tandem_runner(folder, "float32"),
            "tandem bfloat16": tandem_runner(folder, "bfloat16"),
            "transformers": transformers_runner(folder),
        }
        try:
            for compute_type in ("float32", "int8"):
                systems[f"ctranslate2 {compute_type}"] = ctranslate2_runner(folder, compute_type)
        except ImportError:
            console.print("CTranslate2 is not installed: left out")

        result: dict[str, Any] = {"machine": machine.describe(), "rounds": args.rounds, "concurrency": {}}
        table = Table("concurrent", "system", "tokens/s", "seconds", "vs transformers")
        for concurrency in (1, 8, 32):
            works = [Workload.make(concurrency, seed) for seed in range(args.rounds + 1)]
            seconds: dict[str, list[float]] = {system: [] for system in systems}
            for number, work in enumerate(works):
                # Each goes first in turn: whoever follows another finds its leavings in the caches.
                for system in rotated(list(systems), number):
                    run = systems[system]
                    time.sleep(PAUSE_S)
                    start = time.perf_counter()
                    for part in work.parts():
                        run(part)
                    if number:  # the first round warms up
                        seconds[system].append(time.perf_counter() - start)
            tokens = [sum(work.outputs) for work in works[1:]]
            entry: dict[str, Any] = {}
            for system, times in seconds.items():
                rates = [n / t for n, t in zip(tokens, times, strict=True)]
                ratios = [o / t for o, t in zip(seconds["transformers"], times, strict=True)]
                entry[system] = {
                    "tokens_per_s": machine.spread(rates),
                    "seconds": machine.spread(times),
                    "speed_over_transformers": machine.spread(ratios),
                }
                table.add_row(
                    str(concurrency), system, f"{entry[system]['tokens_per_s']['median']:.0f}",
                    f"{entry[system]['seconds']['median']:.2f}",
                    f"{entry[system]['speed_over_transformers']['median']:.2f}x",
                )  # fmt: skip
            result["concurrency"][concurrency] = entry
    console.print(table)
    machine.write(args.out, result)
    console.print(f"wrote {args.out}")


if __name__ == "__main__":
    sys.exit(main())
