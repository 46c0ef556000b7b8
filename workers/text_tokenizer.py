"""Text → token ids, from several threads at once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from tandem.errors import InvalidRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# No tokenizer in use averages this many characters a token, so a longer text is refused unread.
_CHARS_PER_TOKEN: Final = 64


class TextTokenizer:
    """transformers' tokenizer of a model, without what is not thread-safe in it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._target_tokenizer: Any = tokenizer
        if hasattr(tokenizer, "_switch_to_target_mode") and getattr(tokenizer, "target_lang", None):
            # Marian's reads the two languages with two SentencePiece models; transformers switches between
            # them for each text.
            self._target_tokenizer = copy.deepcopy(tokenizer)
            self._target_tokenizer._switch_to_target_mode()
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # Set once here: setting them for each call, as the wrapper does, is not thread-safe.
            self._backend.no_truncation()
            self._backend.no_padding()

    def encode(self, text: str, name: str, limit: int, *, special: bool, target: bool = False) -> list[int]:
        """`limit` is the number of tokens that the ids are allowed to have, which the caller checks.
        special: with special tokens; target: in the decoder's language. Raises InvalidRequest for `name`."""
        check_text(text, name)
        most = limit * _CHARS_PER_TOKEN
        if len(text) > most:
            raise InvalidRequest(
                f"has {len(text)} characters, of which {limit} tokens can hold at most {most}", field=name
            )
        if self._backend is not None:
            return list(self._backend.encode(text, add_special_tokens=special).ids)
        tokenizer = self._target_tokenizer if target else self._tokenizer
        return list(tokenizer.encode(text, add_special_tokens=special, verbose=False))


def check_text(text: str, name: str) -> None:
    """Raises InvalidRequest for text that UTF-8 cannot hold: JSON can smuggle in half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"lone surrogate at character {error.start}", field=name) from None
