"""A small tokenizer of every kind of decode that transformers has, made here."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    ByT5Tokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

CORPUS = [
    "translate English to French: I'm here, don't we know?",
    "Où est le café ? Ça va bien !",
    "日本語のテキスト, emoji 😀👩‍👩‍👧 and e\u0301 combining",
    "She said 'yes' . They 've gone , we 're not , I 'm . do n't",
] * 8
SPECIAL = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
# Added tokens that are not special: with spaces, and such as take those around them in encoding.
ADDED = [
    AddedToken("<plain é>"),
    AddedToken("<left>", lstrip=True),
    AddedToken(" <right> ", rstrip=True, normalized=False),
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Maker = Callable[[], PreTrainedTokenizerBase]


@cache
def _folder() -> Path:
    made = tempfile.TemporaryDirectory()
    _folders.append(made)
    return Path(made.name)


_folders: list[tempfile.TemporaryDirectory[str]] = []


def _file(name: str, content: str | bytes) -> str:
    path = _folder() / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# -- those of `tokenizers`


def wrap(tokenizer: Tokenizer, *, clean_up: bool = False, **more: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<extra_id_0>"],
        clean_up_tokenization_spaces=clean_up,
        **more,
    )


def unigram(*, prepend: str = "always", clean_up: bool = False) -> PreTrainedTokenizerFast:
    """As T5's, mBART's, NLLB's, Pegasus' and XLM-R's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([*ADDED, "▁", "▁▁▁"])
    return wrap(tokenizer, clean_up=clean_up)


def unigram_never() -> PreTrainedTokenizerFast:
    return unigram(prepend="never")


def unigram_clean() -> PreTrainedTokenizerFast:
    return unigram(clean_up=True)


def byte_level(*, clean_up: bool = False, **more: Any) -> PreTrainedTokenizerFast:
    """As BART's, GPT-2's, LED's, RoBERTa's and Blenderbot's."""
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
    tokenizer.add_tokens(ADDED)
    return wrap(tokenizer, clean_up=clean_up, **more)


def byte_level_clean() -> PreTrainedTokenizerFast:
    """Cleaning up is not done for BPE, unless this is said, too."""
    return byte_level(
        clean_up=True, clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True
    )


def whisper() -> PreTrainedTokenizerBase:
    """Its decode leaves out timestamps, and the earlier text before a transcript."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: number for number, char in enumerate(alphabet)}
    for merged in ("Ġt", "he", "<|", "|>", "00", ".0"):
        vocabulary[merged] = len(vocabulary)
    merges = [(merged[0], merged[1]) for merged in ("Ġt", "he", "<|", "|>", "00", ".0")]
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=merges, unk_token="<|endoftext|>")
    special = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|startofprev|>", "<|notimestamps|>"]
    tokenizer.add_tokens([AddedToken(name, special=True) for name in special])
    tokenizer.add_tokens([AddedToken(f"<|{n * 0.02:.2f}|>", normalized=False) for n in range(40)])
    return tokenizer


def _byte_fallback(normalizer: Any, decoder: Any) -> PreTrainedTokenizerFast:
    chars = ["▁", *LETTERS, "▁a", "th"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *chars]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(vocab, [("▁", "a"), ("t", "h")], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoder
    tokenizer.add_tokens(ADDED)
    return wrap(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama's: BPE over ▁, bytes for what is not in the vocabulary."""
    replaced = normalizers.Replace(" ", "▁")
    return _byte_fallback(
        normalizers.Sequence([normalizers.Prepend("▁"), replaced]),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )


def gemma() -> PreTrainedTokenizerFast:
    """As Gemma's and T5Gemma's: nothing is stripped."""
    return _byte_fallback(
        normalizers.Replace(" ", "▁"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )


def stripped() -> PreTrainedTokenizerFast:
    """Two spaces less at the beginning of the text."""
    return _byte_fallback(
        normalizers.Replace(" ", "▁"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    )


def word_piece(*, clean_up: bool = True) -> PreTrainedTokenizerFast:
    """As BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=clean_up)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(ADDED)
    return wrap(tokenizer, clean_up=clean_up)


def word_piece_raw() -> PreTrainedTokenizerFast:
    return word_piece(clean_up=False)


def end_of_word() -> PreTrainedTokenizerFast:
    """As CLIP's, HerBERT's and OpenAI GPT's: the last piece of a word is marked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(ADDED)
    return wrap(tokenizer)


def words() -> PreTrainedTokenizerFast:
    """No decoder: tokens between spaces."""
    names = [*SPECIAL, "the", "cat", "'", "n't", ".", ""]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens(ADDED)
    return wrap(tokenizer, clean_up=True)


# -- those of SentencePiece


@cache
def _spm(*, byte_fallback: bool = False) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS, *["the cat ▁ sat"] * 20]),
        model_writer=model,
        vocab_size=430 if byte_fallback else 160,
        byte_fallback=byte_fallback,
        character_coverage=0.98 if byte_fallback else 1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def _pieces(model: bytes) -> list[str]:
    loaded = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [loaded.id_to_piece(number) for number in range(len(loaded))]


def _numbers(names: Iterable[str]) -> str:
    return json.dumps({name: number for number, name in enumerate(dict.fromkeys(names))})


def marian(*, two: bool = False, byte_fallback: bool = False) -> PreTrainedTokenizerBase:
    model = _spm(byte_fallback=byte_fallback)
    spm = _file(f"marian-{byte_fallback}.spm", model)
    names = ["</s>", "<unk>", ">>fra<<", "▁", *_pieces(model), "<pad>"]
    more: dict[str, Any] = {
        "target_vocab_file": _file("target.json", _numbers(names[::-1])),
        "separate_vocabs": True,
    }
    return transformers.MarianTokenizer(
        spm, spm, _file(f"marian-{byte_fallback}.json", _numbers(names)), source_lang="en", target_lang="fr",
        **(more if two else {}),
    )  # fmt: skip


def marian_two() -> PreTrainedTokenizerBase:
    return marian(two=True)


def marian_bytes() -> PreTrainedTokenizerBase:
    return marian(byte_fallback=True)


def m2m_100(*, byte_fallback: bool = False) -> PreTrainedTokenizerBase:
    model = _spm(byte_fallback=byte_fallback)
    names = ["<s>", "<pad>", "</s>", "<unk>", "▁", *_pieces(model)]
    made = transformers.M2M100Tokenizer(
        _file(f"m2m-{byte_fallback}.json", _numbers(names)), _file(f"m2m-{byte_fallback}.model", model),
        src_lang="en", tgt_lang="fr",
    )  # fmt: skip
    made.add_tokens(ADDED)
    return made


def m2m_100_bytes() -> PreTrainedTokenizerBase:
    return m2m_100(byte_fallback=True)


def speech_to_text() -> PreTrainedTokenizerBase:
    names = ["<s>", "<pad>", "</s>", "<unk>", *_pieces(_spm())]
    return transformers.Speech2TextTokenizer(
        _file("s2t.json", _numbers(names)), _file("s2t.model", _spm()), do_upper_case=True
    )


def plbart() -> PreTrainedTokenizerBase:
    """Its decode cleans up, whatever it is told."""
    return transformers.PLBartTokenizer(_file("plbart.model", _spm()))


def bert_generation() -> PreTrainedTokenizerBase:
    return transformers.BertGenerationTokenizer(_file("bert-generation.model", _spm()))


def speech_t5() -> PreTrainedTokenizerBase:
    return transformers.SpeechT5Tokenizer(_file("speecht5.model", _spm()))


def bartpho() -> PreTrainedTokenizerBase:
    known = "\n".join(f"{piece} 1" for piece in _pieces(_spm())[3:90])
    return transformers.BartphoTokenizer(_file("bartpho.model", _spm()), _file("dict.txt", known))


def gpt_sw3() -> PreTrainedTokenizerBase:
    """A special token changes what comes before the token to its left."""
    return transformers.GPTSw3Tokenizer(_file("gpt-sw3.model", _spm()))


def siglip() -> PreTrainedTokenizerBase:
    return transformers.SiglipTokenizer(_file("siglip.model", _spm()))


# -- those written in Python


_MARKED = ["ye@@", "z@@", "db", "uc", "a@@", "@@", "x@@@@", "y", ".", "'", "n't", "@@ @@", "é@@", "the", "@"]


def blenderbot_small() -> PreTrainedTokenizerBase:
    names = [
        "__null__",
        "__start__",
        "__end__",
        "__unk__",
        *_MARKED,
        *LETTERS,
        *(f"{one}@@" for one in LETTERS),
    ]
    return transformers.BlenderbotSmallTokenizer(
        _file("blenderbot.json", _numbers(names)), _file("blenderbot.txt", "#version\na b</w>\n")
    )


def ctrl() -> PreTrainedTokenizerBase:
    vocabulary = _file("ctrl.json", _numbers(["<unk>", *_MARKED]))
    return transformers.CTRLTokenizer(vocabulary, _file("ctrl.txt", "#version\na b</w>\n"))


def phobert() -> PreTrainedTokenizerBase:
    lines = "".join(f"{name} 1\n" for name in _MARKED if " " not in name)
    return transformers.PhobertTokenizer(_file("phobert.txt", lines), _file("phobert.codes", "a b 1\n"))


def bertweet() -> PreTrainedTokenizerBase:
    lines = "".join(f"{name} 1\n" for name in _MARKED if " " not in name)
    return transformers.BertweetTokenizer(_file("bertweet.txt", lines), _file("bertweet.codes", "a b 1\n"))


_WORD_PIECES = ["the", "ca", "##t", "##s", "un", "##do", ".", ",", "'", "n", "##'t", "##", "# #", *LETTERS]


def prophetnet() -> PreTrainedTokenizerBase:
    names = ["[PAD]", "[UNK]", "[SEP]", "[X_SEP]", "[MASK]", "[CLS]", *_WORD_PIECES]
    return transformers.ProphetNetTokenizer(_file("prophetnet.txt", "\n".join(names)))


def bert_legacy() -> PreTrainedTokenizerBase:
    names = ["[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]", *_WORD_PIECES]
    return BertTokenizerLegacy(_file("bert.txt", "\n".join(names)))


class Listed(PreTrainedTokenizer):
    """A vocabulary that is listed, for how other classes make a text of tokens."""

    def __init__(self, names: list[str], **kwargs: Any) -> None:
        self.names = names
        super().__init__(unk_token="<unk>", eos_token="</s>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self.names)

    def get_vocab(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [piece for word in re.findall(r"\w+|\S", text) for piece in [*word[:-1], f"{word[-1]}</w>"]]

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self.names[index]


class XLMLike(Listed):
    """XLM's class wants a package that is not there; Flaubert's decode is the same."""

    convert_tokens_to_string = transformers.XLMTokenizer.convert_tokens_to_string


class FSMTLike(Listed):
    """FSMT's decode, with the part of Moses that nothing near a token decides: quotes open and close."""

    tgt_lang = "en"
    convert_tokens_to_string = transformers.FSMTTokenizer.convert_tokens_to_string

    def moses_detokenize(self, tokens: list[str], _: str) -> str:
        text, opened = "", False
        for token in tokens:
            if token == '"':
                text += '"' if opened else ' "'
                opened = not opened
            else:
                text += token if text.endswith('"') and opened else f" {token}"
        return text.strip()


_END_OF_WORD = [
    "<unk>",
    "</s>",
    *LETTERS,
    *(f"{one}</w>" for one in LETTERS),
    "</w>",
    '"</w>',
    "the</w>",
    "un",
]


def xlm() -> PreTrainedTokenizerBase:
    return XLMLike(_END_OF_WORD)


def fsmt() -> PreTrainedTokenizerBase:
    return FSMTLike([*_END_OF_WORD, '"'])


def myt5() -> PreTrainedTokenizerBase:
    """Its bytes stand for longer ones, and begin like letters: "the" is 0x52 0x83, "ing" is 0x52 0x84."""
    rules = {"74 68 65": "52 83", "69 6e 67": "52 84"}
    maps = {"decompose_map": {}, "merge_map": rules}
    return transformers.MyT5Tokenizer(_file("byte_maps.json", json.dumps(maps)))


def perceiver() -> PreTrainedTokenizerBase:
    return transformers.PerceiverTokenizer()


BYTES: list[Maker] = [byte_level, byte_level_clean, whisper, ByT5Tokenizer]
WINDOWS: list[Maker] = [
    unigram, unigram_never, unigram_clean, byte_fallback, gemma, stripped, word_piece, word_piece_raw,
    end_of_word, words, marian, marian_two, marian_bytes, m2m_100, m2m_100_bytes, speech_to_text, plbart,
    bert_generation, speech_t5, bartpho, blenderbot_small, ctrl, phobert, bertweet, prophetnet, bert_legacy,
    xlm, perceiver,
]  # fmt: skip
# The text of some comes at its end, where special tokens are shown or in any case.
PARTLY: list[Maker] = [gpt_sw3, siglip]
WHOLE: list[Maker] = [fsmt, myt5]
MAKERS: list[Maker] = [*BYTES, *WINDOWS, *PARTLY, *WHOLE]
