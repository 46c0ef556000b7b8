"""Scores a quickstart speech model on sentences that no training text has: word error rates through
transformers and through Tandem, which also computes in 8-bit integers.

    python examples/quickstart_speech/evaluate.py --data FILE [FILE ...] [--model FOLDER] [--clips N]

FILE is as `synthesize.py` has it. N recordings each of every kind of text, by speakers that the training has
heard and by others, clean and noisy; recordings of several utterances, with the times of segments; and
recordings of nobody, which ought to have no text. Needs `pip install espeakng-loader`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from acoustics import nobody
from clips import RATE, WINDOW_S, Recording, feature_extractor
from phrases import KINDS, Source
from scoring import WordErrors
from synthesize import compose, draw_voice, voices
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from tandem import LLM
from tandem.quickstart_speech import PATH

SPEAKERS = {"heard": False, "held out": True}  # in the training; whether they are held out
BATCH = 32


def make_sets(source: Source, count: int, seed: int) -> dict[str, list[Recording]]:
    """Recordings by the name of their set: "numbers, held out, noisy"."""
    sets: dict[str, list[Recording]] = {}
    for kind in KINDS:
        for speakers, held_out in SPEAKERS.items():
            for noisy in (False, True):
                name = f"{kind}, {speakers}{', noisy' if noisy else ''}"
                rng = random.Random(f"{seed} {name}")
                sets[name] = []
                while len(sets[name]) < count:
                    voice = draw_voice(voices(held_out=held_out), rng)
                    made = compose([source.draw(rng, kind)], voice, rng, noisy=noisy, whole=True)
                    sets[name] += [made] if made else []
    rng = random.Random(f"{seed} several")
    sets["several utterances, held out"] = []
    while len(sets["several utterances, held out"]) < count:
        voice = draw_voice(voices(held_out=True), rng)
        made = compose([source.draw(rng) for _ in range(3)], voice, rng, noisy=False, whole=True)
        sets["several utterances, held out"] += [made] if made and len(made.segments) > 1 else []
    sets["nobody"] = [
        Recording(nobody(int(rng.uniform(0.5, WINDOW_S) * RATE), rng), [], None, [], "nobody", "")
        for _ in range(count)
    ]
    return sets


@torch.no_grad()
def with_transformers(folder: Path, recordings: list[Recording]) -> list[str]:
    """Greedy, without times."""
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, extractor = WhisperTokenizer.from_pretrained(folder), feature_extractor()
    texts: list[str] = []
    for start in tqdm(range(0, len(recordings), BATCH), desc="transformers", unit="batch"):
        samples = [one.samples for one in recordings[start : start + BATCH]]
        inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt")
        ids = model.generate(inputs.input_features, language="en", do_sample=False, num_beams=1)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def scored(sets: dict[str, list[Recording]], texts: list[str]) -> dict[str, float]:
    """Word error rate of each set, in percent; of nobody's the share that has text."""
    rates: dict[str, float] = {}
    heard = iter(texts)
    together = {speakers: WordErrors() for speakers in SPEAKERS}
    for name, recordings in sets.items():
        errors, invented = WordErrors(), 0
        for recording in recordings:
            text = next(heard)
            errors.add(recording.text, text)
            invented += bool(text.strip())
            for speakers, found in together.items():
                if recording.segments and speakers in name:
                    found.add(recording.text, text)
        rates[name] = round(errors.rate if errors.words else 100 * invented / len(recordings), 1)
    for speakers, found in together.items():
        rates[f"all, {speakers}"] = round(found.rate, 1)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of English sentences")
    parser.add_argument("--model", type=Path, default=PATH, help="default: the one in the package")
    parser.add_argument("--clips", type=int, default=100, help="of each set")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    sets = make_sets(Source(args.data, "test"), args.clips, args.seed)
    recordings = [one for some in sets.values() for one in some]
    result: dict[str, object] = {"clips of each set": args.clips}
    result["transformers"] = scored(sets, with_transformers(args.model, recordings))
    for engine, options in {
        "tandem": {"dtype": "float32"},
        "tandem, int8": {"quantization": "int8"},
    }.items():
        with LLM(args.model, **options) as llm:  # type: ignore[arg-type]
            audio = [(one.samples, RATE) for one in recordings]
            made = llm.transcribe(audio, language="en", timestamps=None)
            result[engine] = scored(sets, [one.text for one in made])
            if engine == "tandem":
                timed = llm.transcribe(audio, language="en")
    result["tandem, with times"] = scored(sets, [one.text for one in timed])
    found = [
        abs(value - expected)
        for recording, answer in zip(recordings, timed, strict=True)
        if recording.segments and len(answer.segments) == len(recording.segments)
        for segment, said in zip(answer.segments, recording.segments, strict=True)
        for value, expected in ((segment.start_s, said.start_s), (segment.end_s, said.end_s))
    ]
    result["seconds between a segment's time and the true one"] = {
        "mean": round(sum(found) / max(1, len(found)), 3), "times": len(found),
    }  # fmt: skip
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
