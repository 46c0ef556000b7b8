"""A document's translation while it grows: its segments grow at once, and are shown in their order."""

from __future__ import annotations

from collections.abc import Iterator

from tandem.workers.requests.segmentation.segments import Document


class Growing:
    """What is shown is a beginning of `Document.join`, and at the end all of it."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._texts = ["" for _ in document.segments]
        self._ended = [False for _ in document.segments]
        self._at = 0  # the segment of which something is still to be shown
        self._shown = 0  # of its characters
        self._before = ""  # the translation before it

    def add(self, number: int, text: str, *, ended: bool) -> str:
        """Takes what a segment's translation has grown by. Returns what there is more to show."""
        self._texts[number] += text
        self._ended[number] |= ended
        return "".join(self._news()) if number == self._at else ""

    def _news(self) -> Iterator[str]:
        while self._at < len(self._texts):
            # White space at its end is shown when more comes: at a translation's end it is left out.
            text, ended = self._texts[self._at].strip(), self._ended[self._at]
            if not self._shown and (text or ended):
                yield self._document.gap(self._at, self._before, text)
            yield text[self._shown :]
            self._shown = len(text)
            if not ended:
                return
            self._before, self._shown = text, 0
            self._at += 1
        yield self._document.gaps[-1]
