"""Files that are translated whole, by the ends of their names."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Final, Protocol

from tandem.cluster.ingress.http.libretranslate.markup import Markup
from tandem.cluster.ingress.http.libretranslate.phrases import Phrase
from tandem.cluster.ingress.http.libretranslate.subtitles import Subtitles
from tandem.errors import InvalidRequest

_MARKS: Final = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CHARSET: Final = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w:.-]+)", re.IGNORECASE)
_HEAD: Final = 1024  # bytes, in which HTML has its charset


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
        raise InvalidRequest(f"Invalid request: file format not supported, only {', '.join(FORMATS)}")
    return kind(data)


class _Text:
    """A plain text: each line is a phrase."""

    def __init__(self, data: bytes) -> None:
        self.text, self._encoding = _decoded(data, None)
        self._lines = self.text.splitlines(keepends=True)
        self.phrases = [Phrase.of(line) for line in self._lines if line.strip()]

    def render(self, translations: Sequence[Sequence[str]]) -> bytes:
        made = iter(translations)
        lines = ("".join(next(made)) if line.strip() else line for line in self._lines)
        return "".join(lines).encode(self._encoding)


class _Parsed:
    """A text that a parser knows."""

    def __init__(
        self, parse: Callable[[str], Markup | Subtitles], data: bytes, charset: str | None = None
    ) -> None:
        source, self._encoding = _decoded(data, charset)
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


def _decoded(data: bytes, charset: str | None) -> tuple[str, str]:
    """A file's text and its encoding: by its byte order mark, else as it says itself, else UTF-8."""
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    encoding = marked or charset or "utf-8"
    try:
        return data.decode(encoding), encoding
    except (UnicodeDecodeError, LookupError):
        raise InvalidRequest(f"is not {encoding.upper()}: save it as UTF-8", field="file") from None
