"""Marks find their places in a translation, or the pieces are translated by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.cluster.ingress.http.libretranslate.phrases import Phrase, Piece, translate_phrases

FRENCH = {
    "I have two dogs.": "J'ai deux chiens.", "two": "deux.", "I have": "J'ai", "dogs.": "chiens.",
    "Where is the station?": "Où est la gare ?", "the station": "La station !",
    "Run pip install now.": "Lancez pip install maintenant.", "Run": "Lancez", "now.": "Maintenant.",
    "Run make now.": "Lancez faire maintenant.",
    "Note: read this.": "Remarque : lisez ceci.", "Note:": "Remarque :", "Note": "Note", "this": "ceci",
    "I know I know.": "Je sais que je sais.", "I": "je",
    "I see the old house.": "Ich sehe das alte Haus.", "old house": "altes Haus",
    "我有两只狗": "I have two dogs", "两只": "two",
}  # fmt: skip


class Asked(list[str]):
    async def translate(self, texts: Sequence[str]) -> list[str]:
        self.extend(texts)
        return [FRENCH.get(text, f"<{text}>") for text in texts]


def translated(*pieces: str | Piece) -> tuple[list[str], list[str]]:
    """Pieces' translations, and what was asked; marked pieces stand in asterisks."""
    made = tuple(
        one if isinstance(one, Piece) else Piece(one.strip("*"), marked=one.startswith("*")) for one in pieces
    )
    asked = Asked()
    [found] = asyncio.run(translate_phrases([Phrase(made)], asked.translate))
    return found, asked


@pytest.mark.parametrize(("pieces", "expected"), [
    (["I have ", "*two*", " dogs."], ["J'ai ", "deux", " chiens."]),
    (["\n  I have ", "*two*", "  dogs.\n"], ["\n  J'ai ", "deux", " chiens.\n"]),
    # By itself a piece may be translated otherwise: the likest words near its place have the mark.
    (["Where is ", "*the station*", "?"], ["Où est ", "la gare", " ?"]),
    (["I see the ", "*old house*", "."], ["Ich sehe das ", "alte Haus", "."]),
    (["", "*Note:*", " read ", "*this*", "."], ["", "Remarque :", " lisez ", "ceci", "."]),
    (["", "*Note*", ": read ", "*this*", "."], ["", "Remarque", " : lisez ", "ceci", "."]),
    # The same words twice: the nearer ones. What is next to one another stays so.
    (["", "*I*", " know ", "*I*", " know."], ["", "Je", " sais que ", "je", " sais."]),
    (["I ", "*have*", "* two*", " dogs."], ["", "J'ai ", "deux", " chiens."]),
    # Words that are kept are there, or else every piece is translated by itself.
    (["Run ", Piece("pip install", kept=True), " now."], ["Lancez ", "pip install", " maintenant."]),
    (["Run ", Piece("make", kept=True), " now."], ["Lancez ", "make", " Maintenant."]),
    # A comment stands between texts without a mark.
    (["I have two", " dogs."], ["J'ai deux chiens.", ""]),
    (["我有", "*两只*", "狗"], ["I have ", "two", " dogs"]),
    (["I have"], ["J'ai"]), ([" ", "*I have*", " "], [" ", "J'ai", " "]),
])  # fmt: skip
def test_marks_go_where_their_words_do(pieces: list[str | Piece], expected: list[str]) -> None:
    assert translated(*pieces)[0] == expected


def test_what_is_kept_is_never_asked_and_nothing_twice() -> None:
    _, asked = translated("Run ", Piece("pip install", kept=True), " now.")
    assert asked == ["Run pip install now."]
    _, asked = translated("Run ", Piece("make", kept=True), " now.")
    assert asked == ["Run make now.", "Run", "now."]
    found, asked = translated(Piece("a = 1", kept=True))
    assert (found, asked) == (["a = 1"], [])


def test_more_marks_than_a_sentence_has_are_no_sentence() -> None:
    pieces: list[str | Piece] = [Piece("two ", marked=True), "and "]
    found, asked = translated(*pieces * 2000)
    assert found == ["deux. ", "<and> "] * 2000
    assert asked == ["two", "and"]


PIECES = st.builds(Piece, st.text(alphabet="ab. \n<é两", max_size=6), st.booleans(), st.booleans())


@given(st.lists(st.lists(PIECES, min_size=1, max_size=5), max_size=4))
def test_every_piece_has_a_translation_and_no_text_is_lost(phrases: list[list[Piece]]) -> None:
    async def same(texts: Sequence[str]) -> list[str]:
        assert all(text.strip() == text != "" for text in texts)
        return list(texts)

    made = asyncio.run(translate_phrases([Phrase(tuple(pieces)) for pieces in phrases], same))
    for pieces, texts in zip(phrases, made, strict=True):
        assert len(texts) == len(pieces)
        assert "".join("".join(texts).split()) == "".join("".join(piece.text for piece in pieces).split())
