"""The corrections model's data: English sentences, several to an input, and the slips put into them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

PREFIX: Final = "correct: "
ARTICLES: Final = frozenset({"a", "an", "the"})
MOST_SENTENCES: Final = 12  # of an input: some 100 tokens
SLIPS: Final = 0.12  # share of words with a slip; of articles three times as many are missing


class Correction(NamedTuple):
    """A text with slips, and the text without them."""

    noised: str
    clean: str

    @property
    def source(self) -> str:
        return PREFIX + self.noised


def read_english(files: Iterable[Path]) -> list[str]:
    """The distinct first fields of tab-separated files, sorted."""
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return sorted({line.split("\t")[0] for line in lines if line})


def corrections(sentences: Sequence[str], count: int, rng: random.Random) -> list[Correction]:
    """Texts of one to MOST_SENTENCES sentences each, taken at random."""
    found = []
    for _ in range(count):
        clean = " ".join(rng.choices(sentences, k=rng.randint(1, MOST_SENTENCES)))
        found.append(Correction(noised(clean, rng), clean))
    return found


def noised(text: str, rng: random.Random) -> str:
    words: list[str] = []
    for word in text.split():
        chance = rng.random()
        if word.lower() in ARTICLES and chance < 3 * SLIPS:
            continue
        words += _slip(word, rng) if chance < SLIPS else [word]
    return " ".join(words)


def _slip(word: str, rng: random.Random) -> list[str]:
    """The word with one slip: doubled, in the wrong case, or with a letter dropped, doubled or swapped."""
    kind = rng.choice(("double word", "case", "drop", "double", "swap"))
    letters = [at for at in range(1, len(word)) if word[at - 1 : at + 1].isalpha()]  # each after another one
    if kind == "double word":
        return [word, word]
    if kind == "case" or not letters:
        return [word[0].swapcase() + word[1:] if rng.random() < 0.8 else word.upper()]
    at = rng.choice(letters)
    middle = {"drop": "", "double": 2 * word[at], "swap": word[at] + word[at - 1]}[kind]
    return [word[: at - (kind == "swap")] + middle + word[at + 1 :]]
