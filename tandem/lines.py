"""Files of lines: UTF-8, with or without a byte order mark.

Lines that are read end with a line feed, or a carriage return and a line feed, as they do for `wc`, and
with nothing else: a carriage return alone, U+2028, U+0085, a vertical tab and a form feed are parts of texts.
Lines that are written have none of these within, so that line n is line n to every reader.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from tandem.errors import InvalidRequest

MARKS: Final = {  # byte order marks; longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_NUL: Final = b"\0"
_LINE_END: Final = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # those of str.splitlines


def read_lines(file: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a binary file, without their ends and without the byte order mark of the first.

    Raises InvalidRequest where the file begins as one in another encoding. The second line says it, too:
    UTF-16's line feeds have a NUL after them, or before.
    """
    lines = iter(file)
    first, second = next(lines, None), next(lines, None)
    if first is None:
        return
    if name := next((name for mark, name in MARKS.items() if first.startswith(mark)), None):
        raise InvalidRequest(f"is {name}, not UTF-8; {_convert(name)}")
    if _NUL in first or (second is not None and second.startswith(_NUL)):
        raise InvalidRequest(has_nul())
    for line in chain([first.removeprefix(codecs.BOM_UTF8)], [] if second is None else [second], lines):
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def read_text_lines(file: Iterable[bytes]) -> Iterator[str | InvalidRequest]:
    """The lines of a binary file as texts; in the place of one that is not UTF-8, or has NUL bytes, what is
    wrong with it. Raises InvalidRequest as `read_lines`."""
    for line in read_lines(file):
        if _NUL in line:
            yield InvalidRequest(has_nul())
            continue
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            yield InvalidRequest(not_utf8(line, error))


def has_nul() -> str:
    """What is wrong with a file or a line that has NUL bytes, and what to do."""
    return f"has NUL bytes, as UTF-16 has; {_convert('UTF-16LE')}"


def not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    """What is wrong with a line that is not UTF-8, and what to do."""
    return f"byte 0x{line[error.start]:02X}: not UTF-8; {_convert('LATIN1')}"


def one_line(text: str) -> str:
    """A text as one line of a file: line ends within become spaces."""
    return _LINE_END.sub(" ", text)


def _convert(encoding: str) -> str:
    return f"convert it, as by iconv -f {encoding} -t UTF-8"
