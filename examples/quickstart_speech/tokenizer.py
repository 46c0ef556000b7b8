"""The quickstart speech model's tokenizer: Whisper's, with a vocabulary of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, NamedTuple

from clips import POSITIONS, STEP_S
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import WhisperTokenizer

PIECES: Final = (
    320  # of text, the 256 bytes among them; few, as so short a training learns letters, not words
)
END: Final = "<|endoftext|>"
# In Whisper's order; the times come after them.
MARKS: Final = (
    "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>",
    "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip


class Ids(NamedTuple):
    """Ids of the tokens that are no text."""

    end: int
    start: int
    english: int
    translate: int
    transcribe: int
    start_of_lm: int
    before: int  # begins what was said before
    no_speech: int
    no_times: int

    @property
    def first_time(self) -> int:
        return self.no_times + 1

    def time(self, seconds: float) -> int:
        return self.first_time + min(POSITIONS, max(0, round(seconds / STEP_S)))


def train_tokenizer(texts: Iterable[str]) -> WhisperTokenizer:
    """Byte-level BPE. Digits stay single, so that numbers are read digit by digit."""
    model = Tokenizer(BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=PIECES, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    model.train_from_iterator((f" {text}" for text in texts), trainer)
    tokenizer = WhisperTokenizer(
        vocab=model.get_vocab(), merges=_merges(model), unk_token=END, bos_token=END, eos_token=END,
        pad_token=END, clean_up_tokenization_spaces=False, model_max_length=160,
    )  # fmt: skip
    marks = [AddedToken(mark, normalized=False, special=True) for mark in MARKS]
    tokenizer.add_special_tokens({"extra_special_tokens": marks})
    times = [f"<|{STEP_S * step:.2f}|>" for step in range(POSITIONS + 1)]
    tokenizer.add_tokens([AddedToken(time, normalized=False, special=False) for time in times])
    return tokenizer


def _merges(model: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(model.to_str())["model"]["merges"]
    return [tuple(merge) for merge in merges]


def ids_of(tokenizer: WhisperTokenizer) -> Ids:
    return Ids(*tokenizer.convert_tokens_to_ids([END, *MARKS]))
