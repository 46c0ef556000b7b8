"""Text → token ids, from several threads at once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from tandem.errors import InvalidRequest, ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# No tokenizer in use averages this many characters a token, so a longer text is refused unread.
_CHARS_PER_TOKEN: Final = 64

Side = Literal["left", "right"]  # of a text, in the order that it is read

# The subfolder of a model's folder with its decoder's tokenizer, where that is another than the encoder's.
DECODER_TOKENIZER: Final = "decoder_tokenizer"


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises ModelLoadError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder} has no tokenizer that can be read: {error}") from error
    # Without its files transformers makes an empty tokenizer, and says nothing. (ByT5 needs none.)
    files = set(tokenizer.vocab_files_names.values())
    if files and not any((folder / name).is_file() for name in files):
        raise ModelLoadError(f"{folder} has no tokenizer: none of {', '.join(sorted(files))}")
    return cast("PreTrainedTokenizerBase", tokenizer)


class TextTokenizer:
    """A model's tokenizer of transformers, without the parts that are not thread-safe."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase | None = None
    ) -> None:
        """`target` is the decoder's tokenizer, where that is another."""
        self._tokenizer: Any = tokenizer
        self._target_tokenizer: Any = tokenizer if target is None else target
        if target is None and getattr(tokenizer, "target_lang", None):
            # Marian's reads the two languages with two SentencePiece models; transformers switches between
            # them for each text.
            self._target_tokenizer = copy.deepcopy(tokenizer)
            self._target_tokenizer._switch_to_target_mode()
        self._backends = [
            getattr(one, "backend_tokenizer", None) for one in (self._tokenizer, self._target_tokenizer)
        ]
        for backend in filter(None, self._backends):
            # Set once here: setting them for each call, as the wrapper does, is not thread-safe.
            backend.no_truncation()
            backend.no_padding()
        # The longest input that the tokenizer's makers had in mind, special tokens included.
        self.max_length: int = tokenizer.model_max_length
        self._truncation_side = cast(Side, tokenizer.truncation_side)

    def encode(self, text: str, name: str, limit: int, *, special: bool, target: bool = False) -> list[int]:
        """A text's ids, `special` tokens included, or as the decoder reads them (`target`).

        `limit` is how many there may be, which the caller checks; a text that is too long for it anyway is
        refused unread. Raises InvalidRequest, naming `name`.
        """
        check_text(text, name)
        most = limit * _CHARS_PER_TOKEN
        if len(text) > most:
            raise InvalidRequest(
                f"has {len(text)} characters, of which {limit} tokens can hold at most {most}", field=name
            )
        if (backend := self._backends[target]) is not None:
            return list(backend.encode(text, add_special_tokens=special).ids)
        tokenizer = self._target_tokenizer if target else self._tokenizer
        return list(tokenizer.encode(text, add_special_tokens=special, verbose=False))

    def encode_truncated(
        self, text: str, name: str, length: int, *, special: bool, side: Side | None = None
    ) -> list[int]:
        """A text's ids, of which at most `length` are kept, `special` tokens included: those of transformers'
        `tokenizer(text, truncation=True, max_length=length)`. `side` loses the others; None: the tokenizer's.

        Raises InvalidRequest, naming `name`, or "truncate_prompt_tokens" where the special tokens alone are
        more.
        """
        check_text(text, name)
        side, most = side or self._truncation_side, max(1, length) * _CHARS_PER_TOKEN
        near = text[:most] if side == "right" else text[-most:]
        kept = self._truncated(near, length, special=special, side=side)
        if near != text and len(kept) < length:  # long runs of spaces, say
            return self._truncated(text, length, special=special, side=side)
        return kept

    def _truncated(self, text: str, length: int, *, special: bool, side: Side) -> list[int]:
        backend, tokenizer = self._backends[0], self._tokenizer
        added = (backend or tokenizer).num_special_tokens_to_add(False) if special else 0
        if (room := length - added) < 0:
            raise InvalidRequest(
                f"must be at least {added}, the special tokens, got {length}", field="truncate_prompt_tokens"
            )
        if backend is not None:
            encoding = backend.encode(text, add_special_tokens=False)
            encoding.truncate(room, direction=side)
            return list(backend.post_process(encoding).ids if special else encoding.ids)
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        ids = ids[:room] if side == "right" else ids[max(0, len(ids) - room) :]
        return list(tokenizer.build_inputs_with_special_tokens(ids) if special else ids)


def check_text(text: str, name: str) -> None:
    """Raises InvalidRequest for text that UTF-8 cannot hold: JSON can smuggle in half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"lone surrogate at character {error.start}", field=name) from None
