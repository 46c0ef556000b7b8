"""Sentences whose words are marked in part: "I have <b>two</b> dogs." → "J'ai <b>deux</b> chiens."

A model translates plain text. A phrase is translated whole, and so is each marked piece by itself, to know
it again in the whole's translation: the mark goes to the words that are most like it, near to where it was.
A piece that must stay as it is (code, a name) has to be there itself; where it is not, or no words are like a
marked piece, every piece of the phrase is translated by itself, as LibreTranslate does.
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

Translate = Callable[[Sequence[str]], Awaitable[Sequence[str]]]  # as many texts as it is given

_SPACE: Final = re.compile(r"[ \t\r\n\f]+")
_ENDS: Final = ".!?。！？…"
# What a piece begins with that belongs to the words before it: "I am <b>happy</b>. And you?"
_HEAD: Final = re.compile(r"\s*[.!?…,;:)\]]+\s+|\s*")
# A word, or a character of the scripts whose words do not stand apart: Han, kana and others.
_WORD: Final = re.compile(r"[\u2e80-\uffff]|[^\W\u2e80-\uffff]+(?:['’-][^\W\u2e80-\uffff]+)*")
_MARK: Final = re.compile(r"\s?[^\w\s]+")
_NEAR: Final = 40  # words
_LONGER: Final = 4  # times as many words as its source has no translation but one that goes round in circles
_MOST_MARKS: Final = 64  # in one sentence
_LONGEST: Final = 10_000  # characters of a sentence
_MORE_OR_LESS: Final = 0.05  # the likeness that a word more or less than in the source costs
_ALIKE: Final = 0.4  # likeness from which on words are taken for a piece's: "auf" and "A" have a third
_EDGE: Final = r"[^\W\u2e80-\uffff]"  # a character next to which a word goes on


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
    spaced: bool = False  # white space counts, as it does in plain texts

    @classmethod
    def of(cls, text: str) -> Phrase:
        """A phrase of plain text."""
        return cls((Piece(text),), spaced=True)

    @property
    def whole(self) -> str:
        return self._asked("".join(piece.text for piece in self.pieces))

    def piece(self, number: int) -> str:
        """A piece as it is translated by itself, without the end of what is before it."""
        return self._asked(self.pieces[number].text[self.head(number) :])

    def head(self, number: int) -> int:
        """How many characters a piece begins with that are not translated with it."""
        piece = self.pieces[number]
        match = None if piece.kept or not number else _HEAD.match(piece.text)
        return match.end() if match else 0

    def _asked(self, text: str) -> str:
        return text.strip() if self.spaced else one_line(text)

    @property
    def numbers(self) -> list[int]:
        """The pieces that have something to translate, by their numbers."""
        return [i for i, piece in enumerate(self.pieces) if not piece.blank and not piece.kept]

    @property
    def marked(self) -> list[int]:
        """The pieces whose places in the translation are looked for."""
        return [i for i, piece in enumerate(self.pieces) if (piece.marked or piece.kept) and not piece.blank]

    @property
    def joined(self) -> bool:
        """Whether the pieces are translated as one sentence: there are several, and neither more marks nor
        more text than one has."""
        several = sum(not piece.blank for piece in self.pieces) > 1
        fits = len(self.marked) <= _MOST_MARKS and sum(len(piece.text) for piece in self.pieces) <= _LONGEST
        return several and fits and bool(self.numbers)


class _Word(NamedTuple):
    """A word of a translation, in lower case, and where it is."""

    text: str
    start: int
    end: int


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
    placing = {number: phrase for number, phrase in enumerate(phrases) if phrase.joined}
    done = await asyncio.to_thread(lambda: {i: _placed(phrase, texts) for i, phrase in placing.items()})
    apart = [phrase for number, phrase in enumerate(phrases) if done.get(number) is None]
    await look_up([phrase.piece(i) for phrase in apart for i in phrase.numbers])
    return [done.get(number) or _apart(phrase, texts) for number, phrase in enumerate(phrases)]


def _first_texts(phrase: Phrase) -> list[str]:
    """What is translated before it is known whether the marks find their places."""
    if not phrase.joined:
        return [phrase.piece(i) for i in phrase.numbers]
    return [phrase.whole, *(phrase.piece(i) for i in phrase.marked if not phrase.pieces[i].kept)]


def _apart(phrase: Phrase, texts: Mapping[str, str]) -> list[str]:
    """Each piece's own translation, in the piece's white space; the parts of a sentence end as they do."""
    made = [piece.text for piece in phrase.pieces]
    for i in phrase.numbers:
        own = _alone(phrase, i, texts) if len(phrase.numbers) > 1 else texts[phrase.piece(i)].strip()
        made[i] = _around(made[i], own, phrase.head(i))
    return made


def _around(piece: str, text: str, head: int) -> str:
    start = max(head, len(piece) - len(piece.lstrip()))
    return piece[:start] + text + piece[max(start, len(piece.rstrip())) :]


def _placed(phrase: Phrase, texts: Mapping[str, str]) -> list[str] | None:
    """The whole's translation in pieces; None where a marked piece has no place in it, or a part of it is
    next to no piece but such as are kept."""
    pieces, whole = phrase.pieces, texts[phrase.whole].strip()
    places = _places(phrase, whole, texts)
    if places is None:
        return None
    made = [piece.text if piece.kept else "" for piece in pieces]
    at, after = 0, -1  # in the translation, and the marked piece that ends there
    for number in (*phrase.marked, len(pieces)):
        start, end = places.get(number, (len(whole), len(whole)))
        gap = whole[at:start]
        if not _give(made, pieces, range(after + 1, number), gap) and gap.strip():
            return None
        if number in places and not pieces[number].kept:
            made[number] += whole[start:end]
        at, after = end, number
    first, last = pieces[0], pieces[-1]
    if not first.kept:
        made[0] = first.text[: len(first.text) - len(first.text.lstrip())] + made[0]
    if not last.kept:
        made[-1] += last.text[len(last.text.rstrip()) :]
    return made


def _give(made: list[str], pieces: Sequence[Piece], between: range, gap: str) -> bool:
    """Gives a part of the translation to the unmarked pieces in its place, else to a blank marked one, to the
    marked one before it, or to that after it. False where there is none but such as are kept."""
    free = [i for i in between if not pieces[i].kept]
    unmarked = [i for i in free if not pieces[i].marked]
    if several := [i for i in unmarked if not pieces[i].blank]:
        for i, part in zip(several, _spread(gap, [len(pieces[i].text) for i in several]), strict=True):
            made[i] = part
        return True
    around = [i for i in (between.start - 1, between.stop) if 0 <= i < len(pieces) and not pieces[i].kept]
    for i in (*unmarked, *free, *around):
        made[i] += gap
        return True
    return False


def _spread(text: str, sizes: Sequence[int]) -> list[str]:
    """A text in as many parts as there are sizes, cut at the spaces that are nearest to where these say."""
    spaces = [0, *(match.start() for match in re.finditer(r"\s+", text)), len(text)]
    cuts = [0]
    for target in (len(text) * size / sum(sizes) for size in accumulate(sizes[:-1])):
        at = bisect(spaces, target)
        cuts.append(max(cuts[-1], min(spaces[at - 1 : at + 1], key=lambda space: abs(space - target))))
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]


def _places(phrase: Phrase, whole: str, texts: Mapping[str, str]) -> dict[int, tuple[int, int]] | None:
    """Where the marked pieces are in the translation, in their order; None where one is nowhere.

    The pieces that are surest of their place take it first; the others are between them.
    """
    words = [_Word(match.group().casefold(), *match.span()) for match in _WORD.finditer(whole)]
    ends = list(accumulate(len(piece.text) for piece in phrase.pieces))
    found: dict[int, list[tuple[float, int, int]]] = {}
    for number in phrase.marked:
        piece = phrase.pieces[number]
        expected = (ends[number] - len(piece.text) / 2) / ends[-1]
        if piece.kept:
            candidates = list(_same(phrase.piece(number), whole))
        else:
            candidates = list(_like(piece.text, _alone(phrase, number, texts), words, expected))
        found[number] = sorted(
            (likeness - abs((start + end) / 2 / len(whole) - expected), start, end)
            for likeness, start, end in candidates
            if likeness >= _ALIKE
        )
    places: dict[int, tuple[int, int]] = {}
    for number in sorted(found, key=lambda i: -found[i][-1][0] if found[i] else 0):
        low = max((places[i][1] for i in places if i < number), default=0)
        high = min((places[i][0] for i in places if i > number), default=len(whole))
        fitting = [(start, end) for _, start, end in found[number] if low <= start and end <= high]
        if not fitting:
            return None
        places[number] = _with_end(phrase.pieces[number], *fitting[-1], whole[:high])
    return places


def _alone(phrase: Phrase, number: int, texts: Mapping[str, str]) -> str:
    """A marked piece's translation by itself, without an end that only a sentence has."""
    asked = phrase.piece(number)
    text = texts[asked].strip()
    return text if asked[-1:] in _ENDS else text.rstrip(_ENDS).rstrip() or text


def _same(kept: str, whole: str) -> Iterator[tuple[float, int, int]]:
    """Where a kept text is, and is no part of a word."""
    before = rf"(?<!{_EDGE})" if re.match(_EDGE, kept) else ""
    after = rf"(?!{_EDGE})" if re.match(_EDGE, kept[-1]) else ""
    for match in re.finditer(before + re.escape(kept) + after, whole):
        yield 1.0, *match.span()


def _like(
    source: str, alone: str, words: Sequence[_Word], expected: float
) -> Iterator[tuple[float, int, int]]:
    """The runs of about as many words as a piece has, or as its translation alone, and how like them they
    are, up to 1; those near to where it is expected. Names are like their sources.

    Likeness is the mean share of the letters that words in the same place begin with together.
    """
    own = _WORD.findall(source.casefold())
    size = len(own)
    wanted = [_WORD.findall(alone.casefold())[: _LONGER * size + _NEAR], own]
    middle = round(expected * len(words))
    counts = {max(1, len(one) + more) for one in wanted for more in (-1, 0, 1)}
    for first in range(max(0, middle - _NEAR), min(len(words), middle + _NEAR)):
        run = words[first : first + max(counts)]
        shares = [[0.0, *accumulate(_shares(one, run))] for one in wanted]
        for count in counts:
            if count <= len(run):
                means = (
                    total[min(count, len(total) - 1)] / max(len(one), count)
                    for one, total in zip(wanted, shares, strict=True)
                )
                likeness = max(means) - _MORE_OR_LESS * abs(count - size)
                yield likeness, run[0].start, run[count - 1].end


def _shares(wanted: Sequence[str], there: Sequence[_Word]) -> Iterator[float]:
    """For each two words how much of the longer one both begin with."""
    for one, word in zip(wanted, there, strict=False):
        same = 0
        for left, right in zip(one, word.text, strict=False):
            if left != right:
                break
            same += 1
        yield same / max(len(one), len(word.text))


def _with_end(piece: Piece, start: int, end: int, whole: str) -> tuple[int, int]:
    """The place with the punctuation after it, where the piece has some."""
    if not piece.kept and not piece.text.strip()[-1:].isalnum() and (mark := _MARK.match(whole, end)):
        end = mark.end()
    return start, end
