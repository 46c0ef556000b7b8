"""One sequence's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.workers.requests.answers.detokenizer.vocabulary import Vocabulary


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
        self._vocabulary = vocabulary
        self._hidden = vocabulary.special_ids if skip_special_tokens else frozenset[int]()
        marks = vocabulary.earlier_text if skip_special_tokens else None
        self._transcript = None if marks is None else _Transcript(*marks)
        if self._transcript is not None:
            context_ids = self._transcript.of(context_ids)
        context = [i for i in vocabulary.tokens(context_ids) if i not in self._hidden]
        self._reader = vocabulary.reader(skip_special_tokens)(vocabulary, context)
        self._edits = [edit() for edit in vocabulary.edits]

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds ids; returns the text that has become final, "" if none has."""
        if self._transcript is not None:
            token_ids = self._transcript.of(token_ids)
        token_ids = self._vocabulary.tokens(token_ids)
        if self._hidden:
            token_ids = [i for i in token_ids if i not in self._hidden]
        text = self._reader.push(token_ids) if token_ids else ""
        for edit in self._edits:
            text = edit.push(text)
        return text

    def flush(self) -> str:
        """The rest, once no more ids will come."""
        text = self._reader.flush()
        for edit in self._edits:
            text = edit.push(text) + edit.flush()
        return text


class _Transcript:
    """Ids without the earlier text that Whisper's may begin with, from one mark to the other: its decode
    leaves that out with the special tokens."""

    def __init__(self, begins: int | None, ends: int | None) -> None:
        self._begins, self._ends = begins, ends
        self._left_out: bool | None = None  # None: no id has been seen

    def of(self, ids: Sequence[int]) -> Sequence[int]:
        if self._left_out is None and ids:
            self._left_out = ids[0] == self._begins
        if not self._left_out:
            return ids
        if self._ends not in ids:
            return []
        self._left_out = False
        return ids[ids.index(self._ends) :]
