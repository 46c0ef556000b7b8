"""A tiny model whose tokenizer marks languages, as NLLB's."""

from __future__ import annotations

from pathlib import Path

from models import make_checkpoint
from transformers import NllbTokenizer

# Special ids as in models.py, then enough others that answers do not consist of language codes alone.
_PIECES = ["<pad>", "</s>", "<unk>", "<s>", "\u2581", "a", "b", "c", *map(chr, range(0x4E00, 0x4E00 + 780))]


def multilingual_checkpoint(folder: Path) -> Path:
    """A tokenizer of NLLB's language codes, and texts of a, b and c."""
    make_checkpoint(folder, "flan", vocab_size=1024, decoder_start_token_id=1)
    tokenizer = NllbTokenizer(vocab={piece: i for i, piece in enumerate(_PIECES)}, merges=[])
    tokenizer.save_pretrained(folder)
    return folder
