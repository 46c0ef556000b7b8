"""Streamed text equals the tokenizer's own decode, whatever the tokenizer, the ids and how they come."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    BYTES,
    CORPUS,
    MAKERS,
    PARTLY,
    WHOLE,
    WINDOWS,
    Maker,
    bert_legacy,
    bertweet,
    blenderbot_small,
    byte_fallback,
    byte_level,
    byte_level_clean,
    ctrl,
    gemma,
    m2m_100,
    m2m_100_bytes,
    marian_bytes,
    phobert,
    plbart,
    prophetnet,
    unigram,
    unigram_clean,
    unigram_never,
    whisper,
    word_piece,
    word_piece_raw,
    words,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from tandem.workers.requests.answers.detokenizer import Detokenizer, Vocabulary
from tandem.workers.requests.answers.detokenizer.readers import (
    ByteReader,
    WholeReader,
    WindowReader,
    common_length,
)

CLEANED = [unigram_clean, byte_level_clean, word_piece, words, plbart, prophetnet, bert_legacy]


@cache
def made(maker: Maker) -> tuple[PreTrainedTokenizerBase, Vocabulary]:
    tokenizer = maker()
    return tokenizer, Vocabulary(tokenizer)


@cache
def readable(maker: Maker) -> list[int]:
    """The ids that the tokenizer's decode takes."""
    tokenizer, found = made(maker)[0], []
    for token_id in range(len(tokenizer)):
        try:
            tokenizer.decode([token_id])
        except (IndexError, KeyError, ValueError):
            continue
        found.append(token_id)
    return found


def stream(
    vocabulary: Vocabulary,
    ids: list[int],
    *,
    skip: bool = True,
    chunk: int = 1,
    context: list[int] | None = None,
) -> list[str]:
    detokenizer = Detokenizer(vocabulary, skip_special_tokens=skip, context_ids=context or [])
    pieces = [detokenizer.push(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
    return [*pieces, detokenizer.flush()]


@st.composite
def some_ids(draw: st.DrawFn, maker: Maker, most: int = 40) -> list[int]:
    """Random ones, among which a few come again and again, as spaces, marks and bytes may."""
    known = readable(maker)
    few = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4))
    bytes_ = sorted(made(maker)[1].byte_ids)
    kinds = [st.sampled_from(known), st.sampled_from(few), *([st.sampled_from(bytes_)] if bytes_ else [])]
    return draw(st.lists(st.one_of(kinds), max_size=most))


TEXT = st.text() | st.text(alphabet="aé日😀\u0301\u200d'., !?nmrevst", max_size=40) | st.sampled_from(CORPUS)
TYPED = [
    *BYTES,
    unigram,
    unigram_never,
    unigram_clean,
    byte_fallback,
    gemma,
    word_piece,
    word_piece_raw,
    m2m_100,
]


@pytest.mark.parametrize("maker", TYPED)
@settings(max_examples=30)
@given(text=TEXT, skip=st.booleans(), chunk=st.integers(1, 5))
def test_the_pieces_of_a_text_make_up_its_decode(maker: Maker, text: str, skip: bool, chunk: int) -> None:
    tokenizer, vocabulary = made(maker)
    ids = tokenizer.encode(text)
    full = tokenizer.decode(ids, skip_special_tokens=skip)
    pieces = stream(vocabulary, ids, skip=skip, chunk=chunk)
    assert "".join(pieces) == full
    if "\ufffd" not in full:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("maker", MAKERS)
@settings(max_examples=30)
@given(data=st.data())
def test_so_do_those_of_arbitrary_ids(maker: Maker, data: st.DataObject) -> None:
    tokenizer, vocabulary = made(maker)
    ids = data.draw(some_ids(maker))
    skip, chunk = data.draw(st.booleans()), data.draw(st.integers(1, 5))
    full = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(vocabulary, ids, skip=skip, chunk=chunk)) == full


@pytest.mark.parametrize("maker", [one for one in MAKERS if one not in CLEANED])
@settings(max_examples=12, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_a_text_goes_on_from_its_context(maker: Maker, data: st.DataObject) -> None:
    tokenizer, vocabulary = made(maker)
    context, ids = data.draw(some_ids(maker, 12)), data.draw(some_ids(maker))
    skip, chunk = data.draw(st.booleans()), data.draw(st.integers(1, 5))
    if skip:
        context = [i for i in context if i not in vocabulary.special_ids]
    before, full = (tokenizer.decode(some, skip_special_tokens=skip) for some in (context, [*context, *ids]))
    if vocabulary.reader(skip) is WindowReader and context:
        # The end of a context's text may become another one.
        assume(context[-1] not in vocabulary.byte_ids and not before.endswith("\ufffd"))
        if full != before:
            before = before[: len(before) - vocabulary.unsettled(context[-1])]
    text = "".join(stream(vocabulary, ids, skip=skip, chunk=chunk, context=context))
    assert text == full[common_length(before, full) :]


@pytest.mark.parametrize("maker", MAKERS)
def test_how_each_is_read(maker: Maker) -> None:
    vocabulary = made(maker)[1]
    kinds = vocabulary.reader(True), vocabulary.reader(False)
    kind = ByteReader if maker in BYTES else WholeReader if maker in WHOLE else WindowReader
    assert kinds == (kind, WholeReader if maker in PARTLY else kind)


@pytest.mark.parametrize("maker", [*BYTES, *WINDOWS])
@settings(max_examples=8)
@given(data=st.data())
def test_a_piece_comes_at_most_a_token_late(maker: Maker, data: st.DataObject) -> None:
    tokenizer, vocabulary = made(maker)
    detokenizer, text = Detokenizer(vocabulary), ""
    silent = vocabulary.byte_ids | vocabulary.special_ids
    ids = [i for i in data.draw(some_ids(maker, 24)) if i not in silent]
    full = tokenizer.decode(ids, skip_special_tokens=True)
    # Where spaces are cleaned up, or a timestamp may follow, some characters more are held.
    held = 8 if vocabulary.edits else 0
    for count, token_id in enumerate(ids):
        text += detokenizer.push([token_id])
        sure_text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        sure = len(sure_text[: common_length(sure_text, full)].rstrip("\ufffd"))
        if count and maker in WINDOWS:
            sure -= vocabulary.unsettled(ids[count - 1])
        assert len(text) >= sure - held


@pytest.mark.parametrize("maker", [unigram, byte_level, ByT5Tokenizer])
def test_a_piece_comes_as_soon_as_its_characters_are_whole(maker: Maker) -> None:
    tokenizer, vocabulary = made(maker)
    ids = tokenizer.encode("Où est le café", add_special_tokens=False)
    detokenizer = Detokenizer(vocabulary)
    text = ""
    for count, token_id in enumerate(ids, 1):
        text += detokenizer.push([token_id])
        assert text == tokenizer.decode(ids[:count]).rstrip("\ufffd")


def test_a_marked_piece_is_joined_to_the_next() -> None:
    """As published: its text was "y@@@@@ u@@" once."""
    tokenizer, vocabulary = made(blenderbot_small)
    ids = tokenizer.convert_tokens_to_ids(["ye@@", "z@@", "db", "uc"])
    assert stream(vocabulary, ids) == ["ye", "z", "db", " uc", ""]
    assert stream(vocabulary, ids[:2]) == ["ye", "z", "@@"]  # cut off, as by max_tokens
    assert stream(vocabulary, ids[2:], context=ids[:2]) == ["db", " uc", ""]
    assert stream(vocabulary, [], context=ids[:2]) == [""]


@pytest.mark.parametrize("skip", [True, False])
def test_timestamps_are_left_out(skip: bool) -> None:
    tokenizer, vocabulary = made(whisper)
    start, first, last = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|0.00|>", "<|0.52|>"])
    words = tokenizer.encode(" the hat <|1.5|> <|1.|> <|", add_special_tokens=False)
    ids = [start, first, *words, last, first, *words]
    text = "".join(stream(vocabulary, ids, skip=skip))
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)
    assert text.endswith(" the hat  <|1.|> <| the hat  <|1.|> <|")


def test_the_text_before_a_transcript_is_left_out() -> None:
    tokenizer, vocabulary = made(whisper)
    earlier, start = tokenizer.convert_tokens_to_ids(["<|startofprev|>", "<|startoftranscript|>"])
    some, other = tokenizer.encode("some", add_special_tokens=False), tokenizer.encode(" other")
    for ids in ([earlier, *some, start, *other], [earlier, *some], [*some, earlier, *other]):
        assert "".join(stream(vocabulary, ids)) == tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(stream(vocabulary, [*some, start, *other], context=[earlier])) == " other"


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    """Embedding tables are padded; a model may pick such a row."""
    for maker in (unigram, byte_level):
        tokenizer, vocabulary = made(maker)
        ids = [*tokenizer.encode("the", add_special_tokens=False), len(tokenizer) + 5]
        assert "".join(stream(vocabulary, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("maker", MAKERS)
@settings(max_examples=5)
@given(data=st.data())
def test_ids_that_no_decode_takes_have_no_text(maker: Maker, data: st.DataObject) -> None:
    tokenizer, vocabulary = made(maker)
    ids, beyond = data.draw(some_ids(maker, 12)), len(tokenizer) + data.draw(st.integers(0, 900))
    at, skip = data.draw(st.integers(0, len(ids))), data.draw(st.booleans())
    with_it = [*ids[:at], beyond, *ids[at:]]
    try:
        full = tokenizer.decode(with_it, skip_special_tokens=skip)
    except (IndexError, KeyError, ValueError, TypeError):
        full = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(vocabulary, with_it, skip=skip)) == full
    assert isinstance(vocabulary.token_text(beyond, after=beyond), str)
    assert "".join(stream(vocabulary, [], context=[beyond])) == ""


@pytest.mark.parametrize("maker", [blenderbot_small, ctrl, phobert, bertweet])
def test_a_run_of_marks_alone_is_remembered(maker: Maker) -> None:
    """A token that begins with a space, after more marks than a window has: they are taken away."""
    tokenizer = maker()
    tokenizer.add_tokens([" .", "@@ @@", "q@@"])
    vocabulary = Vocabulary(tokenizer)
    dot, *marks = tokenizer.convert_tokens_to_ids([" .", "@@", "@@ @@", "q@@"])
    words = readable(maker)[5:8]
    for mark in (mark for mark in marks if mark is not None):
        for count in range(1, 24):
            for last in (dot, *words):
                ids = [words[0], *[mark] * count, last, dot, words[1]]
                assert "".join(stream(vocabulary, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


class Counting:
    """Counts the ids that are decoded."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.decode, self.total, self.longest = vocabulary.decode, 0, 0

    def __call__(self, ids: list[int]) -> str:
        self.total, self.longest = self.total + len(ids), max(self.longest, len(ids))
        return self.decode(ids)


@pytest.mark.parametrize("maker", [*BYTES, *WINDOWS])
def test_work_per_token_is_bounded(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    _, vocabulary = made(maker)
    known = [i for i in readable(maker) if i not in vocabulary.byte_ids]
    ids = (known * 20)[:400]
    stream(vocabulary, ids)  # some work is done once for each token of the vocabulary
    counting = Counting(vocabulary)
    monkeypatch.setattr(vocabulary, "decode", counting)
    stream(vocabulary, ids)
    assert counting.total <= 16 * len(ids)


@pytest.mark.parametrize("maker", [m2m_100, gemma, unigram, byte_fallback])
def test_so_it_is_where_nothing_is_seen_for_long(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces without end, which some decodes strip from either end of a text."""
    tokenizer, vocabulary = made(maker)
    space, word = tokenizer.convert_tokens_to_ids(["▁", "a"])
    ids = [space] * 1500 + [word] * 50 + [space] * 1500 + [word]
    counting = Counting(vocabulary)
    monkeypatch.setattr(vocabulary, "decode", counting)
    detokenizer = Detokenizer(vocabulary)
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    text = "".join(pieces) + detokenizer.flush()
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    assert counting.total <= 40 * len(ids)


@pytest.mark.parametrize("maker", [unigram, m2m_100, blenderbot_small])
def test_an_answer_that_comes_whole_is_decoded_once(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, vocabulary = made(maker)
    ids = [i for i in readable(maker) if i not in vocabulary.special_ids]
    vocabulary.unsettled(ids[-1])
    list(stream(vocabulary, ids, chunk=len(ids)))  # what is looked up of a token is remembered
    counting = Counting(vocabulary)
    monkeypatch.setattr(vocabulary, "decode", counting)
    assert "".join(stream(vocabulary, ids, chunk=len(ids))) == tokenizer.decode(ids, skip_special_tokens=True)
    assert counting.total == len(ids)


# -- single tokens


@pytest.mark.parametrize("maker", [one for one in MAKERS if one not in WHOLE])
@settings(max_examples=8)
@given(data=st.data())
def test_the_texts_of_tokens_make_up_the_text(maker: Maker, data: st.DataObject) -> None:
    tokenizer, vocabulary = made(maker)
    names = {i: vocabulary.token_text(i, first=True) for i in readable(maker)}
    plain = [i for i, name in names.items() if name.strip() and "bytes:" not in name and "\ufffd" not in name]
    special = {*tokenizer.all_special_tokens}
    plain = [i for i in plain if names[i].strip() not in special]
    ids = data.draw(st.lists(st.sampled_from(plain), max_size=12))
    texts = [
        vocabulary.token_text(token_id, first=before is None, after=before)
        for before, token_id in zip([None, *ids], ids, strict=False)
    ]
    full = vocabulary.decode(ids)
    assert full.startswith("".join(texts))
    assert len(full) - len("".join(texts)) == (vocabulary.unsettled(ids[-1]) if ids else 0)


def test_a_marked_piece_is_shown_without_its_mark() -> None:
    tokenizer, vocabulary = made(blenderbot_small)
    marked, word = tokenizer.convert_tokens_to_ids(["ye@@", "uc"])
    assert vocabulary.token_text(marked, first=True) == "ye"
    assert vocabulary.token_text(marked, after=word) == " ye"
    assert vocabulary.token_text(word, after=marked) == "uc"
    assert vocabulary.token_text(word, after=word) == vocabulary.token_text(word) == " uc"


@pytest.mark.parametrize(
    "maker", [byte_level, byte_fallback, gemma, m2m_100_bytes, marian_bytes, ByT5Tokenizer]
)
def test_a_part_of_a_character_is_shown_as_bytes(maker: Maker) -> None:
    tokenizer, vocabulary = made(maker)
    ids = tokenizer.encode("\U0001f9ff", add_special_tokens=False)
    shown = [vocabulary.token_text(token_id) for token_id in ids]
    data = b"".join(
        bytes.fromhex(text.removeprefix("bytes:").replace("\\x", "")) for text in shown if "bytes:" in text
    )
    assert data == "\U0001f9ff".encode()


def test_a_class_that_is_not_known_is_read_right(caplog: Any) -> None:
    """One whose text comes backwards: no part of it is final before the end."""
    from tiny_tokenizers import Listed

    class Backwards(Listed):
        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            return " ".join(tokens[::-1])

    tokenizer = Backwards(["<unk>", "</s>", "a", "b", "c"])
    vocabulary = Vocabulary(tokenizer)
    assert "streamed text comes at its end" in caplog.text
    assert stream(vocabulary, [2, 3, 1, 4]) == ["", "", "", "", "c b a"]
    assert stream(vocabulary, [2, 3, 1, 4], skip=False)[-1] == tokenizer.decode([2, 3, 1, 4])
