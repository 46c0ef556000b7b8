"""Streamed text equals the tokenizer's own decode, whatever the tokenizer and the text."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tandem.workers.requests.detokenizer import Detokenizer, StopStrings, Vocabulary

CORPUS = [
    "translate English to French: I'm here, don't we know?",
    "Où est le café ? Ça va bien !",
    "日本語のテキスト, emoji 😀👩‍👩‍👧 and e\u0301 combining",
    "She said 'yes' . They 've gone , we 're not , I 'm . do n't",
] * 8
SPECIAL = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]


def wrap(tokenizer: Tokenizer, *, clean_up: bool = False) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<extra_id_0>"],
        clean_up_tokenization_spaces=clean_up,
    )


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer)


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<plain é>"])  # added, not special, and with a space
    return wrap(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama's and T5Gemma's: BPE over ▁, bytes for what is not in the vocabulary."""
    chars = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "th"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *chars]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(vocab, [("▁", "a"), ("t", "h")], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


def word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer, clean_up=True)


MAKERS = [unigram, byte_level, byte_fallback, word_piece, ByT5Tokenizer]


@cache
def made(maker: object) -> tuple[PreTrainedTokenizerBase, Vocabulary]:
    tokenizer = maker()  # type: ignore[operator]
    return tokenizer, Vocabulary(tokenizer)


def stream(vocabulary: Vocabulary, ids: list[int], *, skip: bool = True, chunk: int = 1) -> list[str]:
    detokenizer = Detokenizer(vocabulary, skip_special_tokens=skip)
    pieces = [detokenizer.push(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
    return [*pieces, detokenizer.flush()]


TEXT = st.text() | st.text(alphabet="aé日😀\u0301\u200d'., !?nmrevst", max_size=40) | st.sampled_from(CORPUS)


@pytest.mark.parametrize("maker", MAKERS)
@given(text=TEXT, skip=st.booleans(), chunk=st.integers(1, 5))
def test_the_pieces_of_a_text_make_up_its_decode(maker: object, text: str, skip: bool, chunk: int) -> None:
    tokenizer, vocabulary = made(maker)
    ids = tokenizer.encode(text)
    full = tokenizer.decode(ids, skip_special_tokens=skip)
    pieces = stream(vocabulary, ids, skip=skip, chunk=chunk)
    assert "".join(pieces) == full
    if "\ufffd" not in full:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("maker", MAKERS)
@given(data=st.data())
def test_so_do_those_of_arbitrary_ids(maker: object, data: st.DataObject) -> None:
    tokenizer, vocabulary = made(maker)
    size = len(tokenizer) if tokenizer.is_fast else 259 + 125
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    skip, chunk = data.draw(st.booleans()), data.draw(st.integers(1, 5))
    full = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(vocabulary, ids, skip=skip, chunk=chunk)) == full


@pytest.mark.parametrize("maker", [unigram, byte_level, ByT5Tokenizer])
def test_a_piece_comes_as_soon_as_its_characters_are_whole(maker: object) -> None:
    tokenizer, vocabulary = made(maker)
    ids = tokenizer.encode("Où est le café", add_special_tokens=False)
    detokenizer = Detokenizer(vocabulary)
    text = ""
    for count, token_id in enumerate(ids, 1):
        text += detokenizer.push([token_id])
        assert text == tokenizer.decode(ids[:count]).rstrip("\ufffd")


@pytest.mark.parametrize("maker", MAKERS)
def test_a_context_keeps_the_space_before_the_first_word(maker: object) -> None:
    tokenizer, vocabulary = made(maker)
    ids = tokenizer.encode("the cat the", add_special_tokens=False)
    for cut in range(1, len(ids)):
        detokenizer = Detokenizer(vocabulary, context_ids=ids[:cut])
        assert tokenizer.decode(ids[:cut]) + detokenizer.push(ids[cut:]) + detokenizer.flush() == (
            tokenizer.decode(ids)
        )


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    """Embedding tables are padded; a model may pick such a row."""
    for maker in (unigram, byte_level):
        tokenizer, vocabulary = made(maker)
        ids = [*tokenizer.encode("the", add_special_tokens=False), len(tokenizer) + 5]
        assert "".join(stream(vocabulary, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("maker", MAKERS)
def test_work_per_token_is_bounded(maker: object, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, vocabulary = made(maker)
    longest = 0
    decode = vocabulary.decode

    def watch(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    monkeypatch.setattr(vocabulary, "decode", watch)
    stream(vocabulary, tokenizer.encode("the cat 's café " * 50))
    assert longest <= 10


# -- stop strings --


def run_stops(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    watcher = StopStrings(stops)
    text = "".join(watcher.push(piece) for piece in pieces)
    return text + watcher.flush(), watcher.matched


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """The definition, by brute force: the first end of a match, and there the longest one."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


SMALL = st.text(alphabet="ab", min_size=1, max_size=5)


@given(stops=st.lists(SMALL, max_size=4), pieces=st.lists(st.text(alphabet="ab", max_size=6), max_size=8))
def test_stop_strings_do_not_depend_on_how_the_text_was_cut(stops: list[str], pieces: list[str]) -> None:
    assert run_stops(stops, pieces) == expected(stops, "".join(pieces))


def test_only_a_possible_beginning_of_a_stop_string_is_held_back() -> None:
    watcher = StopStrings(["END", "\n\n"])
    assert watcher.push("the E") == "the "
    assert watcher.push("N") == ""
    assert watcher.push("d\n") == "ENd"
    assert watcher.push("x") == "\nx"
    assert watcher.push("END more") == ""
    assert watcher.matched == "END"
    assert watcher.push("more") == watcher.flush() == ""


def test_without_stop_strings_text_passes_through() -> None:
    text = "".join(random.Random(0).choices("abc \n", k=200))
    assert run_stops([], [text]) == (text, None)


@pytest.mark.parametrize("maker", MAKERS)
def test_the_texts_of_tokens_make_up_the_text(maker: object) -> None:
    tokenizer, vocabulary = made(maker)
    ids = tokenizer.encode("the cat the", add_special_tokens=False)
    texts = [vocabulary.token_text(token_id, first=i == 0) for i, token_id in enumerate(ids)]
    assert "".join(texts) == tokenizer.decode(ids)


@pytest.mark.parametrize("maker", [byte_level, byte_fallback, ByT5Tokenizer])
def test_a_part_of_a_character_is_shown_as_bytes(maker: object) -> None:
    tokenizer, vocabulary = made(maker)
    ids = tokenizer.encode("\U0001f9ff", add_special_tokens=False)
    shown = [vocabulary.token_text(token_id) for token_id in ids if token_id not in tokenizer.encode(" ")]
    data = b"".join(
        bytes.fromhex(text.removeprefix("bytes:").replace("\\x", "")) for text in shown if "bytes:" in text
    )
    assert data == "\U0001f9ff".encode()
