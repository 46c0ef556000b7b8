"""Token ids → the text of a tokenizer's decode, piece by piece: the ways of reading it, the fastest first.

No piece is ever taken back. Work per token does not grow with the length of the sequence.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from tandem.workers.requests.answers.detokenizer.vocabulary import Vocabulary

_WINDOW: Final = 8  # tokens
_REPLACEMENT: Final = "\ufffd"  # what is not (yet) a character


class Reader(Protocol):
    def __init__(self, vocabulary: Vocabulary, context: Sequence[int]) -> None:
        """`context` is what the text goes on from; its own text does not come out."""

    def push(self, ids: Sequence[int]) -> str:
        """Adds ids, at least one; returns the text that has become final, "" if none has."""

    def flush(self) -> str:
        """The rest, once no more ids will come."""


class ByteReader:
    """For tokenizers whose tokens are bytes throughout: byte-level BPE, ByT5."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int]) -> None:
        assert vocabulary.token_bytes is not None
        self._bytes = vocabulary.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(vocabulary.malformed)
        self._broken = ""  # what the context ends with, where that is within a character
        if context:
            self.push(context[-4:])
            pending, _ = self._decoder.getstate()
            self._broken = pending.decode(errors=vocabulary.malformed)

    def push(self, ids: Sequence[int]) -> str:
        text = self._decoder.decode(b"".join(map(self._bytes, ids)))
        return self._new(text) if self._broken else text

    def flush(self) -> str:
        return self._new(self._decoder.decode(b"", final=True))

    def _new(self, text: str) -> str:
        """Text without the context's own end."""
        if text:
            text, self._broken = text.removeprefix(self._broken), ""
        return text


class WindowReader:
    """For tokenizers whose decode has local structure: what tokens add to a text depends on their neighbours.

    The text of the last few tokens is read again with each new one. Decoded alone, a SentencePiece token
    would lose its space, and a WordPiece gain one. What the next token may still change is held back: the
    mark of a piece that another follows (`x@@`), a part of a character, a run of byte tokens, of which
    `tokenizers` replaces all, whole characters too, if any part of it is malformed.
    """

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._ids = list(context)  # the window
        self._read = len(self._ids)  # those of them that `_text` is the text of
        self._text = self._given = vocabulary.decode(self._ids) if context else ""
        self._done = self._settled(0)  # characters of `_text` that are out, or the context's
        self._most = _WINDOW  # tokens at which a shorter window is tried

    def push(self, ids: Sequence[int]) -> str:
        while self._most <= self._read == len(self._ids):
            self._shorten()
        self._ids += ids
        count = len(self._ids)
        # A window that cannot be shortened, as of endless spaces, is read less often the longer it is.
        if count - self._read < self._read // 16 or ids[-1] in self._vocabulary.byte_ids:
            return ""
        self._text, self._read = self._vocabulary.decode(self._ids), count
        return self._take(self._settled(self._done))

    def flush(self) -> str:
        if self._read < len(self._ids):
            self._text, self._read = self._vocabulary.decode(self._ids), len(self._ids)
        # A context's text is not repeated, even its end, where nothing followed that could change it.
        return self._take(len(self._text)) if self._text != self._given else ""

    def _take(self, end: int) -> str:
        piece = self._text[self._done : end]
        if piece:
            self._done, self._given = end, ""
        return piece

    def _settled(self, done: int) -> int:
        """Characters of the text that no further token changes."""
        end = len(self._text)
        if self._ids:
            end -= self._vocabulary.unsettled(self._ids[-1])
        while end > done and self._text[end - 1] == _REPLACEMENT:
            end -= 1
        return max(end, done)

    def _shorten(self) -> None:
        """Forgets half of the window, where the other half alone has the text that it has there."""
        ids = self._ids[len(self._ids) // 2 :]
        text, held = self._vocabulary.decode(ids), len(self._text) - self._done
        if self._same_end(text, ids, held):
            self._ids, self._text, self._read = ids, text, len(ids)
            self._done, self._most = len(text) - held, _WINDOW
        else:
            self._most = 2 * len(self._ids)

    def _same_end(self, text: str, ids: Sequence[int], held: int) -> bool:
        """Whether the window's text ends like that of its last ids, `text`. Their own first half may differ,
        which lacks the neighbours to its left; but something must be seen of the others that the next token
        does not change. Spaces at the beginning of a text are not seen, nor is a mark that is taken away."""
        sure = len(text) - self._vocabulary.unsettled(ids[-1])
        if self._text.endswith(text) and len(text) >= held and not text[:sure].isspace():
            return sure > 0
        others = len(text) - len(self._vocabulary.decode(ids[: len(ids) // 2]))
        return 0 < len(text) - others < sure and _common_end(text, self._text) >= max(others, held)


class WholeReader:
    """For all other tokenizers: the text comes at its end."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._ids = list(context)
        self._given = vocabulary.decode(self._ids) if context else ""

    def push(self, ids: Sequence[int]) -> str:
        self._ids += ids
        return ""

    def flush(self) -> str:
        text = self._vocabulary.decode(self._ids)
        return text[common_length(self._given, text) :]


def reads(kind: type[Reader], vocabulary: Vocabulary, samples: Iterable[Sequence[int]]) -> bool:
    """Whether the pieces of these ids, one token at a time, make up their text."""
    for ids in samples:
        reader = kind(vocabulary, ())
        pieces = [reader.push([token_id]) for token_id in ids]
        if "".join(pieces) + reader.flush() != vocabulary.decode(ids):
            return False
    return True


def common_length(one: str, other: str) -> int:
    """Characters of the longest text that both begin with."""
    if other.startswith(one):
        return len(one)
    return next(at for at in range(len(one)) if one[at] != other[at : at + 1])


def _common_end(one: str, other: str) -> int:
    """Characters of the longest text that both end with."""
    return len(one) if other.endswith(one) else common_length(one[::-1], other[::-1])
