"""Tokens → words: by spaces, or by characters in languages that put none, with punctuation."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

# Languages that put no spaces between words, as transformers and openai-whisper have them: Chinese, Japanese,
# Thai, Lao, Burmese, Cantonese.
WITHOUT_SPACES: Final = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

TokenBytes = Callable[[int], bytes]  # an id's, special tokens as they are written


@dataclass(slots=True)
class Word:
    text: str  # with the space that sets it off
    at: list[int]  # its tokens' places
    start_s: float = 0.0  # in its window
    end_s: float = 0.0
    probability: float = 0.0


def split_words(ids: Sequence[int], language: str, text_end: int, token_bytes: TokenBytes) -> list[Word]:
    """`split_to_word_tokens` of openai-whisper, which transformers has, too.

    language: its code. text_end: ids from it on are no text; each is a word by itself.
    """
    parts = _characters(ids, token_bytes)
    if language in WITHOUT_SPACES:
        return parts
    words: list[Word] = []
    for part in parts:
        begins = ids[part.at[0]] >= text_end or part.text.startswith(" ")
        if begins or part.text.strip() in string.punctuation or not words:
            words.append(part)
        else:
            words[-1].text += part.text
            words[-1].at += part.at
    return words


def _characters(ids: Sequence[int], token_bytes: TokenBytes) -> list[Word]:
    """The shortest runs of tokens that are whole characters. A byte that is of none is one by itself, so that
    no token after it is lost."""
    pieces = [token_bytes(token) for token in ids]
    ends, size = set(), 0
    for char in b"".join(pieces).decode(errors="surrogateescape"):
        size += len(char.encode(errors="surrogateescape"))
        ends.add(size)
    parts, start, size = list[Word](), 0, 0
    for stop, piece in enumerate(pieces, 1):
        size += len(piece)
        if size in ends:
            text = b"".join(pieces[start:stop]).decode(errors="replace")
            parts.append(Word(text, list(range(start, stop))))
            start = stop
    return parts


def merge_punctuation(words: list[Word], before: str, after: str) -> None:
    """Puts punctuation to the words that it stands before or after; `merge_punctuations` of openai-whisper.
    Words that are merged into others stay, empty.

    before, after: punctuation; also any run of it that stands there as it is.
    """
    following = len(words) - 1
    for at in range(len(words) - 2, -1, -1):
        one, other = words[at], words[following]
        if one.text.startswith(" ") and one.text.strip() in before:
            other.text, other.at = one.text + other.text, one.at + other.at
            one.text, one.at = "", []
        else:
            following = at
    previous = 0
    for at in range(1, len(words)):
        one, other = words[previous], words[at]
        if not one.text.endswith(" ") and other.text in after:
            one.text, one.at = one.text + other.text, one.at + other.at
            other.text, other.at = "", []
        else:
            previous = at
