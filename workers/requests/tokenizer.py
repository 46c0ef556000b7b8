"""Text → token ids, from several threads at once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from tandem.errors import InvalidRequest, ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# No tokenizer in use averages this many characters a token, so a longer text is refused unread.
_CHARS_PER_TOKEN: Final = 64

# The subfolder of a model's folder with its decoder's tokenizer, where that is another than the encoder's.
DECODER_TOKENIZER: Final = "decoder_tokenizer"


def read_tokenizer(where: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, or of a hub id. Raises ModelLoadError where there is none."""
    from transformers import AutoTokenizer

    folder = Path(where).expanduser()
    local = isinstance(where, Path) or folder.is_dir()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder if local else where, local_files_only=local, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{where} has no tokenizer that can be read: {error}", field="tokenizer"
        ) from error
    # Without its files transformers makes an empty tokenizer, and says nothing. (ByT5 needs none.)
    files = set(tokenizer.vocab_files_names.values())
    if local and files and not any((folder / name).is_file() for name in files):
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
    return read_tokenizer(tokenizer or folder), read_tokenizer(own) if own.is_dir() else None


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


def check_text(text: str, name: str) -> None:
    """Raises InvalidRequest for text that UTF-8 cannot hold: JSON can smuggle in half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"lone surrogate at character {error.start}", field=name) from None
