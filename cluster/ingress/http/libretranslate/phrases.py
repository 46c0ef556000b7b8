"""Sentences whose words are marked in part: "I have <b>two</b> dogs." → "J'ai <b>deux</b> chiens."

A model translates plain text. The whole phrase is translated, and so is each marked piece by itself; where
the pieces' translations are found in the whole's, the marks go there. Else each piece keeps its own
translation, which loses the context and no mark. (Argos Translate describes the same; LibreTranslate
translates pieces.)
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Translate = Callable[[Sequence[str]], Awaitable[Sequence[str]]]  # as many texts as it is given

_SPACE: Final = re.compile(r"[ \t\r\n\f]+")
_ENDS: Final = ".!?。！？…"
_SPACED: Final = 0x2E80  # scripts whose words stand apart; from here on Han, kana and others


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    marked: bool = False
    kept: bool = False  # as it is, untranslated; it is marked as well

    @property
    def blank(self) -> bool:
        return not self.text.strip()


@dataclass(frozen=True, slots=True)
class Phrase:
    """Pieces of text that follow one another, with marks between them."""

    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, text: str) -> Phrase:
        """A phrase without marks."""
        return cls((Piece(text),))

    @property
    def whole(self) -> str:
        return one_line("".join(piece.text for piece in self.pieces))

    @property
    def numbers(self) -> list[int]:
        """The pieces that have something to translate, by their numbers."""
        return [i for i, piece in enumerate(self.pieces) if not piece.blank and not piece.kept]

    @property
    def single(self) -> bool:
        """Whether no more than one piece is to be looked at."""
        return sum(not piece.blank for piece in self.pieces) < 2

    @property
    def marked(self) -> list[int]:
        """The pieces whose places in the translation are looked for."""
        return [i for i, piece in enumerate(self.pieces) if (piece.marked or piece.kept) and not piece.blank]


def one_line(text: str) -> str:
    """A text with single spaces and none around it."""
    return _SPACE.sub(" ", text).strip(" ")


async def translate_phrases(phrases: Sequence[Phrase], translate: Translate) -> list[list[str]]:
    """The translations of each phrase's pieces: they stand for the pieces' texts, white space included."""
    texts: dict[str, str] = {}

    async def look_up(asked: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(asked) if text not in texts]
        texts.update(zip(new, await translate(new), strict=True))

    await look_up([text for phrase in phrases for text in _first_texts(phrase)])
    done = {number: _placed(phrase, texts) for number, phrase in enumerate(phrases) if not phrase.single}
    apart = [phrase for number, phrase in enumerate(phrases) if done.get(number) is None]
    await look_up([one_line(phrase.pieces[i].text) for phrase in apart for i in phrase.numbers])
    return [done.get(number) or _apart(phrase, texts) for number, phrase in enumerate(phrases)]


def _first_texts(phrase: Phrase) -> list[str]:
    """What is translated before it is known whether the marks find their places."""
    if phrase.single or not phrase.numbers:
        return [one_line(phrase.pieces[i].text) for i in phrase.numbers]
    return [phrase.whole, *(one_line(phrase.pieces[i].text) for i in phrase.marked if i in phrase.numbers)]


def _apart(phrase: Phrase, texts: Mapping[str, str]) -> list[str]:
    """Each piece's own translation, in the piece's white space."""
    made = [piece.text for piece in phrase.pieces]
    for i in phrase.numbers:
        made[i] = _around(made[i], texts[one_line(made[i])].strip())
    return made


def _around(piece: str, text: str) -> str:
    start = len(piece) - len(piece.lstrip())
    return piece[:start] + text + piece[len(piece.rstrip()) :]


def _placed(phrase: Phrase, texts: Mapping[str, str]) -> list[str] | None:
    """The whole's translation, cut where the marked pieces' are found in it, in their order; None where one
    is not found, or more than once, or where text is left over that no piece can take."""
    if not phrase.numbers:
        return None
    pieces = phrase.pieces
    whole = texts[phrase.whole].strip()
    made = [""] * len(pieces)
    at, after = 0, -1  # in the translation, and the marked piece that ends there
    for number in (*phrase.marked, len(pieces)):
        if number == len(pieces):
            start = end = len(whole)
        else:
            found = _find(_alone(pieces[number], texts), whole)
            if found is None or found[0] < at:
                return None
            start, end = found
            made[number] = pieces[number].text if pieces[number].kept else whole[start:end]
        if (gap := whole[at:start]) and not _fill(made, pieces, range(after + 1, number), gap):
            return None
        at, after = end, number
    first, last = pieces[0].text, pieces[-1].text
    made[0] = first[: len(first) - len(first.lstrip())] + made[0]
    made[-1] += last[len(last.rstrip()) :]
    return made


def _fill(made: list[str], pieces: Sequence[Piece], between: range, gap: str) -> bool:
    """Gives a part of the translation to one of the unmarked pieces in its place."""
    there = [i for i in between if not pieces[i].marked and not pieces[i].kept]
    if not there:
        if gap.strip() or not made or between.start == 0:
            return False
        made[between.start - 1] += gap
        return True
    made[next((i for i in there if not pieces[i].blank), there[0])] = gap
    return True


def _alone(piece: Piece, texts: Mapping[str, str]) -> str:
    """A marked piece's translation by itself, without an end that a sentence would have."""
    source = piece.text.strip()
    if piece.kept:
        return source
    text = texts[one_line(piece.text)].strip()
    return text if source[-1:] in _ENDS else text.rstrip(_ENDS)


def _find(text: str, whole: str) -> tuple[int, int] | None:
    """The one place of a text in another, as whole words where words stand apart, in any case."""
    if not text:
        return None
    before, after = (r"(?<!\w)" if _of_word(text[0]) else "", r"(?!\w)" if _of_word(text[-1]) else "")
    found = [match.span() for match in re.finditer(before + re.escape(text) + after, whole, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def _of_word(character: str) -> bool:
    return character.isalnum() and ord(character) < _SPACED
