"""Tiny models for the scripts of examples/seeds that train; their tokenizers know the words of a text."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)


def make_t5(folder: Path, texts: str) -> Path:
    """A T5 whose vocabulary is the words of `texts` and letters."""
    words = [f"▁{word}" for word in dict.fromkeys(re.findall(r"[\w:,.?!']+", texts))]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    pieces += [(word, -3.0) for word in words] + [(letter, -9.0) for letter in letters]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "vocab_size": len(pieces), "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "dropout_rate": 0.0, "decoder_start_token_id": 0,
    }  # fmt: skip
    T5ForConditionalGeneration(T5Config(**values)).save_pretrained(folder)
    return folder


def make_bert(folder: Path, texts: str) -> Path:
    """A BERT whose vocabulary is the words of `texts` and letters."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    names += dict.fromkeys([*re.findall(r"\w+", texts.lower()), *letters, *(f"##{one}" for one in letters)])
    BertTokenizer(vocab={name: number for number, name in enumerate(names)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=256,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder
