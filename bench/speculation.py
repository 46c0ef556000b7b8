"""What drafts from the source gain, and what they cost where there is nothing to copy.

    python bench/speculation.py [--corrections FOLDER] [--rounds 5] [--out bench/results/speculation.json]

One engine with drafts and one without, in one process, batch by batch in turns. The models:

    copier        T5-small's size, made by hand so that how much it copies is known: `copier.py`. Inputs of
                  40 to 120 tokens of which it copies all, all but one in twenty or in five, and none
    extractor     the copier, which copies twelve tokens and leaves out twelve, in turns
    quickstart    the bundled translation model, on sentences full of names and numbers, which translations
                  keep, and on plain ones
    corrections   the model that `examples/corrections_model` trains, in FOLDER, on its held-out texts; in
                  float32 and in 8-bit integers

All but the last compute in float32. With 1, 8 and 32 requests at once. Both engines must give the same
tokens. Figures are medians over rounds with their extremes.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import machine
from copier import EOS, T5_SMALL, make_copier
from drafts import Make, contenders, copies, extracts, measure
from engine_loads import Sentences
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from tandem.quickstart import PATH as QUICKSTART

AT_ONCE = (1, 8, 32)
PRECISIONS: dict[str, dict[str, Any]] = {"corrections": {}, "corrections int8": {"quantization": "int8"}}
PAD, T5_EOS = 0, 1  # in T5's tokenizers; decoding starts with the padding token
HELD_OUT = "held_out.tsv"  # in a corrections model's folder: input, corrected text and answer, by tabs
RUNS_ON = 1.25  # an answer's length over the corrected text's, at most
SPAN = 12  # tokens that are extracted, and left out, at a time
ROUND_S = 1.0


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


def corrections(folder: Path) -> Make:
    """Inputs drawn at random from the held-out texts of the corrections model in `folder`. Texts whose answer
    runs on are left out: what repeats the input without an end would flatter drafts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [line.split("\t") for line in (folder / HELD_OUT).read_text(encoding="utf-8").splitlines()]
    texts = [source for source, clean, answer in rows if len(answer) <= RUNS_ON * len(clean)]
    inputs: list[list[int]] = tokenizer(texts).input_ids
    return lambda count, rng: rng.sample(inputs, count)


def main() -> None:
    parser = machine.parser(__doc__, "speculation", rounds=5)
    parser.add_argument("--corrections", type=Path, metavar="FOLDER", help="a corrections model, see above")
    args = parser.parse_args()
    console = Console()
    tokenizer, sentences = AutoTokenizer.from_pretrained(QUICKSTART), Sentences()

    def plain(count: int, rng: random.Random) -> list[list[int]]:
        return [request.ids for request in sentences.mixed(count, rng)]

    result: dict[str, Any] = {"machine": machine.describe(), "rounds": args.rounds, "models": {}}
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        make_copier(made / "copier", **T5_SMALL)
        make_copier(made / "extractor", span=SPAN, **T5_SMALL)
        words = T5_SMALL["vocab_size"]
        copied = {"copies all": 0.0, "copies 19 of 20": 0.05, "copies 4 of 5": 0.2, "copies nothing": 1.0}
        models: dict[str, tuple[Path, int, int, dict[str, Make]]] = {
            "copier": (
                made / "copier", EOS, EOS, {title: copies(wrong, words) for title, wrong in copied.items()}
            ),
            "extractor": (made / "extractor", EOS, EOS, {"extracts half": extracts(SPAN, words, (2, 10))}),
            "quickstart": (
                QUICKSTART, PAD, T5_EOS,
                {
                    "names and numbers": lambda count, rng: facts(count, rng, tokenizer),
                    "plain sentences": plain,
                },
            ),
        }  # fmt: skip
        if args.corrections:
            held_out = {"held-out texts": corrections(args.corrections)}
            models |= dict.fromkeys(PRECISIONS, (args.corrections, PAD, T5_EOS, held_out))
        for title, (folder, start, eos, loads) in models.items():
            both = contenders(
                folder, start, eos, dtype="float32", device="cpu", max_num_seqs=max(AT_ONCE),
                **PRECISIONS.get(title, {}),
            )  # fmt: skip
            figures = {
                load: {str(count): measure(both, count, args.rounds, make, ROUND_S) for count in AT_ONCE}
                for load, make in loads.items()
            }
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
