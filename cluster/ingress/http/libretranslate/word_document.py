"""Word's files (.docx): a ZIP of XML parts, of which those with text are translated."""

from __future__ import annotations

import lzma
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from typing import Any, Final

from lxml import etree

from tandem.cluster.ingress.http.libretranslate.phrases import Phrase, Piece
from tandem.errors import InvalidRequest

_FURTHER: Final = re.compile(
    r"(?:header\d*|footer\d*|footnotes|endnotes|comments)\.xml"
)  # with the main part
_RELATIONS: Final = "_rels/.rels"  # says which part is the main one
_MAIN: Final = "word/document.xml"  # where nothing says it
_NUMBERED: Final = re.compile(r"word/document\d*\.xml")  # some of Word's versions count
_RELATED: Final = 2**20  # bytes of that
_MEMBERS: Final = 10_000
# A small file may unpack to a large one. Parts that are copied are read one by one; parsed ones take many
# times their size.
_UNPACKED: Final = 256 * 2**20  # bytes of all parts
_PARSED: Final = 16 * 2**20  # bytes of those with text
_TAGS: Final = 1_000_000  # in those with text

# What reading a damaged ZIP raises.
_DAMAGES: Final = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, ValueError,
)  # fmt: skip

# WordprocessingML, and the same in "Strict Open XML Documents".
_NAMESPACES: Final = (
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "http://purl.oclc.org/ooxml/wordprocessingml/main",
)


def _names(*names: str) -> frozenset[str]:
    return frozenset(f"{{{space}}}{name}" for space in _NAMESPACES for name in names)


_PARAGRAPH, _RUN, _TEXT, _LINK = map(_names, ("p", "r", "t", "hyperlink"))
_FORMAT: Final = _names("rPr")
_BREAKS: Final = _names("br", "cr", "tab", "ptab")
_UNSEEN: Final = _names(
    "lang", "noProof"
)  # elements of a run's format: they change no look, and Word splits runs by them
_SPACE: Final = "{http://www.w3.org/XML/1998/namespace}space"
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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
        """Raises InvalidRequest for what is no such file, is damaged, or unpacks to more than it may."""
        try:
            self._zip = zipfile.ZipFile(BytesIO(data))
            self._check()
            main = self._main()
            self._check_texts(main)
            parts = {
                member.filename: self._zip.read(member)
                for member in self._zip.infolist()
                if member.filename == main or _is_further(member.filename, main)
            }
            if damaged := self._zip.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            if sum(data.count(b"<") for data in parts.values()) > _TAGS:
                raise InvalidRequest(f"has more than {_TAGS} tags: split it", field="file")
            self._parts = {name: _parsed(data) for name, data in parts.items()}
        except InvalidRequest:
            raise
        except (etree.XMLSyntaxError, *_DAMAGES) as error:
            raise InvalidRequest(f"is no Word document: {error}", field="file") from None
        if main not in self._parts:
            raise InvalidRequest(f"is no Word document: it has no {main}", field="file")
        self._groups = [group for part in self._parts.values() for group in _groups(part)]
        self.phrases = [_phrase(group) for group in self._groups]

    @property
    def text(self) -> str:
        """What is to be translated."""
        return "\n".join(phrase.whole for phrase in self.phrases)

    def render(self, translations: Sequence[Sequence[str]]) -> bytes:
        """The file with each phrase's pieces in place of its own; characters that XML cannot have are left
        out."""
        for group, texts in zip(self._groups, translations, strict=True):
            for run, text in zip(group, texts, strict=True):
                for element in run.elements:
                    element.text = ""
                run.elements[0].text = _NO_XML.sub("", text)
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

    def _check_texts(self, main: str) -> None:
        texts = (
            one.file_size
            for one in self._zip.infolist()
            if one.filename == main or _is_further(one.filename, main)
        )
        if sum(texts) > _PARSED:
            raise InvalidRequest(f"has more than {_PARSED // 2**20} MiB of text: split it", field="file")

    def _main(self) -> str:
        """The part that the file's relations name as its document, else one of the usual name."""
        names = self._zip.namelist()
        if _RELATIONS in names and self._zip.getinfo(_RELATIONS).file_size <= _RELATED:
            for relation in _parsed(self._zip.read(_RELATIONS)):
                if (relation.get("Type") or "").endswith("/officeDocument"):
                    return posixpath.normpath((relation.get("Target") or _MAIN).lstrip("/"))
        return next((name for name in names if _NUMBERED.fullmatch(name)), _MAIN)


def _is_further(name: str, main: str) -> bool:
    folder, _, own = name.rpartition("/")
    return folder == posixpath.dirname(main) and _FURTHER.fullmatch(own) is not None


def _parsed(data: bytes) -> Any:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    return etree.fromstring(data, parser)


def _serialized(part: Any) -> bytes:
    return bytes(etree.tostring(part, xml_declaration=True, encoding="UTF-8", standalone=True))


def _groups(part: Any) -> Iterator[list[_Run]]:
    """The runs of each paragraph, or of its parts between tabs and line breaks, if there is something to
    translate."""
    paragraphs: dict[
        Any, list[Any]
    ] = {}  # texts and breaks in their order, without those of text boxes in it
    for element in part.iter(*_TEXT, *_BREAKS):
        run = element.getparent()
        if run is not None and run.tag in _RUN:
            paragraph = next(element.iterancestors(*_PARAGRAPH), None)
            if paragraph is not None:
                paragraphs.setdefault(paragraph, []).append(element)
    for pieces in paragraphs.values():
        for broken, elements in groupby(pieces, key=lambda element: element.tag in _BREAKS):
            if broken:
                continue
            group = [_Run(look, list(alike)) for look, alike in groupby(elements, key=_look)]
            if any(run.text.strip() for run in group):
                yield group


def _look(element: Any) -> tuple[Any, ...]:
    """What sets a text apart from its neighbours: its run's format, and the link that it is in."""
    properties = next(element.getparent().iterchildren(*_FORMAT), ())
    link = next(element.iterancestors(*_LINK), None)
    return (link, *(etree.tostring(one, method="c14n") for one in properties if one.tag not in _UNSEEN))


def _phrase(group: list[_Run]) -> Phrase:
    """Most of a paragraph looks alike; what looks otherwise is marked."""
    sizes: dict[tuple[Any, ...], int] = {}
    for run in group:
        sizes[run.look] = sizes.get(run.look, 0) + len(run.text)
    usual = max(sizes, key=lambda look: sizes[look])
    return Phrase(tuple(Piece(run.text, marked=run.look != usual) for run in group))
