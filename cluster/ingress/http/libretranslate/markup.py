"""HTML, whose text is translated and whose markup stays as it is, byte for byte."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import accumulate
from typing import Final, Literal

from tandem.cluster.ingress.http.libretranslate.phrases import Phrase, Piece

# fmt: off
# Elements within a sentence: HTML's phrasing content that holds text.
_INLINE: Final = frozenset([
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i",
    "ins", "kbd", "label", "mark", "nobr", "output", "q", "rp", "rt", "ruby", "s", "samp", "small", "span",
    "strike", "strong", "sub", "sup", "time", "tt", "u", "var",
])
# Elements whose text is no prose. LibreTranslate leaves these, and what is marked translate="no".
_KEPT: Final = frozenset([
    "address", "applet", "audio", "canvas", "code", "embed", "iframe", "kbd", "math", "noembed", "noframes",
    "object", "samp", "script", "style", "svg", "template", "time", "var", "video", "xmp",
])
_VOID: Final = frozenset([
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
])
# fmt: on
_PREFORMATTED: Final = frozenset(["pre", "textarea", "listing"])


@dataclass(frozen=True, slots=True)
class _Span:
    """A piece of text and where it is in the source."""

    start: int
    end: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class _Event:
    kind: Literal["text", "start", "end", "void", "other"]
    start: int
    name: str = ""
    kept: bool = False  # the element is not to be translated


class Markup:
    """A document or a part of one, parsed."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._groups = _Grouping(source).groups
        self.phrases = [Phrase(tuple(span.piece for span in group)) for group in self._groups]

    @property
    def text(self) -> str:
        """What is to be translated, without markup."""
        return "\n".join(phrase.whole for phrase in self.phrases)

    def render(self, translations: Sequence[Sequence[str]]) -> str:
        """The source with each phrase's pieces in place of its own."""
        parts: list[str] = []
        at = 0
        for group, texts in zip(self._groups, translations, strict=True):
            for span, text in zip(group, texts, strict=True):
                if text != span.piece.text:
                    parts += [self._source[at : span.start], _escaped(text)]
                    at = span.end
        return "".join([*parts, self._source[at:]])


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("\xa0", "&nbsp;")


class _Grouping:
    """Cuts a source into groups of spans: the text of a paragraph, list item, heading …"""

    def __init__(self, source: str) -> None:
        self.groups: list[list[_Span]] = []
        self._source = source
        self._spans: list[_Span] = []
        self._depth = 0  # of inline elements that the group has opened
        self._preformatted = 0
        self._start = 0  # of the text that has not become a span
        self._kept: str | None = None  # the element that is left as it is, and how often it is open
        self._open = 0
        events = _Events(source)
        ends = [*(event.start for event in events.found[1:]), events.end]
        for event, end in zip(events.found, ends, strict=False):
            self._take(event, end)
        self._finish(events.end)

    def _take(self, event: _Event, end: int) -> None:
        if self._kept is not None:
            self._open += (event.name == self._kept) * ((event.kind == "start") - (event.kind == "end"))
            if self._open == 0:
                self._keep_until(end)
        elif event.kind == "start" and event.kept:
            if event.name in _INLINE:
                self._span(event.start)
            else:
                self._finish(event.start)
            self._kept, self._open, self._start = event.name, 1, event.start
        elif event.kind == "other" or (event.kind in ("start", "end") and event.name in _INLINE):
            self._mark(event, end)
        elif event.kind != "text":
            self._finish(event.start)
            self._start = end
            if event.name in _PREFORMATTED:
                self._preformatted = max(0, self._preformatted + (1 if event.kind == "start" else -1))

    def _mark(self, event: _Event, end: int) -> None:
        """Markup within a sentence; the end of an element that began before the group ends the group."""
        step = (event.kind == "start") - (event.kind == "end")
        if self._depth + step < 0:
            self._finish(event.start)
        else:
            self._span(event.start)
            self._depth += step
        self._start = end

    def _keep_until(self, end: int) -> None:
        inline = self._kept in _INLINE
        self._kept = None
        if inline:
            text = re.sub(r"<[^>]*>", "", self._source[self._start : end])
            self._spans.append(_Span(self._start, end, Piece(html.unescape(text), kept=True)))
        self._start = end

    def _span(self, end: int) -> None:
        text = html.unescape(self._source[self._start : end])
        self._spans.append(_Span(self._start, end, Piece(text, marked=self._depth > 0)))

    def _finish(self, end: int) -> None:
        if self._kept is None:
            self._span(end)
        spans, self._spans, self._depth = self._spans, [], 0
        if self._preformatted:
            self.groups += [[line] for span in spans if not span.piece.kept for line in self._lines(span)]
        elif not all(span.piece.blank or span.piece.kept for span in spans):
            self.groups.append(spans)

    def _lines(self, span: _Span) -> Iterator[_Span]:
        """The lines of a text in which they count."""
        for match in re.finditer(r"[^\r\n]*[^\s][^\r\n]*", self._source[span.start : span.end]):
            text = html.unescape(match.group())
            yield _Span(span.start + match.start(), span.start + match.end(), Piece(text))


class _Events(HTMLParser):
    """Where markup and text begin in a source.

    `end`: where markup begins that is not complete, or the source's end. `close` is not called: it would look
    at such markup again and again.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[_Event] = []
        lines = re.split("(?<=\n)", source)
        self._lines = [0, *accumulate(map(len, lines))]
        self.feed(source + "\n")  # which ends a character reference at the end
        self.end = min(len(source), len(source) + 1 - len(self.rawdata))

    def _add(
        self, kind: Literal["text", "start", "end", "void", "other"], name: str = "", kept: bool = False
    ) -> None:
        line, column = self.getpos()
        self.found.append(_Event(kind, self._lines[line - 1] + column, name, kept))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        no = (given.get("translate") or "").lower() == "no" or "notranslate" in (
            given.get("class") or ""
        ).split()
        self._add("void" if tag in _VOID else "start", tag, no or tag in _KEPT)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._add("void", tag)

    def handle_endtag(self, tag: str) -> None:
        self._add("end", tag)

    def handle_data(self, data: str) -> None:  # noqa: ARG002
        self._add("text")

    def handle_comment(self, data: str) -> None:  # noqa: ARG002
        self._add("other")

    def handle_decl(self, decl: str) -> None:  # noqa: ARG002
        self._add("void")

    def handle_pi(self, data: str) -> None:  # noqa: ARG002
        self._add("void")

    def unknown_decl(self, data: str) -> None:  # noqa: ARG002
        self._add("void")
