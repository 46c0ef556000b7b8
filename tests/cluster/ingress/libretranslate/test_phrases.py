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
    "我有两只狗": "I have two dogs", "两只": "two", "have": "j'ai", "read": "lisez",
    "I am happy. And you?": "Je suis content. Et toi ?", "I am": "Je suis.", "happy": "Entrez !",
    "And you?": "Et toi ?", ".": ".",
    "I like Paris very much": "Ich mag sehr", "Paris": "Paris", "I like": "Ich mag", "very much": "sehr",
    "Click A or B": "Klicke auf B oder A", "Click": "Klicke", "or": "oder", "A": "A", "B": "B",
    "Use in now.": "Utilisez maintenant.", "Use": "Utilisez",
    "Take ab now": "Nimm a und b jetzt", "Take": "Nimm", "now": "jetzt",
    "a is good": "Das a ist gut", "is good": "ist gut",
    "Use a b": "Nimm a und b", "使用in模式": "the in mode", "f(x) now.": "f(x) jetzt.", "f": "f",
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
    # Where no words are alike, every piece is translated by itself; so are marks that change their places.
    (["", "*Note*", ": read ", "*this*", "."], ["", "Note", ": lisez ", "ceci", "."]),
    (["I like ", "*Paris*", " very much"], ["Ich mag ", "Paris", " sehr"]),
    (["Click ", "*A*", " or ", "*B*"], ["Klicke ", "A", " oder ", "B"]),
    # The end of a sentence stays where it is, and none is made within one.
    (["I am ", "*happy*", ". And you?"], ["Je suis ", "Entrez", ". Et toi ?"]),
    # The same words twice: the nearer ones. What is next to one another stays so.
    (["", "*I*", " know ", "*I*", " know."], ["", "Je", " sais que ", "je", " sais."]),
    (["I ", "*have*", "* two*", " dogs."], ["", "J'ai ", "deux", " chiens."]),
    # Words that are kept are there, or else every piece is translated by itself.
    (["Run ", Piece("pip install", kept=True), " now."], ["Lancez ", "pip install", " maintenant."]),
    (["Run ", Piece("make", kept=True), " now."], ["Lancez ", "make", " Maintenant."]),
    (["Use ", Piece("in", kept=True), " now."], ["Utilisez ", "in", " Maintenant."]),
    (["f", Piece("(x)", kept=True), " now."], ["f", "(x)", " jetzt."]),
    (["使用", Piece("in", kept=True), "模式"], ["the ", "in", " mode"]),
    # What is next to kept words goes to another piece, and to none of them.
    (["*Take *", Piece("a", kept=True), "**", Piece("b", kept=True), "* now*"],
     ["Nimm ", "a", " und ", "b", " jetzt"]),
    (["**", Piece("a", kept=True), "* is good*"], ["Das ", "a", " ist gut"]),
    (["*Use *", Piece("a ", kept=True), Piece("b", kept=True)], ["Utilisez ", "a ", "b"]),
    # A comment or an image stands between texts without a mark.
    (["I have two", " dogs."], ["J'ai deux", " chiens."]),
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
    assert found == ["deux ", "<and> "] * 2000
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


@given(st.lists(PIECES, min_size=1, max_size=6), st.text(alphabet="ab. \n<é两", max_size=9))
def test_what_is_kept_stays_whatever_the_translation(pieces: list[Piece], said: str) -> None:
    async def other(texts: Sequence[str]) -> list[str]:
        return [said + text[::-1] for text in texts]

    [made] = asyncio.run(translate_phrases([Phrase(tuple(pieces))], other))
    assert [text for text, piece in zip(made, pieces, strict=True) if piece.kept] == [
        piece.text for piece in pieces if piece.kept
    ]


def test_plain_texts_keep_their_white_space() -> None:
    async def same(texts: Sequence[str]) -> list[str]:
        return list(texts)

    for text in ("name\tvalue", "  foo  bar\n", "\xa0a \x0b"):
        assert asyncio.run(translate_phrases([Phrase.of(text)], same)) == [[text]]
