"""What a tokenizer's decode does to the text of its tokens, on a text that comes piece by piece."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol


class Edit(Protocol):
    def push(self, text: str) -> str:
        """Adds text; returns what has become final."""

    def flush(self) -> str:
        """The rest, once no more text will come."""


class CleanUp:
    """`PreTrainedTokenizerBase.clean_up_tokenization`: lets text out at cuts that none of its replacements
    (" ." → ".", " ' " → "'", " n't" → "n't", …; at most four characters) can span.
    """

    def __init__(self, clean_up: Callable[[str], str]) -> None:
        self._clean_up, self._held = clean_up, ""

    def push(self, text: str) -> str:
        seen, self._held = len(self._held), self._held + text
        for cut in range(len(self._held), max(seen - 1, 0), -1):
            if self._safe(cut):
                ready, self._held = self._held[:cut], self._held[cut:]
                return self._clean_up(ready)
        return ""

    def flush(self) -> str:
        ready, self._held = self._held, ""
        return self._clean_up(ready)

    def _safe(self, cut: int) -> bool:
        before = self._held[max(cut - 4, 0) : cut]
        if self._held[cut : cut + 1] == " ":  # replacements begin with a space; " ' " also ends with one
            return not before.endswith((" ", " '", " n"))
        return len(before) == 4 and " " not in before and "'" not in before


_TIMESTAMP: Final = re.compile(r"<\|\d+\.\d+\|>")
_BEGINNING: Final = re.compile(r"<(\|(\d+(\.(\d+\|?)?)?)?)?\Z")  # a timestamp's, at the end of a text


def is_timestamp(token: str) -> bool:
    return _TIMESTAMP.fullmatch(token) is not None


class WithoutTimestamps:
    """`WhisperTokenizer.decode`: leaves out whatever reads as a timestamp, a token of that name or not."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        # What surrounds a timestamp is no part of another.
        last = max((found.end() for found in _TIMESTAMP.finditer(text)), default=0)
        begun = _BEGINNING.search(text, last)
        end = len(text) if begun is None else begun.start()
        self._held = text[end:]
        return _TIMESTAMP.sub("", text[:end])

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text
