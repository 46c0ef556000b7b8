"""Files of lines: UTF-8, with or without a byte order mark.

Lines that are read end with a line feed, or a carriage return and a line feed, as they do for `wc`, and
with nothing else: a carriage return alone, U+2028, U+0085, a vertical tab and a form feed are parts of texts.
Lines that are written have none of these within, so that line n is line n to every reader.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import Final

from tandem.errors import InvalidRequest

MARKS: Final = {  # byte order marks; longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LINE_END: Final = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # those of str.splitlines


def read_lines(file: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a binary file, without their ends and without the byte order mark of the first.

    Raises InvalidRequest where the file begins as one in another encoding.
    """
    for number, line in enumerate(file):
        if number == 0:
            if name := next((name for mark, name in MARKS.items() if line.startswith(mark)), None):
                raise InvalidRequest(f"is {name}, not UTF-8; {_convert(name)}")
            if b"\0" in line:
                raise InvalidRequest(f"line 1 has NUL bytes, as UTF-16 has; {_convert('UTF-16LE')}")
            line = line.removeprefix(codecs.BOM_UTF8)
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def read_text_lines(file: Iterable[bytes]) -> list[str]:
    """The lines of a binary file as texts. Raises InvalidRequest, naming the line, where one is not UTF-8."""
    texts = []
    for number, line in enumerate(read_lines(file), 1):
        try:
            texts.append(line.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"line {number}, {not_utf8(line, error)}") from None
    return texts


def not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    """What is wrong with a line that is not UTF-8, and what to do."""
    return f"byte 0x{line[error.start]:02X}: not UTF-8; {_convert('LATIN1')}"


def one_line(text: str) -> str:
    """A text as one line of a file: line ends within become spaces."""
    return _LINE_END.sub(" ", text)


def _convert(encoding: str) -> str:
    return f"convert it, as by iconv -f {encoding} -t UTF-8"
