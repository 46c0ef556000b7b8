"""The reader's tokenizer: bytes, so that a token is a character and a picture shows where it is."""

from __future__ import annotations

from typing import Final, NamedTuple

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

START, PAD, END, UNKNOWN = _MARKS = ("<s>", "<pad>", "</s>", "<unk>")


class Ids(NamedTuple):
    """Ids of the tokens that are no text."""

    start: int = 0
    pad: int = 1
    end: int = 2


IDS: Final = Ids()


def make_tokenizer(longest: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges. longest: tokens of a text, all its marks among them."""
    alphabet = [*_MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    model = Tokenizer(BPE(vocabulary, [], unk_token=UNKNOWN))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B {END}",
        special_tokens=[(START, IDS.start), (END, IDS.end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=START, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False, model_max_length=longest,
    )  # fmt: skip
