"""What copying from the source gives, and what it costs where there is nothing to copy.

    python bench/speculation.py [--rounds 5] [--out bench/results/speculation.json]

One engine that drafts, one that does not, in one process and in turns; float32. Two models:

    copier      of T5-small's size, made by hand so that how much it copies is known: `copier.py`. Inputs of
                40 to 120 tokens of which it copies all, all but one in twenty or in five, and none
    quickstart  the bundled translation model, on sentences full of names and numbers, which translations
                keep, and on plain ones

With 1, 8 and 32 requests at once. Both engines must give the same tokens. Figures are medians over rounds
with their extremes.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from copier import EOS, make_copier, source
from engine import Request, rotated, sentences
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from tandem.quickstart import PATH as QUICKSTART
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import Decoding, EncoderInput, EngineRequest

VOCABULARY = 32128
SIZE = {
    "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
    "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
    "max_position_embeddings": 256,
}  # fmt: skip
AT_ONCE = (1, 8, 32)
ROUND_S = 1.0  # of each of the two, at least
Make = Callable[[int, random.Random], list[list[int]]]  # how many → inputs


@dataclass(frozen=True)
class Outcome:
    answers: list[list[int]]
    seconds: float
    steps: int
    drafted: int
    accepted: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))


class Contender:
    def __init__(self, folder: Path, start: int, eos: int, draft_tokens: int) -> None:
        self.start, self.eos, self.drafts = start, eos, draft_tokens > 0
        self._engine = Engine(
            EngineConfig(
                str(folder), dtype="float32", device="cpu", max_num_seqs=max(AT_ONCE),
                max_encoder_length=256, max_decoder_length=256, draft_tokens=draft_tokens,
            )
        )  # fmt: skip

    def run(self, inputs: list[list[int]]) -> Outcome:
        how = Decoding(
            max_tokens=200, min_tokens=0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
            repetition_penalty=1.0, seed=0, stop_ids=frozenset({self.eos}), eos_ids=frozenset({self.eos}),
            logprobs=None,
        )  # fmt: skip
        answers: dict[str, list[int]] = {str(number): [] for number in range(len(inputs))}
        before, began = self._engine.stats(), time.perf_counter()
        for name, ids in zip(answers, inputs, strict=True):
            encoder = EncoderInput(str(ids), tuple(ids))
            self._engine.submit(EngineRequest(name, encoder, (self.start,), how))
        while self._engine.has_work:
            for delta in self._engine.step():
                answers[delta.request_id] += delta.token_ids
        seconds, after = time.perf_counter() - began, self._engine.stats()
        return Outcome(
            list(answers.values()),
            seconds,
            after.steps - before.steps,
            after.drafted_tokens - before.drafted_tokens,
            after.accepted_tokens - before.accepted_tokens,
        )


def copies(wrong: float) -> Make:
    return lambda count, rng: [source(rng.randint(40, 120), wrong, VOCABULARY, rng) for _ in range(count)]


def facts(count: int, rng: random.Random, tokenizer: Any) -> list[list[int]]:
    """Names and numbers, with a few words around them."""
    syllables = ["ka", "ro", "li", "men", "tor", "sa", "vi", "ber", "no", "da", "gil", "par"]

    def name() -> str:
        return "".join(rng.choices(syllables, k=rng.randint(2, 4))).capitalize()

    def sentence() -> str:
        return rng.choice(
            [
                f"{name()} {name()} lives in {name()}.",
                f"Call {name()} at {rng.randint(10**5, 10**7)}.",
                f"{name()} paid {rng.randint(10, 9999)} euros to {name()}.",
                f"In {rng.randint(1200, 2020)}, {name()} met {name()} and {name()}.",
            ]
        )

    texts = (" ".join(sentence() for _ in range(rng.choice((1, 2, 3)))) for _ in range(count))
    return [
        tokenizer(f"translate English to {rng.choice(('French', 'German'))}: {text}").input_ids
        for text in texts
    ]


def measure(contenders: list[Contender], rounds: int, make: Make) -> dict[str, Any]:
    figures = {}
    for at_once in AT_ONCE:
        found: list[dict[bool, Outcome]] = []
        for number in range(rounds + 1):
            parts: dict[bool, list[Outcome]] = {True: [], False: []}
            rng = random.Random(number)
            # The contenders alternate by the batch, for the machine is slower at one moment than at another.
            for turn in itertools.count():
                inputs = make(at_once, rng)
                for contender in rotated(contenders, turn):
                    parts[contender.drafts].append(contender.run(inputs))
                assert parts[True][-1].answers == parts[False][-1].answers
                if all(sum(part.seconds for part in of_one) > ROUND_S for of_one in parts.values()):
                    break
            if number:  # the first round warms up
                found.append({drafts: total(of_one) for drafts, of_one in parts.items()})
        figures[str(at_once)] = {
            "tokens_per_s": {
                "without": machine.spread([one[False].tokens / one[False].seconds for one in found]),
                "with": machine.spread([one[True].tokens / one[True].seconds for one in found]),
            },
            "ratio": machine.spread([one[False].seconds / one[True].seconds for one in found]),
            "steps_ratio": machine.spread([one[False].steps / one[True].steps for one in found]),
            "drafted_per_token": machine.spread([one[True].drafted / one[True].tokens for one in found]),
            "accepted_per_drafted": machine.spread(
                [one[True].accepted / max(1, one[True].drafted) for one in found]
            ),
        }
    return figures


def total(parts: list[Outcome]) -> Outcome:
    return Outcome(
        [answer for part in parts for answer in part.answers],
        *(sum(getattr(part, name) for part in parts) for name in ("seconds", "steps", "drafted", "accepted")),
    )


def main() -> None:
    args = machine.parser(__doc__, "speculation", rounds=5).parse_args()
    console = Console()
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)

    def plain(count: int, rng: random.Random) -> list[list[int]]:
        requests: list[Request] = sentences(count, rng, tokenizer)
        return [request.ids for request in requests]

    result: dict[str, Any] = {"machine": machine.describe(), "rounds": args.rounds, "models": {}}
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        make_copier(made, vocab_size=VOCABULARY, **SIZE)
        copied = {"copies all": 0.0, "copies 19 of 20": 0.05, "copies 4 of 5": 0.2, "copies nothing": 1.0}
        models: list[tuple[str, Path, int, int, dict[str, Make]]] = [
            ("copier", made, EOS, EOS, {title: copies(wrong) for title, wrong in copied.items()}),
            (
                "quickstart",
                QUICKSTART,
                0,
                1,
                {
                    "names and numbers": lambda count, rng: facts(count, rng, tokenizer),
                    "plain sentences": plain,
                },
            ),
        ]
        for title, folder, start, eos, loads in models:
            contenders = [
                Contender(folder, start, eos, draft_tokens) for draft_tokens in (EngineConfig.draft_tokens, 0)
            ]
            figures = {load: measure(contenders, args.rounds, make) for load, make in loads.items()}
            result["models"][title] = figures
            console.print(_table(title, figures))
    machine.write(args.out, result)
    console.print(f"wrote {args.out}")


def _table(title: str, figures: dict[str, Any]) -> Table:
    table = Table(
        "load", "at once", "tokens/s without", "with", "ratio", "drafted/token", "right", title=title
    )
    for load, by_count in figures.items():
        for at_once, values in by_count.items():
            ratio = values["ratio"]
            table.add_row(
                load, at_once, f"{values['tokens_per_s']['without']['median']:.0f}",
                f"{values['tokens_per_s']['with']['median']:.0f}",
                f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
                f"{values['drafted_per_token']['median']:.2f}",
                f"{values['accepted_per_drafted']['median']:.2f}",
            )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
