"""The part of a tokenizer that makes text, and how it is best read piece by piece."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from tandem.workers.requests.answers.detokenizer.edits import CleanUp, Edit, WithoutTimestamps, is_timestamp
from tandem.workers.requests.answers.detokenizer.readers import (
    ByteReader,
    Reader,
    WholeReader,
    WindowReader,
    common_length,
    reads,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# What a tokenizer is tried on: quotes that come in pairs, marks that may lose their spaces, many scripts.
_TEXT: Final = (
    'He said: "It\'s 3.50 €, isn\'t it?" - "No, it isn\'t," she wrote (in 1998) ... '
    "Où est l'été ? Straße, naïve, мир, 你好吗, नमस्ते, 😀👩‍👩‍👧. e-mail@example.org, A/B & C; 'the end' ."
)
_SAMPLES, _TOKENS = 8, 24  # random sequences, and their length
_FAR: Final = 16  # tokens, more than a window has


class Vocabulary:
    """The part of a tokenizer that detokenizers read. One for a model, shared by all threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformers import ByT5Tokenizer, WhisperTokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        added = tokenizer.added_tokens_decoder
        self.special_ids: frozenset[int] = (
            frozenset(tokenizer.all_special_ids)
            if backend is None
            else frozenset(i for i, token in added.items() if token.special)
        )
        self.token_bytes: Callable[[int], bytes] | None = None
        self.malformed: str = "replace"  # what the tokenizer's own decode does with malformed UTF-8
        if _decoder_types(backend) == ["ByteLevel"]:
            self.token_bytes = lambda i: _byte_level(tokenizer.convert_ids_to_tokens([i])[0])
        elif isinstance(tokenizer, ByT5Tokenizer):
            names = {i: token.content.encode() for i, token in added.items()}
            self.token_bytes = lambda i: (
                names.get(i) or bytes(ord(char) for char in tokenizer.convert_ids_to_tokens([i])[0])
            )
            self.malformed = "ignore"
        self._tokenizer, self._size = tokenizer, len(tokenizer)
        # The text of ids, special ones included, before any edits.
        self.decode: Callable[[Sequence[int]], str] = _plain_decode(tokenizer, backend)
        # Ids that stand for one byte, in tokenizers whose other tokens are text.
        names_of_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
        self.byte_ids = frozenset(
            i
            for name, i in zip(names_of_bytes, _ids(tokenizer, names_of_bytes), strict=True)
            if i is not None and i != tokenizer.unk_token_id and self.decode([i]) != name
        )

        # What decode does to the text of the tokens.
        edits: list[Callable[[], Edit]] = []
        # The marks around the earlier text that comes before a transcript.
        self.earlier_text: Sequence[int | None] | None = None
        self.timestamp_ids = frozenset[int]()  # they are left out
        if clean_up := _clean_up(tokenizer, backend):
            edits.append(lambda: CleanUp(clean_up))
        if isinstance(tokenizer, WhisperTokenizer):
            edits.append(WithoutTimestamps)
            self.earlier_text = _ids(tokenizer, ["<|startofprev|>", "<|startoftranscript|>"])
            self.timestamp_ids = frozenset(i for i, token in added.items() if is_timestamp(token.content))
        self.edits: Sequence[Callable[[], Edit]] = edits

        self._backend = backend
        self._tokens: dict[int, bool] = {}  # which ids are, as far as is known
        self._unsettled: dict[int, int] = {}
        self._token_texts: dict[tuple[int, int | None], str] = {}
        self._neighbour = self._find_neighbour()
        self._alike: dict[int, int] = {}
        self._by_what_follows: dict[str, int] = {}
        samples = self._samples()
        self._readers = {skip: self._fastest(samples, skip) for skip in (False, True)}

    def reader(self, skip_special_tokens: bool) -> type[Reader]:
        """How the text is read piece by piece."""
        return self._readers[skip_special_tokens]

    def tokens(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids without those that decode does not take. Embeddings may have more rows than there are
        tokens, of which `tokenizers` makes nothing, and decodes that are Python's raise."""
        return ids if self._backend is not None else [i for i in ids if self._is_token(i)]

    def _is_token(self, token_id: int) -> bool:
        found = self._tokens.get(token_id)
        if found is None:
            name = self._text_of if self._backend is None else self._backend.id_to_token
            found = self._tokens[token_id] = name(token_id) is not None
        return found

    def unsettled(self, token_id: int) -> int:
        """How many characters at the end of a token's text the next token changes, as of `x@@`."""
        found = self._unsettled.get(token_id)
        if found is None:
            assert self._neighbour is not None
            text = self.decode([self._neighbour, token_id])
            longer = self.decode([self._neighbour, token_id, self._neighbour])
            found = self._unsettled[token_id] = len(text) - common_length(text, longer)
        return found

    def token_text(self, token_id: int, *, first: bool = False, after: int | None = None) -> str:
        """What a token adds to a text, for showing it: to an empty one if `first`, else after the token
        `after`, or after some word. A part of a character is shown as OpenAI does: `bytes:\\xe2\\x82`. An id
        that is no token is shown as nothing."""
        if not self._is_token(token_id):
            return ""
        if after is not None and not self._is_token(after):
            after = None
        before = None if first or self.token_bytes is not None else self._like(after)
        text = self._token_texts.get((token_id, before))
        if text is None:
            text = self._token_texts[token_id, before] = self._show(token_id, before)
        return text

    def _like(self, after: int | None) -> int | None:
        """A token after which others have the same texts, the same one for many."""
        if after is None or self._neighbour is None or after in self.special_ids:
            return self._neighbour if after is None else after
        found = self._alike.get(after)
        if found is None:
            follows = self._added(after, self._neighbour)
            found = self._alike[after] = self._by_what_follows.setdefault(follows, after)
        return found

    def _added(self, before: int, token_id: int) -> str:
        start, text = self.decode([before]), self.decode([before, token_id])
        return text[len(start) - self.unsettled(before) : len(text) - self.unsettled(token_id)]

    def _show(self, token_id: int, before: int | None) -> str:
        if self.token_bytes is not None:
            data = self.token_bytes(token_id)
        elif token_id in self.byte_ids:  # "<0xE2>"
            data = bytes.fromhex(self._tokenizer.convert_ids_to_tokens([token_id])[0][3:5])
        elif self._neighbour is None or before is None:
            text = self.decode([token_id])
            return text[: len(text) - (0 if self._neighbour is None else self.unsettled(token_id))]
        else:
            return self._added(before, token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    # -- how it is read

    def _find_neighbour(self) -> int | None:
        """A token to put others next to, to see what becomes of them: it has text that another one after it
        does not change."""
        for token_id in range(self._size):
            if token_id not in self.special_ids and token_id not in self.byte_ids:
                text = self._text_of(token_id) or ""
                seen = text.strip() and "\ufffd" not in text
                if seen and self.decode([token_id, token_id]).startswith(text):
                    return token_id
        return None

    def _samples(self) -> list[list[int]]:
        """Ids to try readers on: a text's, random ones, and both mixed; each mark twice, far apart."""
        text: list[int] = []
        with suppress(Exception):  # a vocabulary may lack both a character and a token for what is unknown
            text = self._tokenizer.encode(_TEXT, add_special_tokens=False, verbose=False)
        added = list(self._tokenizer.added_tokens_decoder)
        kinds: list[Sequence[int]] = [text, range(self._size), added, sorted(self.byte_ids)]
        pools, rng = [kind for kind in kinds if kind], random.Random(0)
        random_ids = [
            [rng.choice(rng.choice(pools)) for _ in range(_TOKENS)] for _ in range(_SAMPLES) if pools
        ]
        if self._neighbour is not None:
            between = [self._neighbour] * _FAR
            marks = [i for i in dict.fromkeys(text) if not any(map(str.isalnum, self._text_of(i) or ""))]
            random_ids += [[mark, *between, mark, self._neighbour, mark] for mark in marks]
        return [[i for i in ids if self._text_of(i) is not None] for ids in (text, *random_ids)]

    def _text_of(self, token_id: int) -> str | None:
        """None: it is no token."""
        with suppress(*_NO_TOKEN):
            return self.decode([token_id])
        return None

    def _fastest(self, samples: Sequence[Sequence[int]], skip: bool) -> type[Reader]:
        """The fastest way of reading that gives the tokenizer's own text in a trial."""
        hidden = self.special_ids if skip else frozenset[int]()
        shown = [[i for i in ids if i not in hidden] for ids in samples]
        if self.token_bytes is not None and reads(ByteReader, self, shown):
            return ByteReader
        if self._neighbour is not None and reads(WindowReader, self, shown):
            return WindowReader
        logger.warning(
            "%s: what a token adds to a text depends on more than its neighbours; with special tokens %s, "
            "streamed text comes at its end",
            type(self._tokenizer).__name__,
            "skipped" if skip else "shown",
        )
        return WholeReader


# What decode raises for an id that is no token.
_NO_TOKEN: Final = (IndexError, KeyError, ValueError, TypeError, OverflowError)


def _ids(tokenizer: PreTrainedTokenizerBase, names: list[str]) -> list[int | None]:
    """The ids of tokens; None, or that of what is unknown, where there is no such token."""
    return cast("list[int | None]", tokenizer.convert_tokens_to_ids(names))


def _clean_up(tokenizer: PreTrainedTokenizerBase, backend: Any) -> Callable[[str], str] | None:
    """The cleaning up of spaces that is part of the tokenizer's decode."""
    if not tokenizer.clean_up_tokenization_spaces or (
        # transformers' own exception, see TokenizersBackend._decode
        backend is not None
        and type(backend.model).__name__ == "BPE"
        and not tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    ):
        return None
    return tokenizer.clean_up_tokenization


def _plain_decode(tokenizer: PreTrainedTokenizerBase, backend: Any) -> Callable[[Sequence[int]], str]:
    """The tokenizer's decode without edits."""
    from transformers import TokenizersBackend, WhisperTokenizer

    if backend is not None and type(tokenizer)._decode in (
        TokenizersBackend._decode,
        WhisperTokenizer._decode,
    ):
        # Four times faster than through the wrapper.
        decode = backend.decode
        return lambda ids: decode(ids, False)
    # A copy that shares all its parts: PLBart's decode takes no word on cleaning up.
    plain: Any = object.__new__(type(tokenizer))
    vars(plain).update(vars(tokenizer))
    plain.clean_up_tokenization_spaces = False
    return lambda ids: str(plain.decode(list(ids)))


def _decoder_types(backend: object) -> list[str]:
    """The types of a `tokenizers.Tokenizer`'s decoders; its pickled state is the only way to read them."""
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return [part["type"] for part in state.get("decoders", [state])]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable ones stand for themselves, others for 256 + n."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET: Final = _byte_level_alphabet()


def _byte_level(token: str | None) -> bytes:
    if token is None:  # an id beyond the vocabulary: `tokenizers` skips it
        return b""
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:  # an added token, as it is written
        return token.encode()
