"""The quickstart model's data: Tatoeba pairs, split by English sentence, and its tokenizer."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer

PREFIXES = {"fr": "translate English to French: ", "de": "translate English to German: "}
VOCABULARY_SIZE = 4000
PAD, EOS, UNK = 0, 1, 2


class Pair(NamedTuple):
    """One English sentence and one translation of it."""

    target_language: str  # a key of PREFIXES
    english: str
    translation: str

    @property
    def source(self) -> str:
        return PREFIXES[self.target_language] + self.english


def part_of(english: str) -> str:
    """The part an English sentence belongs to: `test` 2 %, `dev` 0.5 %, `train` the rest.

    Depends on the sentence alone, so a sentence in two languages, or with many translations, never
    straddles two parts, and a later run of the recipe makes the same split.
    """
    share = int.from_bytes(hashlib.sha256(english.encode()).digest()[:4], "big") % 1000
    return "test" if share < 20 else "dev" if share < 25 else "train"


def read_pairs(folder: Path) -> dict[str, list[Pair]]:
    """All pairs of `folder/tatoeba-en-{fr,de}.tsv`, by part."""
    parts: dict[str, list[Pair]] = defaultdict(list)
    for language in PREFIXES:
        path = folder / f"tatoeba-en-{language}.tsv"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fields = line.split("\t")
            if len(fields) != 2 or not all(fields):
                raise ValueError(f"{path}:{number}: expected two tab-separated fields, got {line!r}")
            parts[part_of(fields[0])].append(Pair(language, *fields))
    if missing := {"train", "dev", "test"} - set(parts):
        raise ValueError(f"{folder} has too few sentences: none for {', '.join(sorted(missing))}")
    return dict(parts)


def references(pairs: list[Pair], language: str) -> dict[str, list[str]]:
    """English sentence → all its known translations into `language`."""
    known: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        if pair.target_language == language:
            known[pair.english].append(pair.translation)
    return dict(known)


def train_tokenizer(pairs: list[Pair]) -> Tokenizer:
    """A T5-style SentencePiece unigram tokenizer: `</s>` after every text, `▁` for a space."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    texts = sorted({text for pair in pairs for text in (pair.english, pair.translation)})
    # The prefixes must be cheap: repeated so often that each of their words becomes one piece.
    texts += list(PREFIXES.values()) * (len(texts) // 20)
    trainer = UnigramTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=True,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
    )
    return tokenizer
