"""The elements of a page that are open: where one ends whose end tag HTML lets be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

# fmt: off
# Elements within a sentence: HTML's phrasing content that holds text.
INLINE: Final = frozenset([
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i",
    "ins", "kbd", "label", "mark", "nobr", "output", "q", "rp", "rt", "ruby", "s", "samp", "small", "span",
    "strike", "strong", "sub", "sup", "time", "tt", "u", "var",
])
_CELLS: Final = frozenset(["td", "th", "tr", "tbody", "thead", "tfoot"])
_BODIES: Final = frozenset(["tbody", "thead", "tfoot"])
# An element without an end tag ends where one of these begins, or where its parent ends.
_ENDED_BY: Final[Mapping[str, frozenset[str]]] = {
    "li": frozenset(["li"]), "dt": frozenset(["dt", "dd"]), "dd": frozenset(["dt", "dd"]),
    "option": frozenset(["option", "optgroup"]), "optgroup": frozenset(["optgroup"]),
    "td": _CELLS, "th": _CELLS, "tr": _CELLS - {"td", "th"},
    "tbody": _BODIES, "thead": _BODIES, "tfoot": _BODIES,
    "rt": frozenset(["rt", "rp"]), "rp": frozenset(["rt", "rp"]),
    "p": frozenset([
        "address", "article", "aside", "blockquote", "details", "div", "dl", "fieldset", "figcaption",
        "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "main",
        "menu", "nav", "ol", "p", "pre", "section", "table", "ul",
    ]),
}
# fmt: on


class OpenElement:
    """An element from its start tag on, and the open ones in it; inline ones count if they have its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._open = [name]
        self._counts = Counter(self._open)

    @property
    def inline(self) -> bool:
        return self.name in INLINE

    def start(self, name: str) -> bool:
        """An element begins. Whether this one has ended before it."""
        while self._open and name in _ENDED_BY.get(self._open[-1], ()):
            self._pop()
        if not self._open:
            return True
        self._push(name)
        return False

    def void(self, name: str) -> bool:
        """An element of one tag. Whether this one has ended before it."""
        while self._open and name in _ENDED_BY.get(self._open[-1], ()):
            self._pop()
        return not self._open

    def end(self, name: str) -> bool | None:
        """An end tag. True: this element ends with it; None: it has ended before, with its parent; False: it
        goes on."""
        if self._counts[name]:
            while self._pop() != name:
                pass
            return not self._open
        parents = self.name in _ENDED_BY and name not in INLINE and name not in ("br", "p")
        return None if parents else False

    def _push(self, name: str) -> None:
        if name not in INLINE or name == self.name:
            self._open.append(name)
            self._counts[name] += 1

    def _pop(self) -> str:
        name = self._open.pop()
        self._counts[name] -= 1
        return name
