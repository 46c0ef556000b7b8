"""Files that are translated whole, by the ends of their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Final, Protocol

from tandem.cluster.ingress.http.libretranslate.charsets import decoded
from tandem.cluster.ingress.http.libretranslate.markup import Markup
from tandem.cluster.ingress.http.libretranslate.phrases import Phrase
from tandem.cluster.ingress.http.libretranslate.subtitles import Subtitles
from tandem.errors import InvalidRequest
from tandem.lines import one_line

_CHARSET: Final = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w:.-]+)", re.IGNORECASE)
_HEAD: Final = 1024  # bytes, in which HTML has its charset
_LINE_ENDS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # those of str.splitlines
_MOST_LINES: Final = 500_000  # in one file; each takes some 300 bytes


class Translatable(Protocol):
    """A file, parsed: phrases to translate, and what is around them."""

    @property
    def phrases(self) -> Sequence[Phrase]: ...

    @property
    def text(self) -> str:
        """What is to be translated, for its language to be detected."""

    def render(self, translations: Sequence[Sequence[str]]) -> bytes:
        """The file with the translations of each phrase's pieces in their place."""


def read_file(name: str, data: bytes) -> Translatable:
    """Raises InvalidRequest for a kind of file that is not known, and for a file that is not of its kind."""
    kind = FORMATS.get(PurePath(name).suffix.lower())
    if kind is None:
        raise InvalidRequest("Invalid request: file format not supported")  # LibreTranslate's words
    return kind(data)


class _Text:
    """A plain text: each line is a phrase, whose white space counts."""

    def __init__(self, data: bytes) -> None:
        self.text, self._encoding = decoded(data)
        _check_lines(self.text)
        self._lines = self.text.splitlines(keepends=True)
        self.phrases = [Phrase.of(line) for line in self._lines if line.strip()]

    def render(self, translations: Sequence[Sequence[str]]) -> bytes:
        made = iter(translations)
        lines = (_in_place(line, *next(made)) if line.strip() else line for line in self._lines)
        return "".join(lines).encode(self._encoding)


def _in_place(line: str, translation: str) -> str:
    """A translation as one line, in the line's white space."""
    text = line.strip()
    return line.replace(text, one_line(translation.strip()), 1)


def _check_lines(text: str) -> None:
    """Raises InvalidRequest for a text of more lines than there is room for."""
    if len(text) > _MOST_LINES and sum(map(text.count, _LINE_ENDS)) - text.count("\r\n") > _MOST_LINES:
        raise InvalidRequest(f"has more than {_MOST_LINES} lines: split it", field="file")


class _Parsed:
    """A text that a parser knows."""

    def __init__(
        self, parse: Callable[[str], Markup | Subtitles], data: bytes, charset: str | None = None
    ) -> None:
        source, self._encoding = decoded(data, charset)
        _check_lines(source)
        self._parsed = parse(source)
        self.phrases, self.text = self._parsed.phrases, self._parsed.text

    def render(self, translations: Sequence[Sequence[str]]) -> bytes:
        return self._parsed.render(translations).encode(self._encoding, "xmlcharrefreplace")


def _html(data: bytes) -> Translatable:
    said = _CHARSET.search(data[:_HEAD])
    return _Parsed(Markup, data, said[1].decode() if said else None)


def _docx(data: bytes) -> Translatable:
    from tandem.cluster.ingress.http.libretranslate.word_document import WordDocument

    return WordDocument(data)


FORMATS: Final[dict[str, Callable[[bytes], Translatable]]] = {
    ".txt": _Text,
    ".srt": lambda data: _Parsed(Subtitles, data),
    ".html": _html,
    ".htm": _html,
    ".docx": _docx,
}
