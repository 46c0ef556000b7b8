"""Word's files (.docx): a ZIP of XML parts, of which those with text are translated."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from typing import Any, Final

from lxml import etree

from tandem.cluster.ingress.http.libretranslate.phrases import Phrase, Piece
from tandem.errors import InvalidRequest

_TEXT_PARTS: Final = re.compile(r"word/(?:document|header\d*|footer\d*|footnotes|endnotes|comments)\.xml")
_MAIN: Final = "word/document.xml"
_MEMBERS: Final = 10_000
_UNPACKED: Final = 256 * 2**20  # bytes of all parts: a small file may unpack to a large one

_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_PARAGRAPH, _RUN, _TEXT, _FORMAT, _LINK = (f"{_W}{name}" for name in ("p", "r", "t", "rPr", "hyperlink"))
_BREAKS: Final = frozenset(f"{_W}{name}" for name in ("br", "cr", "tab", "ptab"))
# A run's properties that say nothing of how it looks: Word splits runs by them.
_UNSEEN: Final = frozenset(f"{_W}{name}" for name in ("lang", "noProof"))
_SPACE: Final = "{http://www.w3.org/XML/1998/namespace}space"


@dataclass(frozen=True, slots=True)
class _Run:
    """Texts next to one another that look alike."""

    look: tuple[Any, ...]
    elements: list[Any]  # w:t

    @property
    def text(self) -> str:
        return "".join(element.text or "" for element in self.elements)


class WordDocument:
    """A file, parsed. Everything but the text of paragraphs stays as it is."""

    def __init__(self, data: bytes) -> None:
        """Raises InvalidRequest for what is no such file, or unpacks to more than it may."""
        try:
            self._zip = zipfile.ZipFile(BytesIO(data))
            self._check()
            self._parts = {
                member.filename: _parsed(self._zip.read(member))
                for member in self._zip.infolist()
                if _TEXT_PARTS.fullmatch(member.filename)
            }
        except (zipfile.BadZipFile, etree.XMLSyntaxError, NotImplementedError, OSError) as error:
            raise InvalidRequest(f"is no Word document: {error}", field="file") from None
        if _MAIN not in self._parts:
            raise InvalidRequest(f"is no Word document: it has no {_MAIN}", field="file")
        self._groups = [group for part in self._parts.values() for group in _groups(part)]
        self.phrases = [_phrase(group) for group in self._groups]

    @property
    def text(self) -> str:
        """What is to be translated."""
        return "\n".join(phrase.whole for phrase in self.phrases)

    def render(self, translations: Sequence[Sequence[str]]) -> bytes:
        """The file with each phrase's pieces in place of its own."""
        for group, texts in zip(self._groups, translations, strict=True):
            for run, text in zip(group, texts, strict=True):
                for element in run.elements:
                    element.text = ""
                run.elements[0].text = text
                run.elements[0].set(_SPACE, "preserve")
        made = BytesIO()
        with zipfile.ZipFile(made, "w") as target:
            for member in self._zip.infolist():
                part = self._parts.get(member.filename)
                data = self._zip.read(member) if part is None else _serialized(part)
                target.writestr(copy(member), data, compress_type=member.compress_type)
        return made.getvalue()

    def _check(self) -> None:
        members = self._zip.infolist()
        if len(members) > _MEMBERS or sum(member.file_size for member in members) > _UNPACKED:
            raise InvalidRequest(
                f"unpacks to more than {_MEMBERS} parts or {_UNPACKED // 2**20} MiB", field="file"
            )
        if any(member.flag_bits & 1 for member in members):
            raise InvalidRequest("is encrypted: remove its password", field="file")


def _parsed(data: bytes) -> Any:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    return etree.fromstring(data, parser)


def _serialized(part: Any) -> bytes:
    return bytes(etree.tostring(part, xml_declaration=True, encoding="UTF-8", standalone=True))


def _groups(part: Any) -> Iterator[list[_Run]]:
    """The runs of each paragraph, or of its parts between tabs and line breaks, if there is something to
    translate."""
    for paragraph in part.iter(_PARAGRAPH):
        for broken, elements in groupby(_pieces(paragraph), key=lambda element: element.tag in _BREAKS):
            if broken:
                continue
            group = [_Run(look, list(alike)) for look, alike in groupby(elements, key=_look)]
            if any(run.text.strip() for run in group):
                yield group


def _pieces(paragraph: Any) -> Iterator[Any]:
    """A paragraph's texts and breaks in their order, without those of text boxes in it."""
    for element in paragraph.iter(_TEXT, *_BREAKS):
        run = element.getparent()
        if run.tag == _RUN and next(element.iterancestors(_PARAGRAPH)) is paragraph:
            yield element


def _look(element: Any) -> tuple[Any, ...]:
    """What sets a text apart from its neighbours: its run's format, and the link that it is in."""
    properties = element.getparent().find(_FORMAT)
    link = next(element.iterancestors(_LINK), None)
    seen = [] if properties is None else [one for one in properties if one.tag not in _UNSEEN]
    return (link, *(etree.tostring(one, method="c14n") for one in seen))


def _phrase(group: list[_Run]) -> Phrase:
    """Most of a paragraph looks alike; what looks otherwise is marked."""
    sizes: dict[tuple[Any, ...], int] = {}
    for run in group:
        sizes[run.look] = sizes.get(run.look, 0) + len(run.text)
    usual = max(sizes, key=lambda look: sizes[look])
    return Phrase(tuple(Piece(run.text, marked=run.look != usual) for run in group))
