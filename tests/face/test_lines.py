"""Files of lines: what ends a line, and what is said of other encodings."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import InvalidRequest
from tandem.lines import one_line, read_text_lines


def lines(data: bytes) -> list[str | InvalidRequest]:
    return list(read_text_lines(io.BytesIO(data)))


def test_a_line_ends_with_a_line_feed_and_nothing_else() -> None:
    assert lines("\ufeffone\ntwo\r\n\r\n\nlast".encode()) == ["one", "two", "", "", "last"]
    within = "a\rb\u2028c\u2029d\x85e\x0bf\x0cg\x1ch"
    assert lines(f"{within}\n{within}\r\n".encode()) == [within, within]
    assert lines("one\n\ufefftwo".encode()) == ["one", "\ufefftwo"], "a mark is one at the beginning only"
    assert lines(b"") == []
    assert lines("\ufeff".encode()) == [""]
    assert lines(b"\n") == [""]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"))))
def test_lines_come_back(texts: list[str]) -> None:
    for end in ("\n", "\r\n"):
        written = "".join(text.rstrip("\r") + end for text in texts).encode()
        assert lines(b"\xef\xbb\xbf" + written) == [text.rstrip("\r") for text in texts] or not texts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("hé\n".encode("utf-16"), "is UTF-16, not UTF-8; convert it, as by iconv -f UTF-16 -t UTF-8"),
        (b"\xfe\xff" + "hé\n".encode("utf-16-be"), "is UTF-16, not UTF-8"),
        ("hé\n".encode("utf-32"), "is UTF-32, not UTF-8; convert it, as by iconv -f UTF-32 -t UTF-8"),
        ("hé\n".encode("utf-16-le"), "has NUL bytes, as UTF-16 has; convert it, as by iconv -f UTF-16LE"),
        ("привет\nмир\n".encode("utf-16-le"), "has NUL bytes, as UTF-16 has"),
        ("привет\nмир\n".encode("utf-16-be"), "has NUL bytes, as UTF-16 has"),
    ],
)  # fmt: skip
def test_other_encodings_are_named(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        lines(data)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"h\xe9", "byte 0xE9: not UTF-8; convert it, as by iconv -f LATIN1 -t UTF-8"),
        (b"\xff", "byte 0xFF: not UTF-8"),
        (b"a\0b", "has NUL bytes, as UTF-16 has"),
    ],
)
def test_a_line_that_is_not_utf_8_leaves_the_others(line: bytes, message: str) -> None:
    texts = lines(b"\xef\xbb\xbfa\nb\n" + line + b"\nc")
    assert [text for text in texts if isinstance(text, str)] == ["a", "b", "c"]
    assert isinstance(texts[2], InvalidRequest)
    assert str(texts[2]).startswith(message)


def test_an_answer_is_one_line() -> None:
    assert one_line("a\nb\r\nc\rd\u2028e\x85f\x0bg") == "a b c d e f g"


@given(st.text())
def test_an_answer_is_one_line_to_every_reader(text: str) -> None:
    assert len(one_line(f"{text}.").splitlines()) == 1
