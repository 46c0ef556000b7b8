"""Transcription against faster-whisper with the same weights: seconds, clips/s, and how many words differ.

    python bench/speech.py FOLDER [FOLDER…] [--rounds 3] [--out bench/results/speech.json]

FOLDER holds a Whisper checkpoint in transformers' format, FOLDER-ct2 the same weights as faster-whisper opens
them. A checkpoint is known by its folder's name; those of earlier runs stay in the file. Recordings are
synthesised with espeak-ng, which must be installed: clips of about 11 s, several voices and speeds. Loads:

    clip        one clip, greedy, without times
    beam 5      the clip, five beams
    words       the clip, greedy, with the times of its words
    8, 32       so many clips that are all there. Tandem and `BatchedInferencePipeline` batch them: the latter
                reads them as one recording whose clips it is told. `WhisperModel` takes one after another,
                and stays away from 32, which is no different; so does the pipeline in float32
    file        five minutes, window after window, with the times of segments

No recording is transcribed twice: Tandem keeps what it has encoded for a while. So in every round a load's
samples differ in noise that nobody hears, the same for all systems. Thresholds, fallback and conditions are
off everywhere. Each system has a process of its own, with all cores.
They take turns in every round, and each goes first in turn; figures are medians over rounds with their
extremes. faster-whisper joins where it is installed, bfloat16 where the processor has instructions for
it.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
import wave
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import machine
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from turns import Process, in_turns

from tandem import LLM

Samples = npt.NDArray[np.float32]  # at RATE

RATE = 16000
CLIP_S = 11
FILE_S = 300
NOISE = 2**-15  # the last bit of 16
REFERENCE = "tandem float32"  # whose words the others' are compared with

SENTENCES = (
    "Good morning. The meeting begins at nine o'clock in the large room on the second floor.",
    "The train to the north leaves at a quarter past seven, and the next one is two hours later.",
    "She opened the window and looked at the garden, where the children were playing in the snow.",
    "Water boils at one hundred degrees, but on a high mountain it boils much earlier than that.",
    "If you want to learn a language, read a little every day and do not be afraid of mistakes.",
    "The old man told us a story about a ship that was lost at sea during a great storm.",
    "Nobody knew who had left the lights on, so we walked through every room of the house.",
    "My sister works in a hospital near the river and takes the first bus in the morning.",
    "They bought bread, cheese and two bottles of milk before the shop closed for the weekend.",
    "In the spring the farmers plant potatoes, and in the autumn the whole village helps to dig them up.",
    "The doctor said that he should sleep more, drink less coffee and go for a walk after dinner.",
)
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f2", "en-us+m3")
SPEEDS = (135, 150, 165)  # words a minute


@dataclass(frozen=True)
class Load:
    name: str
    clips: list[Samples]
    rounds: int  # at most
    beams: int = 1
    timestamps: Literal["segment", "word"] | None = None

    @property
    def seconds(self) -> float:
        return sum(map(len, self.clips)) / RATE

    def again(self, number: int) -> Load:
        """The load of a round: other samples, the same words."""
        noise = np.random.default_rng([number, *self.name.encode()])
        dithered = [clip + noise.uniform(-NOISE, NOISE, len(clip)).astype(np.float32) for clip in self.clips]
        return replace(self, clips=dithered)


@dataclass(frozen=True)
class Outcome:
    texts: list[str]  # of the clips
    seconds: float


class System(ABC):
    def do(self, load: Load) -> Outcome:
        start = time.perf_counter()
        texts = self.transcribe(load)
        return Outcome(texts, time.perf_counter() - start)

    @abstractmethod
    def transcribe(self, load: Load) -> list[str]:
        """The text of each clip."""


class Tandem(System):
    def __init__(self, folder: Path, precision: str) -> None:
        how = {"quantization": precision} if precision == "int8" else {"dtype": precision}
        self._llm = LLM(str(folder), **how, max_num_seqs=32)
        self._language = _language(folder)

    def transcribe(self, load: Load) -> list[str]:
        answers = self._llm.transcribe(
            [(clip, RATE) for clip in load.clips], language=self._language, temperature=0.0,
            num_beams=load.beams, timestamps=load.timestamps, use_tqdm=False,
        )  # fmt: skip
        return [answer.text for answer in answers]


class FasterWhisper(System):
    """`WhisperModel`, which takes one clip after another."""

    def __init__(self, folder: Path, compute_type: str) -> None:
        from faster_whisper import WhisperModel

        self._model = WhisperModel(
            f"{folder}-ct2", device="cpu", compute_type=compute_type, cpu_threads=torch.get_num_threads()
        )
        self._language = _language(folder) or "en"

    def transcribe(self, load: Load) -> list[str]:
        return ["".join(self._run(self._model, clip, load)) for clip in load.clips]

    def _run(self, model: Any, audio: Samples, load: Load, **how: Any) -> list[str]:
        segments, _ = model.transcribe(
            audio, language=self._language, beam_size=load.beams, best_of=1, temperature=0,
            compression_ratio_threshold=None, log_prob_threshold=None, no_speech_threshold=None,
            condition_on_previous_text=False, without_timestamps=load.timestamps is None,
            word_timestamps=load.timestamps == "word", vad_filter=False, **how,
        )  # fmt: skip
        return [segment.text for segment in segments]


class Batched(FasterWhisper):
    """`BatchedInferencePipeline`: the clips are parts of one recording, with a window each."""

    def __init__(self, folder: Path, compute_type: str) -> None:
        from faster_whisper import BatchedInferencePipeline

        super().__init__(folder, compute_type)
        self._pipeline = BatchedInferencePipeline(self._model)

    def transcribe(self, load: Load) -> list[str]:
        ends = np.cumsum([len(clip) for clip in load.clips]) / RATE
        starts = [0.0, *ends[:-1]]
        clips = [{"start": start, "end": end} for start, end in zip(starts, ends, strict=True)]
        how = {"clip_timestamps": clips, "batch_size": min(16, len(clips))}
        return self._run(self._pipeline, np.concatenate(load.clips), load, **how)


def _language(folder: Path) -> str | None:
    """What a multilingual model is told."""
    config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return "en" if config.get("is_multilingual") else None


# The loads of which a system stays away: it would do there what it does in another one, or takes minutes.
LEFT_OUT = {
    "faster-whisper float32": ("32",),
    "faster-whisper int8": ("32",),
    "faster-whisper batched float32": ("clip", "beam 5", "words", "32", "file"),
    "faster-whisper batched int8": ("clip", "beam 5", "words", "file"),
}


def systems(folder: Path) -> list[Process[Load, Outcome]]:
    """The systems that are installed, Tandem's float32 first."""
    precisions = ["float32", *(["bfloat16"] if has_bfloat16() else []), "int8"]
    made: dict[str, Callable[[], System]] = {
        f"tandem {precision}": partial(Tandem, folder, precision) for precision in precisions
    }
    if find_spec("faster_whisper") is not None:
        for kind, name in ((FasterWhisper, "faster-whisper"), (Batched, "faster-whisper batched")):
            for compute_type in ("float32", "int8"):
                made[f"{name} {compute_type}"] = partial(kind, folder, compute_type)
    return [Process(name, make) for name, make in made.items()]


def has_bfloat16() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and any(name in info.read_text() for name in ("avx512_bf16", "amx_bf16", " bf16"))


def spoken(seconds: float, number: int = 0, *, exactly: bool = False) -> Samples:
    """Sentences from this number on, with pauses; `exactly`: cut there, else at a sentence's end."""
    voice, speed = VOICES[number % len(VOICES)], SPEEDS[number % len(SPEEDS)]
    parts: list[Samples] = []
    while sum(map(len, parts)) < seconds * RATE * (1 if exactly else 0.7):
        sentence = SENTENCES[(number + len(parts)) % len(SENTENCES)]
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", sentence]
        data = subprocess.run(command, capture_output=True, check=True).stdout
        with wave.open(io.BytesIO(data)) as file:
            rate, raw = file.getframerate(), file.readframes(file.getnframes())
        samples = np.frombuffer(raw, np.int16).astype(np.float32) / 2**15
        at = np.arange(int(len(samples) * RATE / rate)) * (rate / RATE)
        pause = np.zeros(RATE // 2, np.float32)
        parts.append(
            np.concatenate([np.interp(at, np.arange(len(samples)), samples).astype(np.float32), pause])
        )
    made = np.concatenate(parts)
    return made[: int(seconds * RATE)] if exactly else made


def loads() -> list[Load]:
    clips = [spoken(CLIP_S, number) for number in range(32)]
    return [
        Load("clip", clips[:1], 5),
        Load("beam 5", clips[:1], 5, beams=5),
        Load("words", clips[:1], 5, timestamps="word"),
        Load("8", clips[:8], 3),
        Load("32", clips, 2),
        Load("file", [spoken(FILE_S, exactly=True)], 2, timestamps="segment"),
    ]


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    made = systems(folder)
    work = loads()
    for system in made:  # the first answer, from memory that is not there yet
        system.do(work[0].again(rounds))
    outcomes: dict[str, dict[str, list[Outcome]]] = {load.name: {} for load in work}
    for number in range(rounds):
        for load in work:
            if number >= load.rounds:
                continue
            recordings = load.again(number)
            some = [one for one in made if load.name not in LEFT_OUT.get(one.name, ())]
            for name, outcome in in_turns(some, recordings, number):
                outcomes[load.name].setdefault(name, []).append(outcome)
    for system in made:
        system.close()
    return {load.name: _figures(load, outcomes) for load in work}


def _figures(load: Load, outcomes: dict[str, dict[str, list[Outcome]]]) -> dict[str, Any]:
    of_load, figures = outcomes[load.name], {}
    expected = of_load[REFERENCE][0].texts
    for system, each in of_load.items():
        figures[system] = {
            "seconds": machine.spread([one.seconds for one in each]),
            "clips_per_s": machine.spread([len(load.clips) / one.seconds for one in each]),
            "real_time_factor": machine.spread([one.seconds / load.seconds for one in each]),
            "word_errors": round(_word_errors(expected, each[0].texts), 4),  # of the reference's words
            # Ratios within a round: how many times as long this takes.
            "over_tandem": {
                ours: machine.spread(
                    [one.seconds / mine.seconds for mine, one in zip(mines, each, strict=True)]
                )
                for ours, mines in of_load.items()
                if ours.startswith("tandem") and ours != system
            },
        }
        if load.name in ("beam 5", "words"):
            plain = outcomes["clip"][system]
            figures[system]["over_clip"] = machine.spread(
                [one.seconds / clip.seconds for clip, one in zip(plain, each, strict=False)]
            )
    return figures


def _word_errors(expected: list[str], got: list[str]) -> float:
    wrong = sum(_distance(words_of(one), words_of(other)) for one, other in zip(expected, got, strict=True))
    return wrong / max(1, sum(len(words_of(one)) for one in expected))


def words_of(text: str) -> list[str]:
    """Without capitals and punctuation."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def _distance(one: list[str], other: list[str]) -> int:
    """Words to replace, insert or leave out."""
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, theirs in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != theirs))
    return row[-1]


def main() -> None:
    parser = machine.parser(__doc__, "speech", rounds=3)
    parser.add_argument("folders", nargs="+", type=Path)
    args = parser.parse_args()
    console = Console()
    result: dict[str, Any] = {"machine": machine.describe(), "rounds": args.rounds, "models": {}}
    if args.out.exists():
        result["models"] = json.loads(args.out.read_text(encoding="utf-8"))["models"]
    for folder in args.folders:
        result["models"][folder.name] = figures = measure(folder, args.rounds)
        console.print(_table(folder.name, figures))
        machine.write(args.out, result)
    console.print(f"wrote {args.out}")


def _table(title: str, figures: dict[str, Any]) -> Table:
    ours = [name for name in figures["clip"] if name.startswith("tandem")]
    columns = ("load", "system", "s", "clips/s", "word errors", "/clip", *(f"it/{name}" for name in ours))
    table = Table(*columns, title=title)
    for load, by_system in figures.items():
        for system, values in by_system.items():
            over = values.get("over_clip")
            ratios = [values["over_tandem"].get(name) for name in ours]
            table.add_row(
                load, system, f"{values['seconds']['median']:.2f}", f"{values['clips_per_s']['median']:.2f}",
                f"{100 * values['word_errors']:.1f} %", over and f"{over['median']:.2f}",
                *(r and f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratios),
            )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
