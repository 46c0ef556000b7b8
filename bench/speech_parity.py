"""Real Whisper weights, answer by answer: Tandem's batches against transformers at batch 1, both in float32.

    python bench/speech_parity.py [--utterances 200] [--recordings 12] [--sizes tiny.en base] [--resume]

Utterances are sentences made by rule and spoken by eSpeak NG in many voices, speeds and pitches, some with
noise; recordings are several of them with pauses, longer than a window, every other one conditioned on what
was said before. A round is ten utterances and, while there are some, a recording. `LLM.transcribe` is given a
round at once, `generate` one by one. An answer is equal
if all tokens, the times of all segments and the text are. For each that is not, the first token that differs
is decoded by transformers again: how far the logits of both tokens lie apart there, and by how much times
are likelier than any text, which decides between the two. Below `CLEAR` rounding decides, and either answer
is right.

Then Tandem transcribes the round as users do, with openai-whisper's semantics, where an answer that repeats
itself is decoded again: in float32 and in 8-bit integers, with the same seed. Words are counted against the
script, both as openai-whisper's normalizer writes them, so that "34" is "thirty four". `errors_sd` is the
standard error of the difference of both counts: what it would scatter by if other sentences were spoken.

After every round of a checkpoint the JSON is written, so that it may be stopped; with --resume the rounds in
the file are not done again. Needs espeak-ng and the weights of tests/support/real_whisper.py.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from real_whisper import real_whisper
from transcripts import Expected, Transcripts, found
from transformers import LogitsProcessor
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
from whisper import CLEAR, RATE

from tandem import LLM, Transcription

Samples = npt.NDArray[np.float32]

ROUND = 10  # utterances
VOICES = (
    "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-us+f2", "en-us+m3", "en-gb+f4", "en-us+m7",
)  # fmt: skip
WHO = (
    "the doctor", "my neighbour", "a young woman", "the captain", "our teacher", "the old farmer",
    "her brother", "the engineer", "every visitor", "the last passenger",
)  # fmt: skip
DID = (
    "bought", "forgot", "repaired", "sold", "found", "described", "lost", "carried", "painted", "borrowed",
)  # fmt: skip
WHAT = (
    "a silver watch", "two hundred apples", "the broken radio", "thirty four letters", "a wooden boat",
    "the blue umbrella", "seven books about birds", "a map of the island", "the heavy suitcase",
    "nineteen tickets", "a photograph of the bridge", "the garden chair",
)  # fmt: skip
WHEN = (
    "on Monday morning", "before the storm", "at half past nine", "in the summer of nineteen eighty four",
    "while it was raining", "last Wednesday", "after a long journey", "every second Friday",
    "on the fifth of October", "without saying a word",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    name: str
    samples: Samples
    script: str
    options: dict[str, Any]


def sentence(rng: random.Random) -> str:
    parts = [rng.choice(each) for each in (WHO, DID, WHAT, WHEN)]
    if rng.random() < 0.3:
        parts += ["and", *(rng.choice(each) for each in (WHO, DID, WHAT))]
    text = " ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def speech(text: str, rng: random.Random) -> Samples:
    command = [
        "espeak-ng", "-v", rng.choice(VOICES), "-s", str(rng.randrange(120, 190)),
        "-p", str(rng.randrange(30, 70)), "--stdout", text,
    ]  # fmt: skip
    file = subprocess.run(command, capture_output=True, check=True).stdout
    with wave.open(BytesIO(file)) as made:
        rate, data = made.getframerate(), made.readframes(made.getnframes())
    samples = np.frombuffer(data, np.int16).astype(np.float32) / 2**15
    at = np.arange(int(len(samples) * RATE / rate)) * (rate / RATE)
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)


def utterance(number: int) -> Case:
    rng = random.Random(number)
    text = sentence(rng)
    samples = speech(text, rng)
    if number % 4 == 3:
        noise = np.random.default_rng(number).standard_normal(len(samples)).astype(np.float32)
        samples += 10 ** rng.uniform(-3, -1.6) * noise
    return Case(f"utterance {number}", samples, text, {})


def recording(number: int) -> Case:
    """Of 35 s to 75 s."""
    rng = random.Random(10_000 + number)
    least, parts, texts = rng.uniform(35, 75), [], []
    while sum(map(len, parts)) < least * RATE:
        texts.append(sentence(rng))
        parts += [speech(texts[-1], rng), np.zeros(int(rng.uniform(0.2, 1.5) * RATE), np.float32)]
    options = {"condition_on_prev_tokens": True} if number % 2 else {}
    return Case(f"recording {number}", np.concatenate(parts), " ".join(texts), options)


class Steps(LogitsProcessor):
    """What each step of `generate` starts from, and its scores after all other processors."""

    def __init__(self) -> None:
        self.windows: list[list[tuple[list[int], torch.Tensor]]] = []
        self._before: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ids = input_ids[0].tolist()
        if not self.windows or ids[:-1] != self._before:
            self.windows.append([])
        self.windows[-1].append((ids, scores[0].clone()))
        self._before = ids
        return scores


def windows_of(segments: Sequence[tuple[float, list[int]]]) -> list[list[int]]:
    """Tokens by window; segments: where the window begins, and tokens."""
    windows: dict[float, list[int]] = {}
    for seek_s, ids in segments:
        windows.setdefault(seek_s, []).extend(ids)
    return list(windows.values())


@torch.no_grad()
def cause(whole: Transcripts, case: Case, answer: Transcription, expected: Expected) -> dict[str, Any]:
    """Where and by how much transformers prefers its token to ours."""
    steps = Steps()
    whole.model.generate(
        whole.features(case.samples), return_segments=True, return_timestamps=True, logits_processor=[steps],
        temperature=0.0, **case.options,
    )  # fmt: skip
    eos = whole.model.generation_config.eos_token_id
    first_time = whole.model.generation_config.no_timestamps_token_id + 1
    seeks = sorted({one.seek_s for one in answer.segments})
    ours = windows_of([(one.seek_s, one.token_ids) for one in answer.segments])
    for seek_s, said, window in zip(seeks, ours, steps.windows, strict=False):
        start = len(window[0][0])
        theirs = [*window[-1][0][start:], int(window[-1][1].argmax())]
        for at, (ids, scores) in enumerate(window):
            token = said[at] if at < len(said) else eos
            if token == theirs[at]:
                continue
            if at >= len(said) and theirs[at] >= first_time:
                break  # a last time that begins nothing belongs to no segment
            frames = whole.features(case.samples)[..., round(seek_s * 100) :][..., :3000]
            frames = torch.nn.functional.pad(frames, (0, 3000 - frames.shape[-1]))
            logits = whole.model(frames, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            logits[whole.model.generation_config.suppress_tokens] = -torch.inf
            text = logits[:first_time].max()
            return {
                "window_s": seek_s,
                "token": at,
                "ours": whole.tokenizer.decode([token]),
                "transformers": whole.tokenizer.decode([theirs[at]]),
                "logit_gap": float(logits[theirs[at]] - logits[token]),
                "score_gap": float(scores[theirs[at]] - scores[token]),
                "times_against_text": float(logits[first_time:].logsumexp(-1) - text),
            }
    return {"segments": [found(answer), expected.segments]}


_normalized = EnglishTextNormalizer({})


def words(text: str) -> list[str]:
    return str(_normalized(text)).split()


def errors(said: list[str], script: list[str]) -> int:
    """Words to replace, insert and leave out."""
    row = list(range(len(script) + 1))
    for number, word in enumerate(said, 1):
        last, row[0] = row[0], number
        for at, other in enumerate(script, 1):
            last, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, last + (word != other))
    return row[-1]


NUMBERS = (
    "equal", "unequal", "near_ties", "audio_s", "words", "errors", "int8_errors", "errors_sd",
)  # fmt: skip


class Checkpoint:
    """One checkpoint's answers so far."""

    def __init__(self, size: str, before: dict[str, Any]) -> None:
        """before: an earlier run's `result`; empty: there is none."""
        folder = real_whisper(size)
        self.llm, self.whole = LLM(str(folder), dtype="float32", device="cpu"), Transcripts(folder)
        self.int8 = LLM(str(folder), quantization="int8", device="cpu")
        kinds = ("utterance", "recording")
        self.rounds: int = before.get("rounds", 0)
        self.counts: dict[str, dict[str, float]] = before.get(
            "counts", {kind: dict.fromkeys(NUMBERS, 0) for kind in kinds}
        )
        self.unequal: list[dict[str, Any]] = before.get("unequal", [])
        self.seconds: float = before.get("seconds", 0)

    @property
    def result(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "seconds": round(self.seconds),
            "counts": self.counts,
            "unequal": self.unequal,
        }

    def round(self, cases: Sequence[Case]) -> None:
        begun = time.monotonic()
        for options in ({}, {"condition_on_prev_tokens": True}):
            some = [case for case in cases if case.options == options]
            answers = self.llm.transcribe([(case.samples, RATE) for case in some], use_tqdm=False, **options)
            for case, answer in zip(some, answers, strict=True):
                self._compare(case, answer)
        self._count_words(cases)
        self.rounds += 1
        self.seconds += time.monotonic() - begun

    def _count_words(self, cases: Sequence[Case]) -> None:
        audio = [(case.samples, RATE) for case in cases]
        both = [
            llm.transcribe(audio, semantics="openai", seed=0, use_tqdm=False) for llm in (self.llm, self.int8)
        ]
        for case, answer, int8 in zip(cases, *both, strict=True):
            script, counts = words(case.script), self.counts[case.name.split()[0]]
            wrong, int8_wrong = (errors(words(one.text), script) for one in (answer, int8))
            counts["words"] += len(script)
            counts["errors"] += wrong
            counts["int8_errors"] += int8_wrong
            counts["errors_sd"] = round(math.hypot(counts["errors_sd"], int8_wrong - wrong), 3)

    def _compare(self, case: Case, answer: Transcription) -> None:
        expected = self.whole.generate(case.samples, return_timestamps=True, **case.options)
        counts = self.counts[case.name.split()[0]]
        counts["audio_s"] += round(answer.duration_s, 1)
        eos = self.whole.model.generation_config.eos_token_id
        said = [token for _, _, ids in expected.segments for token in ids if token < eos]
        text = self.whole.tokenizer.decode(said).strip()
        if found(answer) == expected.segments and answer.text == text:
            counts["equal"] += 1
            return
        why = cause(self.whole, case, answer, expected)
        gaps = [abs(why[name]) for name in ("logit_gap", "times_against_text") if name in why]
        counts["unequal"] += 1
        counts["near_ties"] += bool(gaps) and min(gaps) < CLEAR
        self.unequal.append({"case": case.name, "least_lead": expected.lead, **why})


def main() -> None:
    parser = machine.parser(__doc__, "speech_parity")
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--recordings", type=int, default=12)
    parser.add_argument("--sizes", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    if args.resume and args.out.exists():
        results = json.loads(args.out.read_text(encoding="utf-8"))["checkpoints"]
    checkpoints = {size: Checkpoint(size, results.get(size, {})) for size in args.sizes}
    for number in range(-(-args.utterances // ROUND)):
        first, last = number * ROUND, min((number + 1) * ROUND, args.utterances)
        cases = [utterance(at) for at in range(first, last)]
        cases += [recording(number)] if number < args.recordings else []
        for size, checkpoint in checkpoints.items():
            if number < checkpoint.rounds:
                continue
            checkpoint.round(cases)
            results[size] = checkpoint.result
            machine.write(args.out, {"machine": machine.describe(), "checkpoints": results})
            print(size, checkpoint.rounds, checkpoint.result["seconds"], checkpoint.counts, flush=True)
    table = Table(title="Answers equal to transformers' at batch 1")
    columns = ("weights", "audio", "seconds", "equal", "unequal", "near ties", "words", "wrong", "in int8")
    for column in columns:
        table.add_column(column)
    for size, one in checkpoints.items():
        for kind, counts in one.counts.items():
            numbers = [counts[name] for name in ("audio_s", "equal", "unequal", "near_ties", "words")]
            wrong, int8_wrong, sd = (
                f"{counts[name] / max(1, counts['words']):.1%}"
                for name in ("errors", "int8_errors", "errors_sd")
            )
            table.add_row(size, kind, *(f"{value:g}" for value in numbers), wrong, f"{int8_wrong} (± {sd})")
        one.llm.close()
        one.int8.close()
    Console().print(table)


if __name__ == "__main__":
    main()
