"""Character error rate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CharacterErrors:
    """Substituted, inserted and missing characters, of so many."""

    errors: int = 0
    characters: int = 0
    exact: int = 0  # lines without an error
    lines: int = 0

    def add(self, written: str, read: str) -> None:
        """Case and punctuation count; how many spaces stand between two words does not."""
        expected, found = " ".join(written.split()), " ".join(read.split())
        self.errors += distance(expected, found)
        self.characters += len(expected)
        self.exact += expected == found
        self.lines += 1

    @property
    def rate(self) -> float:
        """In percent."""
        return 100 * self.errors / max(1, self.characters)


def distance(first: str, second: str) -> int:
    """Levenshtein's."""
    row = list(range(len(second) + 1))
    for number, one in enumerate(first, 1):
        above, row[0] = row[0], number
        for at, other in enumerate(second, 1):
            above, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, above + (one != other))
    return row[-1]
