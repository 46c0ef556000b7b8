"""HTML, whose text is translated and whose markup stays as it is, byte for byte."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import accumulate
from typing import Final, Literal

from tandem.cluster.ingress.http.libretranslate.open_elements import INLINE, OpenElement
from tandem.cluster.ingress.http.libretranslate.phrases import Phrase, Piece
from tandem.errors import InvalidRequest

# fmt: off
# Elements whose text is no prose. LibreTranslate leaves these, and what is marked translate="no".
_KEPT: Final = frozenset([
    "address", "applet", "audio", "canvas", "code", "embed", "iframe", "kbd", "math", "noembed", "noframes",
    "object", "samp", "script", "style", "svg", "template", "time", "var", "video", "xmp",
])
# Those of them that may stand within a sentence and are no part of its words.
_EMBEDDED: Final = frozenset([
    "applet", "audio", "canvas", "embed", "iframe", "math", "object", "script", "style", "svg", "template",
    "video",
])
_VOID: Final = frozenset([
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
])
# fmt: on
_BREAKS: Final = frozenset(["br", "hr"])  # the void ones that end a sentence
_PREFORMATTED: Final = frozenset(["pre", "textarea", "listing"])
_MOST_EVENTS: Final = 500_000  # tags and texts of one document; each takes some 300 bytes

_Kind = Literal["text", "start", "end", "void", "other"]


@dataclass(frozen=True, slots=True)
class _Span:
    """A piece of text and where it is in the source."""

    start: int
    end: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class _Event:
    kind: _Kind  # "void" ends a sentence, "other" stands within one
    start: int
    name: str = ""
    translate: bool | None = None  # whether the element is to be translated; None: as what it stands in


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
        self._depth = 0  # how many inline elements the group has open
        self._preformatted = 0
        self._start = 0  # where the text begins that has not become a span
        # Elements in one another: the first is left as it is, the second one in it is translated, and so on.
        self._marked: list[OpenElement] = []
        self._texts: list[str] = []  # what the element that is left as it is holds
        events = _Events(source)
        ends = [*(event.start for event in events.found[1:]), events.end]
        for event, end in zip(events.found, ends, strict=False):
            self._take(event, end)
        self._finish(events.end)

    @property
    def _kept(self) -> OpenElement | None:
        """The innermost element that is left as it is, if the source is within it now."""
        return self._marked[-1] if len(self._marked) % 2 else None

    def _take(self, event: _Event, end: int) -> None:
        ended: bool | None = False
        while self._marked and (ended := self._ends(event)) is None:
            self._leave(event.start)
        kept = self._kept
        if kept is not None and ended:
            self._leave(end)
        elif kept is not None and event.translate and kept.name not in _EMBEDDED:
            self._keep_until(event.start)
            self._marked.append(OpenElement(event.name))
            self._translated(event, end)
        elif kept is not None:
            if event.kind == "text":
                self._texts.append(self._source[event.start : end])
        elif event.kind == "start" and event.translate is False:
            if event.name in INLINE or event.name in _EMBEDDED:
                self._span(event.start)
            else:
                self._finish(event.start)
            self._marked.append(OpenElement(event.name))
            self._start = event.start
        else:
            self._translated(event, end)
            if ended:
                self._leave(end)

    def _ends(self, event: _Event) -> bool | None:
        """Whether the innermost marked element ends with this; None: it has ended before."""
        element = self._marked[-1]
        if event.kind == "end":
            return element.end(event.name)
        if event.kind == "start" and element.start(event.name):
            return None
        return None if event.kind in ("void", "other") and element.void(event.name) else False

    def _leave(self, at: int) -> None:
        """The innermost marked element has ended."""
        if self._kept is None:
            self._span(at)
            self._start = at
        else:
            self._keep_until(at)
        name = self._marked.pop().name
        if self._marked:
            self._marked[-1].end(name)

    def _translated(self, event: _Event, end: int) -> None:
        if event.kind == "other" or (event.kind in ("start", "end") and event.name in INLINE):
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
        """A part that is left as it is ends; one within a sentence is a piece of it."""
        kept = self._kept
        assert kept is not None
        if kept.inline:
            text = html.unescape("".join(self._texts))
            self._spans.append(_Span(self._start, end, Piece(text, kept=True)))
        elif kept.name not in _EMBEDDED:
            self._finish(end)
        self._texts = []
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
        for match in re.finditer(r"[^\r\n]+", self._source[span.start : span.end]):
            if match.group().strip():
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

    def _add(self, kind: _Kind, name: str = "", translate: bool | None = None) -> None:
        if len(self.found) == _MOST_EVENTS:
            raise InvalidRequest(f"the HTML has more than {_MOST_EVENTS} tags and texts: send it in parts")
        line, column = self.getpos()
        self.found.append(_Event(kind, self._lines[line - 1] + column, name, translate))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self._add("void" if tag in _BREAKS else "other", tag)
        else:
            self._add("start", tag, _translates(tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        within = tag not in _BREAKS and (tag in _VOID or tag in INLINE or tag in _EMBEDDED)
        self._add("other" if within else "void", tag)

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


def _translates(tag: str, given: Mapping[str, str | None]) -> bool | None:
    """What a start tag says of its element's translation; None where it says nothing."""
    said = (given["translate"] or "yes").lower() if "translate" in given else ""
    if said == "no" or "notranslate" in (given.get("class") or "").split():
        return False
    if tag in _KEPT:
        return said == "yes" and tag not in _EMBEDDED
    return True if said == "yes" else None
