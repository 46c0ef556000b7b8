"""Text → token ids, from several threads at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from tandem.errors import InvalidRequest, ModelLoadError, renaming_fields
from tandem.workers.models.hub import Repository
from tandem.workers.models.model_folder import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# No tokenizer in use averages this many characters a token, so a longer text is refused unread.
_CHARS_PER_TOKEN: Final = 64

# What is read of a text that is truncated: this many characters for each token that is kept, four times as
# many where that is not enough. The kept ids are the text's where so many lie beyond them, up to the place
# where it was cut, and that is between words.
_NEAR: Final = 8
_BEYOND: Final = 16

Side = Literal["left", "right"]  # where a text is cut, in the order that it is read

# The subfolder of a model's folder with its decoder's tokenizer, where that is another than the encoder's.
DECODER_TOKENIZER: Final = "decoder_tokenizer"


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises ModelLoadError where there is none that can be read."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Where a file is missing or damaged, each class fails in a way of its own: TypeError is Marian's.
    except Exception as error:
        raise ModelLoadError(
            f"{folder} has no tokenizer that can be read: save it there with `save_pretrained` "
            f"({type(error).__name__}: {' '.join(str(error).split()):.200})",
            field="tokenizer",
        ) from error
    # Without its files transformers makes an empty tokenizer, and says nothing. (ByT5 needs none.)
    files = set(tokenizer.vocab_files_names.values())
    if files and not any((folder / name).is_file() for name in files):
        raise ModelLoadError(
            f"{folder} has none of {', '.join(sorted(files))}: save it there with `save_pretrained`, or give "
            "the folder or hub id of another",
            field="tokenizer",
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def read_tokenizers(
    folder: Path, tokenizer: str | Path | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase | None]:
    """A model's tokenizer and its decoder's, None where that is the same.

    tokenizer: a folder or hub id; None: the model's folder. Raises ModelLoadError where one cannot be read.
    """
    own = folder / DECODER_TOKENIZER
    source = folder if tokenizer is None else _tokenizer_folder(tokenizer)
    return read_tokenizer(source), read_tokenizer(own) if own.is_dir() else None


def _tokenizer_folder(tokenizer: str | Path) -> Path:
    with renaming_fields({"model": "tokenizer"}):
        folder = local_path(tokenizer)
        if isinstance(tokenizer, Path) or folder.is_dir():
            return folder
        return Repository(tokenizer).fetch()


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
            # They are set once, here: setting them for each call, as the wrapper does, is not thread-safe.
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
        side, backend, tokenizer = side or self._truncation_side, self._backends[0], self._tokenizer
        added = (backend or tokenizer).num_special_tokens_to_add(False) if special else 0
        if (room := length - added) < 0:
            raise InvalidRequest(
                f"must be at least {added}, the special tokens, got {length}", field="truncate_prompt_tokens"
            )

        def encoded(near: str) -> Any:
            if backend is not None:
                return backend.encode(near, add_special_tokens=False)
            return tokenizer.encode(near, add_special_tokens=False, verbose=False)

        count = (room + _BEYOND) * _NEAR
        near = _nearest(text, count, side)
        found = encoded(near)
        while near is not text and len(found) < room + _BEYOND:
            count *= 4
            near = _nearest(text, count, side)
            found = encoded(near)
        if backend is not None:
            found.truncate(room, direction=side)
            return list(backend.post_process(found).ids if special else found.ids)
        ids = found[:room] if side == "right" else found[max(0, len(found) - room) :]
        return list(tokenizer.build_inputs_with_special_tokens(ids) if special else ids)

    @property
    def bos_token(self) -> str | None:
        """As texts write it."""
        token: str | None = self._tokenizer.bos_token
        return token

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The tokens of these ids, of the prompt's tokenizer, as the vocabulary writes them."""
        return list(self._tokenizer.convert_ids_to_tokens(list(ids)))


def _nearest(text: str, count: int, side: Side) -> str:
    """The beginning of a text, or its end where the left `side` loses the others, of about `count` characters
    and of whole words; the text itself where it has no more."""
    if len(text) <= count:
        return text
    near = text[:count] if side == "right" else text[-count:]
    parts = near.rsplit(maxsplit=1) if side == "right" else near.split(maxsplit=1)[::-1]
    # There may be nothing but spaces, or none, as in Chinese.
    return parts[0] if parts and len(parts[0]) > count // 2 else near


def check_text(text: str, name: str) -> None:
    """Raises InvalidRequest for text that UTF-8 cannot hold: JSON can smuggle in half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"lone surrogate at character {error.start}", field=name) from None
