"""Truncation on request: the ids of `tokenizer(text, truncation=True, max_length=…)`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hearing import HEARING
from hypothesis import example, given
from hypothesis import strategies as st
from models import make_checkpoint
from multilingual import multilingual_checkpoint
from tiny_t5 import LINES, write_model
from tokenizers import processors
from transformers import AutoTokenizer, MarianTokenizer

from tandem import quickstart
from tandem.errors import InvalidRequest
from tandem.inputs import RequestOptions
from tandem.limits import Limits
from tandem.params import SamplingParams
from tandem.workers.requests.request_builder import RequestBuilder

LIMITS = Limits(encoder_tokens=64, decoder_tokens=32)
KINDS = ["unigram", "two special tokens", "loses the beginning", "bytes", "two models", "languages", "gpt2"]


def make(kind: str, folder: Path) -> Path:
    if kind == "unigram":
        return write_model(folder)
    if kind == "languages":
        return multilingual_checkpoint(folder)
    if kind in ("bytes", "gpt2"):
        return make_checkpoint(folder, {"bytes": "byt5"}.get(kind, kind))
    if kind == "two models":  # Marian's tokenizer, which is Python's
        make_checkpoint(folder, "marian")
        (folder / "tokenizer.json").unlink()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES), model_prefix=str(folder / "spm"), vocab_size=30, minloglevel=2
        )
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
        pieces = dict.fromkeys(["<pad>", "</s>", "<unk>", *map(model.id_to_piece, range(len(model)))])
        vocabulary = folder / "pieces.json"
        vocabulary.write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
        spm = str(folder / "spm.model")
        MarianTokenizer(spm, spm, str(vocabulary), source_lang="en", target_lang="fr").save_pretrained(folder)
        return folder
    make_checkpoint(folder, "bart")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    special = [("<s>", 3), ("</s>", 1)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=special
    )
    tokenizer.truncation_side = "left" if kind == "loses the beginning" else "right"
    tokenizer.model_max_length = 12
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RequestBuilder, Any]]:
    @cache
    def load(kind: str) -> tuple[RequestBuilder, Any]:
        folder = make(kind, tmp_path_factory.mktemp("model"))
        side = {"truncation_side": "left"} if kind == "gpt2" else {}
        return RequestBuilder.load(folder, kind, LIMITS), AutoTokenizer.from_pretrained(folder, **side)

    return load


def ids(builder: RequestBuilder, text: str, length: int, **options: Any) -> list[int]:
    chosen: RequestOptions = {"truncate_prompt_tokens": length, **options}
    prepared = builder.prepare(text, SamplingParams(max_tokens=1), **chosen)
    return prepared.prompt_token_ids if builder.info.decoder_only else prepared.encoder_prompt_token_ids


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.lists(
        st.sampled_from(["the", "cat", "sat", "le", "chat", "ba", "be", "bi", "a", "b", "é"]),
        min_size=1,
        max_size=30,
    ),
    st.integers(3, 30),
    st.sampled_from([" ", "  ", " " * 63, "\n", ""]),
)
@example(["a"] * 200, 30, " ")
@example(["a"] * 6 + ["the", "cat", "sat", "le", "chat"], 8, " " * 63)
@example(["the", "chat"] * 300, 8, "")
def test_the_ids_are_transformers(
    models: Callable[[str], tuple[RequestBuilder, Any]],
    kind: str,
    words: list[str],
    length: int,
    between: str,
) -> None:
    builder, tokenizer = models(kind)
    text = between.join(words)
    expected = tokenizer(text, truncation=True, max_length=length)["input_ids"]
    assert ids(builder, text, length) == expected
    if kind == "languages":
        tokenizer.src_lang = "fra_Latn"
        expected = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        assert ids(builder, text, length, source_language="fra_Latn") == expected
        tokenizer.src_lang = "eng_Latn"


@pytest.mark.parametrize("length", [3, 8, 64])
def test_a_word_at_the_place_where_a_text_is_cut_is_whole(length: int) -> None:
    """However many characters a token has, and wherever the next word begins."""
    builder = RequestBuilder.load(quickstart.PATH, "q")
    tokenizer = AutoTokenizer.from_pretrained(quickstart.PATH)
    for wide in (1, 7, 63, 500):
        for shift in range(-2, 3):
            text = "".join("I" + " " * wide for _ in range(length - 2))
            text = text.ljust((wide + 1) * length + shift) + "yesterday we went"
            expected = tokenizer(text, truncation=True, max_length=length)["input_ids"]
            assert builder.prepare(text, truncate_prompt_tokens=length).encoder_prompt_token_ids == expected


def test_a_task_counts(models: Callable[[str], tuple[RequestBuilder, Any]]) -> None:
    builder, tokenizer = models("unigram")
    text = "the cat sat on the mat"
    prefixed = tokenizer("translate English to French: " + text, truncation=True, max_length=9)["input_ids"]
    assert ids(builder, text, 9, task="translation_en_to_fr") == prefixed


def test_the_models_own_length(models: Callable[[str], tuple[RequestBuilder, Any]]) -> None:
    builder, tokenizer = models("two special tokens")
    text = "ba " * 50
    expected = tokenizer(text, truncation=True)["input_ids"]
    assert len(expected) == 12
    assert ids(builder, text, -1) == expected
    builder, tokenizer = models("unigram")  # whose tokenizer has no length: the server's counts
    assert len(ids(builder, "a " * 100, -1)) == 64
    builder, _ = models("gpt2")
    prepared = builder.prepare("ba " * 50, SamplingParams(max_tokens=20), truncate_prompt_tokens=-1)
    assert len(prepared.prompt_token_ids) == 32 - 20, "there is room for the answer"
    assert len(builder.prepare("ba " * 50, None, truncate_prompt_tokens=-1).prompt_token_ids) == 31


def test_a_long_text_is_not_refused_unread(models: Callable[[str], tuple[RequestBuilder, Any]]) -> None:
    builder, tokenizer = models("unigram")
    with pytest.raises(InvalidRequest, match="has 40000 characters"):
        builder.prepare("a b " * 10_000)
    for text in ("a b " * 10_000, " " * 20_000 + "a b"):
        assert ids(builder, text, 10) == tokenizer(text, truncation=True, max_length=10)["input_ids"]
    builder, tokenizer = models("gpt2")
    text = "ba " * 10_000 + "be bi"
    assert ids(builder, text, 10) == tokenizer(text)["input_ids"][-10:]


def test_token_ids_keep_their_eos(models: Callable[[str], tuple[RequestBuilder, Any]]) -> None:
    builder, _ = models("unigram")
    many = {"truncate_prompt_tokens": 3}

    def kept(given: list[int], builder: RequestBuilder = builder) -> list[int]:
        prepared = builder.prepare({"prompt_token_ids": given}, **many)  # type: ignore[arg-type]
        return prepared.prompt_token_ids if builder.info.decoder_only else prepared.encoder_prompt_token_ids

    assert kept([5, 6, 7, 8, 1]) == [5, 6, 1]
    assert kept([5, 6, 7, 8]) == [5, 6, 7]
    assert kept([5, 1]) == [5, 1]
    assert kept([5, 6, 7, 8, 9], models("gpt2")[0]) == [7, 8, 9]


@pytest.mark.parametrize(
    ("kind", "length", "message"),
    [
        ("unigram", 0, "must be 1 to 64, or -1 for the model's own length, got 0"),
        ("unigram", -2, "must be 1 to 64"),
        ("unigram", 65, "must be 1 to 64"),
        ("unigram", True, "must be an integer, got bool"),
        ("unigram", "9", "must be an integer, got str"),
        ("two special tokens", 1, "must be at least 2, the special tokens, got 1"),
        ("gpt2", 32, "must be 1 to 31"),
    ],
)
def test_other_lengths_are_refused(
    models: Callable[[str], tuple[RequestBuilder, Any]], kind: str, length: Any, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ids(models(kind)[0], "a b c", length)
    assert caught.value.field == "truncate_prompt_tokens"
    assert caught.value.message.startswith(message)


def test_what_is_too_long_says_what_to_do(models: Callable[[str], tuple[RequestBuilder, Any]]) -> None:
    with pytest.raises(
        InvalidRequest, match="has 101 tokens, the limit is 64: shorten it or set truncate_prompt"
    ):
        models("bytes")[0].prepare("a" * 100)


def test_media_are_not_cut(models: Callable[[str], tuple[RequestBuilder, Any]]) -> None:
    builder, tokenizer = models("unigram")
    info = replace(builder.info, front=HEARING.front, encoder_vocab_size=None)
    hearing = RequestBuilder(info, tokenizer, LIMITS, processor=HEARING)
    prompt: Any = {"prompt": "", "multi_modal_data": {"audio": b"1"}}
    hearing.prepare(prompt)
    with pytest.raises(InvalidRequest, match="is for encoder prompts of text") as caught:
        hearing.prepare(prompt, truncate_prompt_tokens=5)
    assert caught.value.field == "truncate_prompt_tokens"
