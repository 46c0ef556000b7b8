"""The text of a recording's segments, while they come."""

from __future__ import annotations

from collections.abc import Sequence

from tandem.workers.requests.answers.detokenizer import Detokenizer, Vocabulary


class Said:
    """Ids in, times among them; text out, which only grows."""

    def __init__(self, vocabulary: Vocabulary, text_end: int) -> None:
        """text_end: text has ids below."""
        self._detokenizer, self._text_end = Detokenizer(vocabulary), text_end
        self._said = ""

    @property
    def text(self) -> str:
        """Without white space around it."""
        return self._said.strip()

    def push(self, ids: Sequence[int]) -> None:
        self._said += self._detokenizer.push([token for token in ids if token < self._text_end])

    def flush(self) -> None:
        """Nothing follows."""
        self._said += self._detokenizer.flush()


def text_of(ids: Sequence[int], text_end: int, vocabulary: Vocabulary) -> str:
    """The text of ids, times among them. text_end: text has ids below."""
    detokenizer = Detokenizer(vocabulary)
    return detokenizer.push([token for token in ids if token < text_end]) + detokenizer.flush()
