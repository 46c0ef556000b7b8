"""Scores a quickstart model on the held-out part: greedy, through transformers and through Tandem, which
also computes in bfloat16 and in 8-bit integers.

    python examples/quickstart_model/evaluate.py --data FOLDER [--model FOLDER]

chrF and BLEU (sacrebleu, its defaults), all known translations of a sentence as its references, for
each direction and for both together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from data import PREFIXES, read_pairs, references
from sacrebleu.metrics import BLEU, CHRF
from tqdm import tqdm
from transformers import AutoTokenizer, T5ForConditionalGeneration

from tandem import LLM, SamplingParams
from tandem.quickstart import PATH

MAX_TOKENS = 64


def with_transformers(model: Path, sources: list[str], batch: int = 64) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    network = T5ForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    out = [""] * len(sources)
    for start in tqdm(range(0, len(order), batch), desc="transformers", unit="batch"):
        some = order[start : start + batch]
        inputs = tokenizer([sources[i] for i in some], return_tensors="pt", padding=True)
        ids = network.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        for i, text in zip(some, texts, strict=True):
            out[i] = text
    return out


def with_tandem(model: Path, sources: list[str], **options: str) -> list[str]:
    with LLM(str(model), **options) as llm:
        outputs = llm.generate(list(sources), SamplingParams(temperature=0, max_tokens=MAX_TOKENS))
    return [output.outputs[0].text for output in outputs]


def score(answers: list[str], known: list[list[str]]) -> dict[str, float]:
    most = max(map(len, known))
    # sacrebleu wants one list for each rank of reference; "" is left out.
    ranks = [[refs[rank] if rank < len(refs) else "" for refs in known] for rank in range(most)]
    return {
        "chrF": round(CHRF().corpus_score(answers, ranks).score, 2),
        "BLEU": round(BLEU().corpus_score(answers, ranks).score, 2),
        "sentences": len(answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the two .tsv files")
    parser.add_argument("--model", type=Path, default=PATH, help="default: the one in the package")
    args = parser.parse_args()

    test = read_pairs(args.data)["test"]
    items = [
        (language, PREFIXES[language] + english, refs)
        for language in PREFIXES
        for english, refs in sorted(references(test, language).items())
    ]
    result: dict[str, dict[str, dict[str, float]]] = {}
    engines: dict[str, Callable[[list[str]], list[str]]] = {
        "transformers": lambda sources: with_transformers(args.model, sources),
        "tandem": lambda sources: with_tandem(args.model, sources, dtype="float32"),
        "tandem, bfloat16": lambda sources: with_tandem(args.model, sources, dtype="bfloat16"),
        "tandem, int8": lambda sources: with_tandem(args.model, sources, quantization="int8"),
    }
    for engine, run in engines.items():
        answers = run([source for _, source, _ in items])
        result[engine] = {}
        for part in (*PREFIXES, "both"):
            chosen = [i for i, (language, _, _) in enumerate(items) if part in (language, "both")]
            result[engine][part] = score([answers[i] for i in chosen], [items[i][2] for i in chosen])
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
