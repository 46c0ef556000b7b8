"""What decode does to a whole text, on one that comes piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import whisper, words

from tandem.workers.requests.answers.detokenizer.edits import CleanUp, Edit, WithoutTimestamps


def edited(edit: Edit, pieces: list[str]) -> str:
    return "".join(map(edit.push, pieces)) + edit.flush()


@given(pieces=st.lists(st.text(alphabet=" .'?!,nsmtvre", max_size=5), max_size=12))
def test_clean_up(pieces: list[str]) -> None:
    clean_up = words().clean_up_tokenization
    assert edited(CleanUp(clean_up), pieces) == clean_up("".join(pieces))


@given(pieces=st.lists(st.text(alphabet="<|1.>", max_size=5), max_size=12))
def test_timestamps(pieces: list[str]) -> None:
    expected = whisper()._filter_timestamp_ids("".join(pieces))  # type: ignore[attr-defined]
    assert edited(WithoutTimestamps(), pieces) == expected


@pytest.mark.parametrize("text", ["<|<|1.0|>1.0|>", "a <|1.0", "<|1.0|><|2.00|>", "<|1.0.0|>", "<|٣.٠|>"])
def test_what_reads_as_a_timestamp(text: str) -> None:
    expected = whisper()._filter_timestamp_ids(text)  # type: ignore[attr-defined]
    assert edited(WithoutTimestamps(), list(text)) == expected


def test_text_is_held_only_where_it_may_change() -> None:
    edit = WithoutTimestamps()
    assert [edit.push(piece) for piece in ("a <", "b<|", "1.", "x", "<|2.0|>", "<")] == (
        ["a ", "<b", "", "<|1.x", "", ""]
    )
    assert edit.flush() == "<"
