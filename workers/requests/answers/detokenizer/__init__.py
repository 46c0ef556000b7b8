"""Token ids to text, piece by piece, as they are generated: exactly what the tokenizer's own decode says.

`tokenizers.DecodeStream` lacks a flush at the end and tokenizers that are written in Python (ByT5, Marian),
and its answers are wrong where a later token changes text that it has already let out.
"""

from __future__ import annotations

from tandem.workers.requests.answers.detokenizer.detokenizer import Detokenizer
from tandem.workers.requests.answers.detokenizer.stop_strings import StopStrings
from tandem.workers.requests.answers.detokenizer.vocabulary import Vocabulary

__all__ = ["Detokenizer", "StopStrings", "Vocabulary"]
