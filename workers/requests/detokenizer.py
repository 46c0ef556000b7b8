"""Token ids to text, piece by piece, as they are generated.

`tokenizers.DecodeStream` lacks a flush at the end and tokenizers that are written in Python (ByT5, Marian),
and its answers are wrong where malformed bytes change text that it has already let out.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT_TOKENS: Final = 4  # a token's text depends on its neighbours to the left, in practice on one


class Vocabulary:
    """The part of a tokenizer that detokenizers read. One for a model, shared by all threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformers import ByT5Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoders = _decoder_types(backend) if backend is not None else []
        added = tokenizer.added_tokens_decoder
        self.special_ids: frozenset[int] = (
            frozenset(tokenizer.all_special_ids)
            if backend is None
            else frozenset(i for i, token in added.items() if token.special)
        )
        self.token_bytes: Callable[[int], bytes] | None = None
        self.malformed: str = "replace"  # what the tokenizer's own decode does with malformed UTF-8
        if decoders == ["ByteLevel"]:
            self.token_bytes = lambda i: _byte_level(tokenizer.convert_ids_to_tokens([i])[0])
        elif isinstance(tokenizer, ByT5Tokenizer):
            names = {i: token.content.encode() for i, token in added.items()}
            self.token_bytes = lambda i: (
                names.get(i) or bytes(ord(char) for char in tokenizer.convert_ids_to_tokens([i])[0])
            )
            self.malformed = "ignore"
        # Ids that stand for one byte, in tokenizers whose other tokens are text.
        self.byte_ids: frozenset[int] = frozenset()
        if self.token_bytes is None:
            names_of_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
            ids = map(tokenizer.convert_tokens_to_ids, names_of_bytes)
            self.byte_ids = frozenset(i for i in ids if isinstance(i, int) and i != tokenizer.unk_token_id)
        self.clean_up: Callable[[str], str] | None = None
        if tokenizer.clean_up_tokenization_spaces and not (
            # transformers' own exception, see PreTrainedTokenizerFast._decode
            backend is not None
            and type(backend.model).__name__ == "BPE"
            and not tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
        ):
            self.clean_up = tokenizer.clean_up_tokenization
        self._tokenizer, self._backend = tokenizer, backend
        self._token_texts: dict[tuple[int, bool], str] = {}

    def token_text(self, token_id: int, *, first: bool = False) -> str:
        """What a token by itself adds to a text, for showing it; at the beginning of a text if `first`.
        A part of a character is shown as OpenAI does: `bytes:\\xe2\\x82`."""
        text = self._token_texts.get((token_id, first))
        if text is None:
            text = self._token_texts[token_id, first] = self._show(token_id, first)
        return text

    def _show(self, token_id: int, first: bool) -> str:
        if self.token_bytes is None and token_id not in self.byte_ids:
            if first:
                return self.decode([token_id])
            return self.decode([token_id, token_id])[len(self.decode([token_id])) :]
        if self.token_bytes is not None:
            data = self.token_bytes(token_id)
        else:  # "<0xE2>"
            data = bytes.fromhex(self._tokenizer.convert_ids_to_tokens([token_id])[0][3:5])
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special ones included, before any cleaning up of spaces."""
        if self._backend is not None:  # four times faster than through the wrapper
            return str(self._backend.decode(ids, skip_special_tokens=False))
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


class Detokenizer:
    """One sequence's text. The pieces, then `flush()`, make up the tokenizer's own
    `decode(all ids, skip_special_tokens=…)`; no piece is ever taken back, and none ends within a
    character. Work per token does not grow with the length of the sequence.

    `context_ids` is text the sequence goes on from, such as a decoder prompt: it is not repeated, but
    the first piece keeps the space that sets it off.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, skip_special_tokens: bool = True, context_ids: Sequence[int] = ()
    ) -> None:
        self._skipped = vocabulary.special_ids if skip_special_tokens else frozenset[int]()
        context = [i for i in context_ids if i not in self._skipped]
        self._text: _Text = (
            _Window(vocabulary, context) if vocabulary.token_bytes is None else _Bytes(vocabulary, context)
        )
        self._spaces = _Spaces(vocabulary.clean_up) if vocabulary.clean_up is not None else None

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds ids; returns the text that has become final, "" if none has."""
        if self._skipped:
            token_ids = [i for i in token_ids if i not in self._skipped]
        text = self._text.push(token_ids) if token_ids else ""
        return self._spaces.push(text) if self._spaces is not None else text

    def flush(self) -> str:
        """The rest, once no more ids will come."""
        text = self._text.flush()
        return self._spaces.push(text) + self._spaces.flush() if self._spaces is not None else text


class _Text(Protocol):
    def push(self, ids: Sequence[int]) -> str: ...
    def flush(self) -> str: ...


class _Bytes:
    """For tokenizers whose tokens are bytes throughout: byte-level BPE, ByT5."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int]) -> None:
        assert vocabulary.token_bytes is not None
        self._bytes = vocabulary.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(vocabulary.malformed)
        self.push(context[-_CONTEXT_TOKENS:])  # the prompt may end within a character

    def push(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(b"".join(map(self._bytes, ids)))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Window:
    """For all other tokenizers. A piece is what the new tokens add to the text of the few tokens before them:
    decoded alone, a SentencePiece token would lose its space, a WordPiece would gain one.

    A run of byte tokens is held until it ends, since `tokenizers` replaces all of a run, whole
    characters too, if any part of it is malformed.
    """

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._pending: list[int] = []
        self._run = 0  # byte tokens at the end of `_pending`
        self._remember(context)

    def push(self, ids: Sequence[int]) -> str:
        for token_id in ids:
            self._run = self._run + 1 if token_id in self._vocabulary.byte_ids else 0
        self._pending += ids
        return self._take(len(self._pending) - self._run)

    def flush(self) -> str:
        return self._take(len(self._pending))

    def _take(self, count: int) -> str:
        if not count:
            return ""
        ids = self._context + self._pending[:count]
        piece = self._vocabulary.decode(ids)[len(self._base) :]
        del self._pending[:count]
        self._remember(ids)
        return piece

    def _remember(self, ids: Sequence[int]) -> None:
        self._context = list(ids[-_CONTEXT_TOKENS:])
        while self._context and self._context[-1] in self._vocabulary.byte_ids:
            self._context.pop()  # only a prompt ends so; its last bytes could merge with the next
        self._base = self._vocabulary.decode(self._context) if self._context else ""


class _Spaces:
    """`PreTrainedTokenizerBase.clean_up_tokenization` on a stream: lets text out at cuts that none of
    its replacements (" ." → ".", " ' " → "'", " n't" → "n't", …; at most four characters) can span.
    """

    def __init__(self, clean_up: Callable[[str], str]) -> None:
        self._clean_up, self._held = clean_up, ""

    def push(self, text: str) -> str:
        seen, self._held = len(self._held), self._held + text
        for cut in range(len(self._held), max(seen - 1, 0), -1):
            if self._safe(cut):
                ready, self._held = self._held[:cut], self._held[cut:]
                return self._clean_up(ready)
        return ""

    def flush(self) -> str:
        ready, self._held = self._held, ""
        return self._clean_up(ready)

    def _safe(self, cut: int) -> bool:
        before = self._held[max(cut - 4, 0) : cut]
        if self._held[cut : cut + 1] == " ":  # replacements begin with a space; " ' " also ends with one
            return not before.endswith((" ", " '", " n"))
        return len(before) == 4 and " " not in before and "'" not in before


class StopStrings:
    """Watches text for stop strings. Text that may be the beginning of one is held back.

    The match is the one that ends first (of those, the longest), so that it does not depend on how
    the text was cut into pieces; the text ends where the match begins.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.matched: str | None = None  # the stop string found; from then on nothing more comes out

    def push(self, text: str) -> str:
        """Adds text; returns what is certainly before any stop string."""
        if self.matched is not None or not text:
            return ""
        text = self._held + text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.matched = min(ends)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself excepted."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


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
