"""SubRip (.srt): cues of a number, times, and a text of one or more lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tandem.cluster.ingress.http.libretranslate.phrases import Phrase, Piece

# The tags that players know, and those of SubStation Alpha. None has another's beginning in it: what is never
# closed is looked at once.
_TAGS: Final = r"</?(?:i|b|u|s|font)\b[^<>]*>|\{\\[^{}]*\}"
_TAG: Final = re.compile(_TAGS, re.IGNORECASE)
_WORD: Final = re.compile(rf"(?:{_TAGS}|\S)+", re.IGNORECASE)  # what stands between spaces that are in no tag
_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")
_TIMES: Final = re.compile(r"\s*[\d:.,]+\s*-->\s*[\d:.,]+")
_SPEAKER: Final = re.compile(r"\s*[-–—]")  # each line is another's who speaks
_WIDTH: Final = 42  # characters of a line, as is usual in subtitles; LibreTranslate has 40


@dataclass(frozen=True, slots=True)
class _Text:
    """A text that is translated: its pieces are a phrase's, with the tags between them."""

    tags: list[str]
    lines: int
    end: str  # the end of its last line


class Subtitles:
    """A file, parsed. Numbers, times, blank lines and what is before the first times stay as they are.

    A cue begins with its times, and the number before them where there is one, with or without a blank line
    before it.
    """

    def __init__(self, source: str) -> None:
        self._line_end = "\r\n" if "\r\n" in source else "\n"
        self._parts: list[str | _Text] = []
        self.phrases: list[Phrase] = []
        text: list[str] = []
        timed = False
        lines = _LINE.findall(source)
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            timed = timed or _TIMES.match(line) is not None
            numbers = line.strip().isdecimal() and _TIMES.match(following)
            if timed and line.strip() and not numbers and not _TIMES.match(line):
                text.append(line)
                continue
            self._add(text)
            text = []
            self._parts.append(line)
        self._add(text)

    @property
    def text(self) -> str:
        """What is to be translated, without tags."""
        return "\n".join(phrase.whole for phrase in self.phrases)

    def render(self, translations: Sequence[Sequence[str]]) -> str:
        """The file with each phrase's pieces in place of its own."""
        texts = iter(translations)
        return "".join(
            part if isinstance(part, str) else self._shown(part, next(texts)) for part in self._parts
        )

    def _add(self, cue: Sequence[str]) -> None:
        """The lines of a cue: one text, or each its own where several persons speak."""
        apart = sum(map(bool, map(_SPEAKER.match, cue))) > 1
        for lines in [[line] for line in cue] if apart else [cue]:
            joined = " ".join(" ".join(lines).split())
            if not _TAG.sub("", joined).strip():
                self._parts += lines
                continue
            tags = _TAG.findall(joined)
            self.phrases.append(Phrase(tuple(_pieces(_TAG.split(joined), tags))))
            last = lines[-1]
            self._parts.append(_Text(tags, len(lines), last[len(last.rstrip("\r\n")) :]))

    def _shown(self, text: _Text, pieces: Sequence[str]) -> str:
        words = _WORD.findall("".join(map("".join, zip(pieces, [*text.tags, ""], strict=True))))
        lengths = [len(_TAG.sub("", word)) for word in words]
        whole = sum(lengths) + len(words) - 1
        width = whole if text.lines == 1 and whole <= 2 * _WIDTH else max(_WIDTH, -(-whole // text.lines))
        lines: list[list[str]] = []
        room = 0
        for word, length in zip(words, lengths, strict=True):
            if not lines or length + 1 > room:
                lines.append([])
                room = width + 1
            lines[-1].append(word)
            room -= length + 1
        return self._line_end.join(map(" ".join, lines)) + text.end


def _pieces(texts: Sequence[str], tags: Sequence[str]) -> Iterator[Piece]:
    """The texts between tags; those within an open one are marked."""
    depth = 0
    for text, tag in zip(texts, [*tags, "{"], strict=True):
        yield Piece(text, marked=depth > 0)
        depth += 0 if tag[0] == "{" else -1 if tag[1] == "/" else 1
