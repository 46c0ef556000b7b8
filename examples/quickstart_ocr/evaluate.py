"""Scores a quickstart reader on lines that no training has: character error rates through transformers and
through Tandem, which also computes in 8-bit integers, and of tesseract on the same pictures where it is
installed.

    python examples/quickstart_ocr/evaluate.py --data FILE [FILE ...] [--model FOLDER] [--lines N]

FILE is as `train.py` has it. N lines each of every kind of text, in fonts that the training has seen and in
others, clean and noisy.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import torch
from fonts import faces
from render import Line, render
from scoring import CharacterErrors
from targets import TOKENS
from texts import KINDS, Source
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

from tandem import LLM, SamplingParams
from tandem.inputs import Prompt
from tandem.quickstart_ocr import PATH

FONTS = {"seen": False, "held out": True}  # in the training; whether they are held out
BATCH = 32


def make_sets(source: Source, count: int, seed: int) -> dict[str, list[Line]]:
    """Lines by the name of their set: "numbers, held out, noisy"."""
    sets: dict[str, list[Line]] = {}
    for kind in KINDS:
        for fonts, held_out in FONTS.items():
            for noisy in (False, True):
                name = f"{kind}, {fonts}{', noisy' if noisy else ''}"
                rng = random.Random(f"{seed} {name}")
                sets[name] = [
                    render(source.draw(rng, kind), rng.choice(faces(held_out=held_out)), rng, noisy=noisy)
                    for _ in range(count)
                ]
    return sets


@torch.no_grad()
def with_transformers(folder: Path, lines: list[Line]) -> list[str]:
    """Greedy."""
    model = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    texts: list[str] = []
    for start in tqdm(range(0, len(lines), BATCH), desc="transformers", unit="batch"):
        images = [line.image for line in lines[start : start + BATCH]]
        pixels = processor(images, return_tensors="pt").pixel_values
        ids = model.generate(pixels, do_sample=False, num_beams=1)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def with_tandem(folder: Path, lines: list[Line], **options: str) -> list[str]:
    """Greedy."""
    prompts: list[Prompt] = [{"prompt": "", "multi_modal_data": {"image": line.image}} for line in lines]
    with LLM(folder, **options) as llm:  # type: ignore[arg-type]
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=TOKENS - 1))
    return [output.outputs[0].text for output in outputs]


def with_tesseract(lines: list[Line]) -> list[str]:
    """Each picture as one line of English, as large as it is drawn."""
    texts: list[str] = []
    for line in tqdm(lines, desc="tesseract", unit="line"):
        file = io.BytesIO()
        line.image.save(file, "PNG")
        done = subprocess.run(
            ["tesseract", "stdin", "stdout", "-l", "eng", "--psm", "7"], input=file.getvalue(),
            capture_output=True, check=True, env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )  # fmt: skip
        texts.append(done.stdout.decode().strip())
    return texts


def scored(sets: dict[str, list[Line]], texts: list[str]) -> dict[str, float]:
    """Character error rate of each set, in percent, and the share of lines without an error."""
    rates: dict[str, float] = {}
    read = iter(texts)
    together = {fonts: CharacterErrors() for fonts in FONTS}
    for name, lines in sets.items():
        errors = CharacterErrors()
        for line in lines:
            text = next(read)
            errors.add(line.text, text)
            for fonts, found in together.items():
                if fonts in name:
                    found.add(line.text, text)
        rates[name] = round(errors.rate, 1)
    for fonts, found in together.items():
        rates[f"all, {fonts}"] = round(found.rate, 1)
        rates[f"lines without an error, {fonts}"] = round(100 * found.exact / max(1, found.lines), 1)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of English sentences")
    parser.add_argument("--model", type=Path, default=PATH, help="default: the one in the package")
    parser.add_argument("--lines", type=int, default=100, help="of each set")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    sets = make_sets(Source(args.data, "test"), args.lines, args.seed)
    lines = [line for some in sets.values() for line in some]
    result: dict[str, object] = {"lines of each set": args.lines}
    result["transformers"] = scored(sets, with_transformers(args.model, lines))
    result["tandem"] = scored(sets, with_tandem(args.model, lines, dtype="float32"))
    result["tandem, int8"] = scored(sets, with_tandem(args.model, lines, quantization="int8"))
    if shutil.which("tesseract"):
        result["tesseract"] = scored(sets, with_tesseract(lines))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
