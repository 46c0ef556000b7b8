"""How a file's bytes are text: by its byte order mark, as it says itself, or in UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Final

from tandem.errors import InvalidRequest
from tandem.lines import MARKS

# The encodings of pages (WHATWG's standard), by Python's names of what their labels mean: browsers read
# several as the larger ones that came after them.
_ENCODINGS: Final[Mapping[str, str]] = {
    "utf-8": "utf-8", "ascii": "cp1252", "iso8859-1": "cp1252", "cp1252": "cp1252",
    "iso8859-9": "cp1254", "cp1254": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874", "cp874": "cp874",
    **{name: name for name in (
        *(f"iso8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
        *(f"cp125{page}" for page in (0, 1, 3, 5, 6, 7, 8)),
        "cp866", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "gb18030", "big5hkscs",
        "euc_jp", "iso2022_jp",
    )},
    "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "cp932": "cp932",
    "euc_kr": "cp949", "cp949": "cp949",
    # A page whose bytes can be read as ASCII so far is not in UTF-16, whatever it says.
    "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8",
}  # fmt: skip
_LABELS: Final[Mapping[str, str]] = {  # those that Python does not know
    "x-mac-cyrillic": "mac-cyrillic", "x-mac-roman": "mac-roman", "x-sjis": "shift_jis", "unicode": "utf-16",
    "windows-874": "cp874", "dos-874": "cp874", "x-gbk": "gbk", "x-x-big5": "big5", "windows-949": "cp949",
    "x-euc-jp": "euc_jp", "iso-8859-8-i": "iso8859-8", "unicode-1-1-utf-8": "utf-8",
    **{f"x-cp125{page}": f"cp125{page}" for page in range(9)},
}  # fmt: skip


def decoded(data: bytes, label: str | None = None) -> tuple[str, str]:
    """A file's text, without its byte order mark, and the encoding that writes it again.

    `label`: what it says of its encoding. Raises InvalidRequest for what is not text in it.
    """
    said = label and _encoding(label)
    encoding = _marked(data) or said or "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeError:
        raise InvalidRequest(f"is not {encoding.upper()}: save it as UTF-8", field="file") from None
    if "\0" in text:
        raise InvalidRequest("has NUL bytes, as UTF-16 without a mark has: save it as UTF-8", field="file")
    return text, encoding


def _marked(data: bytes) -> str | None:
    marks = {codecs.BOM_UTF8: "utf-8-sig", **MARKS}
    return next((name.lower() for mark, name in marks.items() if data.startswith(mark)), None)


def _encoding(label: str) -> str:
    """The encoding of a label. Raises InvalidRequest for one that pages do not have."""
    name = _LABELS.get(label.lower(), label)
    try:
        encoding = _ENCODINGS.get(codecs.lookup(name).name)
    except (LookupError, ValueError):
        encoding = None
    if encoding is None:
        raise InvalidRequest(f"is not {label.upper():.40}: save it as UTF-8", field="file")
    return encoding
