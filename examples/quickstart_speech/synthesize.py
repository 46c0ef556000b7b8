"""Makes the recordings that the quickstart speech model is trained and scored on.

    python examples/quickstart_speech/synthesize.py --data FILE [FILE ...] --out FOLDER --clips 100000

FILE is tab-separated with an English sentence first, as `tatoeba-en-de.tsv`. FOLDER gets files of features
for training, one after another, and a file of recordings that the training is watched with; a run that is
started again makes those that are missing. Needs `pip install espeakng-loader`.
"""

from __future__ import annotations

import argparse
import random
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from acoustics import nobody, recorded
from clips import (
    PAUSE,
    RATE,
    WINDOW_S,
    Clip,
    Piece,
    Recording,
    Samples,
    Segment,
    clip_of,
    drawn,
    feature_extractor,
    save_clips,
)
from espeak import Speech, Voice, say, variants
from phrases import Phrase, Source
from tqdm import tqdm

DIALECTS: Final = (
    "en-us", "en-us", "en-us", "en", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan",
    "en-gb-x-gbcwmd", "en-029", "en-us-nyc",
)  # fmt: skip
# Speakers that the training never hears, with all that is derived from them.
HELD_OUT: Final = (
    "Alicia", "Andy", "belinda", "ed", "f4", "grandpa", "m5", "paul", "steph", "steph2", "steph3", "victor",
)  # fmt: skip
# No voices of people.
_EFFECTS: Final = (
    "Demonic", "Tweaky", "UniRobot", "anikaRobot", "fast", "kaukovalta", "robosoft", "RicishayMax",
)  # fmt: skip


def voices(*, held_out: bool) -> list[str]:
    """Speakers of the training, or those it does not hear."""
    if held_out:
        return list(HELD_OUT)
    return ["", *(name for name in variants() if name not in HELD_OUT and not name.startswith(_EFFECTS))]


def draw_voice(speakers: list[str], rng: random.Random) -> Voice:
    return Voice(
        rng.choice(DIALECTS),
        rng.choice(speakers),
        speed=rng.randint(125, 230),
        pitch=rng.randint(25, 75),
        range=rng.randint(30, 70),
        tract=1.0 if rng.random() < 0.3 else rng.uniform(0.88, 1.14),
    )


def spoken(phrase: Phrase, voice: Voice) -> tuple[Speech, Segment]:
    """A phrase's speech, and when each piece of it is said."""
    speech = say(" ".join(said for said, _ in phrase.pieces), voice)
    total_s = len(speech.samples) / RATE
    starts: list[float] = []
    at = 0
    for said, _ in phrase.pieces:
        here = [begin for character, begin in speech.words if at <= character < at + len(said) + 1]
        # eSpeak runs some words together: then the second has the first one's time.
        starts.append(min(here) if here else (starts[-1] if starts else 0.0))
        at += len(said) + 1
    loud = [
        (begin, end)
        for (name, begin), end in zip(
            speech.sounds, [*(begin for _, begin in speech.sounds[1:]), total_s], strict=True
        )
        if name != PAUSE
    ]
    pieces = []
    for (_, written), start in zip(phrase.pieces, starts, strict=True):
        stop = min((other for other in starts if other > start), default=total_s)
        ends = [min(end, stop) for begin, end in loud if begin < stop and end > start]
        pieces.append(Piece(written, start, max(ends, default=stop)))
    return speech, Segment(pieces[0].start_s, pieces[-1].end_s, pieces)


def record(source: Source, speakers: list[str], rng: random.Random) -> Recording:
    """A recording of any kind: mostly of one utterance, some of several, some cut off, some of nobody."""
    fate = rng.random()
    if fate < 0.06:
        count = int(rng.choice((WINDOW_S, rng.uniform(0.3, WINDOW_S))) * RATE)
        return Recording(nobody(count, rng), [], None, [], "nobody", "")
    most = 9 if fate < 0.12 else rng.randint(2, 3) if fate < 0.24 else 1
    voice = draw_voice(speakers, rng)
    noisy = rng.random() < 0.5
    while True:
        first = source.draw(rng)
        phrases = [first, *(source.draw(rng) for _ in range(most - 1))]
        made = compose(phrases, voice, rng, noisy=noisy, whole=most < 9)
        if made is not None:
            return made


def compose(
    phrases: list[Phrase], voice: Voice, rng: random.Random, *, noisy: bool, whole: bool
) -> Recording | None:
    """Phrases one after another, with pauses, as far as the window goes. None where the first is too long.

    whole: what does not fit is left out; else the window's end cuts it off.
    """
    parts: list[Samples] = [np.zeros(int(drawn(rng, 0.3, 2.0) * RATE), np.float32)]
    segments: list[Segment] = []
    sounds: list[tuple[str, float]] = [(PAUSE, 0.0)]
    cut_s: float | None = None
    for phrase in phrases:
        at_s = sum(map(len, parts)) / RATE
        speech, segment = spoken(phrase, voice)
        if at_s + len(speech.samples) / RATE > WINDOW_S:
            if not segments:
                return None
            if whole:
                break
            cut_s = at_s + segment.start_s
        else:
            segments.append(segment.later(at_s))
        parts.append(speech.samples)
        sounds += [(name, begin + at_s) for name, begin in speech.sounds]
        sounds.append((PAUSE, at_s + len(speech.samples) / RATE))
        if cut_s is not None:
            break
        parts.append(np.zeros(int(rng.uniform(0.2, 1.0) * RATE), np.float32))
    parts[-1] = parts[-1] if cut_s is not None else parts[-1][: int(drawn(rng, 0.3, 1.0) * RATE)]
    samples = recorded(np.concatenate(parts)[: WINDOW_S * RATE], rng, noisy)
    if cut_s is not None and cut_s >= WINDOW_S - 0.1:
        cut_s = None
    return Recording(samples, segments, cut_s, sounds, phrases[0].kind, voice.name)


@cache
def _source(files: tuple[Path, ...], part: str) -> Source:
    return Source(list(files), part)


def make_file(files: tuple[Path, ...], out: Path, part: str, number: int, count: int, seed: int) -> None:
    """Writes one file of a part's clips."""
    rng = random.Random(f"{seed} {part} {number}")
    extractor, source = feature_extractor(), _source(files, part)
    speakers = voices(held_out=part == "dev")
    clips: list[Clip] = [clip_of(record(source, speakers, rng), extractor) for _ in range(count)]
    save_clips(clips, out / f"{part}-{number:05}")


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of English sentences")
    parser.add_argument("--out", type=Path, required=True, help="files of features")
    parser.add_argument("--clips", type=int, default=100_000, help="for training")
    parser.add_argument("--clips-a-file", type=int, default=2000)
    parser.add_argument("--dev-clips", type=int, default=64, help="that the training is watched with")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [("dev", 0, args.dev_clips)]
    wanted += [("train", number, args.clips_a_file) for number in range(-(-args.clips // args.clips_a_file))]
    missing = [one for one in wanted if not (args.out / f"{one[0]}-{one[1]:05}.json").exists()]
    with ProcessPoolExecutor(args.processes, initializer=_one_thread) as pool:
        futures = [pool.submit(make_file, tuple(args.data), args.out, *one, args.seed) for one in missing]
        for future in tqdm(as_completed(futures), total=len(futures), unit="file"):
            future.result()


if __name__ == "__main__":
    main()
