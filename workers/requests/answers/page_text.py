"""Nougat's answers: a page's text, tidied and made Markdown."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import module_from_spec
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tandem.workers.requests.answers.document_fields import processor_classes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# What transformers takes a time in the square of: no page has more.
_MOST_FOOTNOTES: Final = 50  # in a line
_MOST_BLANK: Final = 1000  # lines without words, one after another
_BLANK: Final = re.compile(r"[\d_*\s]*")


class PageText:
    """transformers' `NougatTokenizer.post_process_generation(…, fix_markdown=True)`, as it is where nltk's
    list of English words has not been downloaded: the text then ends with a space wherever that list would be
    asked. It may be called from several threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._tidy: Any = _tidier()

    @classmethod
    def read(cls, folder: Path, tokenizer: PreTrainedTokenizerBase) -> PageText | None:
        """None for a model in a folder that does not say that its answers are read so."""
        return cls(tokenizer) if "NougatProcessor" in processor_classes(folder) else None

    def __call__(self, ids: Sequence[int]) -> str | None:
        """The page of an answer, whose ids are given with what the decoder started from; None for one that
        is no page, but footnotes or blank lines without end."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        lines = text.split("\n")
        blank = max(
            len(list(run)) * wordless
            for wordless, run in groupby(lines, lambda line: _BLANK.fullmatch(line) is not None)
        )
        footnotes = max(line.count("[FOOTNOTE:") for line in lines)
        if footnotes > _MOST_FOOTNOTES or blank > _MOST_BLANK:
            logger.warning("an answer that is no page, but repeats itself without end, is not tidied")
            return None
        page: str = self._tidy.post_process_single(text, fix_markdown=True)
        return page


def _tidier() -> Any:
    """The methods of transformers' tokenizer, from a copy of its module that is this one's own: it has what
    the module asks two packages for that are not installed, and what takes it a time in the square of an
    answer that repeats itself."""
    from transformers.models.nougat import tokenization_nougat

    spec = tokenization_nougat.__spec__
    assert spec is not None
    assert spec.loader is not None
    own: Any = module_from_spec(spec)
    spec.loader.exec_module(own)
    own.ratio = ratio
    own.nltk = SimpleNamespace(corpus=SimpleNamespace(words=SimpleNamespace(words=_no_words)))
    find_next = own.find_next_punctuation
    own.truncate_repetitions = lambda text: truncated(text, find_next)
    return object.__new__(own.NougatTokenizer)  # what tidies reads nothing of a tokenizer


def _no_words() -> NoReturn:
    raise LookupError


def ratio(one: str, other: str) -> float:
    """`Levenshtein.ratio`: how much of two texts is their longest common subsequence, from 0 to 1 (Hyyrö,
    2004: a bit for each character of the first, the cleared ones are in the subsequence)."""
    total = len(one) + len(other)
    if not total:
        return 1.0
    at: defaultdict[str, int] = defaultdict(int)
    for number, character in enumerate(one):
        at[character] |= 1 << number
    every = (1 << len(one)) - 1
    left = every
    for character in other:
        matched = left & at[character] if character in at else 0
        left = ((left + matched) | (left - matched)) & every
    common = len(one) - left.bit_count()
    return 1.0 - (total - 2 * common) / total


def truncated(text: str, find_next: Any, shortest: int = 30) -> str:
    """transformers' `truncate_repetitions`: of a text whose end repeats itself, one of the repetitions.

    find_next: its `find_next_punctuation`.
    """
    lower = text.lower()
    size = len(lower)
    repeated = [
        length
        for length in range(shortest, size // 2)
        if lower[-1] == lower[-1 - length] and lower.endswith(lower[-length:], 0, size - length)
    ]
    if not repeated:
        return text
    tail = lower[-repeated[-1] :]
    kept = size
    while lower.endswith(tail, 0, kept):
        kept -= len(tail)
    repeating, backwards, end = lower[kept:], lower[::-1], kept
    while True:  # up to the end of a sentence that is repeated
        sentence_end, sentence_start = find_next(lower, end), find_next(backwards, end)
        if not sentence_end or not sentence_start:
            break
        end = sentence_end + 1
        if lower[sentence_start:sentence_end] in repeating:
            break
    return text[:end]
