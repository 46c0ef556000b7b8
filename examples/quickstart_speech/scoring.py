"""Word error rate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_WORD: Final = re.compile(r"\$?\d+(?:[.:]\d+)*(?:st|nd|rd|th|%)?|[a-z]+(?:'[a-z]+)*")


def words(text: str) -> list[str]:
    """In lower case and without punctuation, but what is written in digits: 7:45, $20, 3.5."""
    return _WORD.findall(text.lower().replace("’", "'"))


@dataclass
class WordErrors:
    """Substituted, inserted and missing words, of so many."""

    errors: int = 0
    words: int = 0
    clips: int = 0

    def add(self, said: str, heard: str) -> None:
        expected = words(said)
        self.errors += distance(expected, words(heard))
        self.words += len(expected)
        self.clips += 1

    @property
    def rate(self) -> float:
        """In percent."""
        return 100 * self.errors / max(1, self.words)


def distance(first: list[str], second: list[str]) -> int:
    """Levenshtein's."""
    row = list(range(len(second) + 1))
    for number, one in enumerate(first, 1):
        above, row[0] = row[0], number
        for at, other in enumerate(second, 1):
            above, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, above + (one != other))
    return row[-1]
