"""Recordings that are decoded slowly, to see who waits for them and when they end."""

from __future__ import annotations

import threading
import time

import pytest

from tandem.inputs import Media
from tandem.workers.requests.media.audio_file import Watch
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.builder import TranscriptionBuilder
from tandem.workers.transcription.transcriber import Transcriber

_BETWEEN_S = 0.05  # from one look at whether it is to go on to the next


class SlowDecoding:
    """One recording's, wherever it is decoded. It takes minutes if nobody ends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: bytes, from_s: float = 0.0) -> None:
        """from_s: it is slow after so many seconds of the recording."""
        self.begun, self.ended = threading.Event(), threading.Event()
        begin = TranscriptionBuilder.begin

        def slow(
            builder: TranscriptionBuilder,
            media: Media,
            field: str,
            asked: Asked,
            seed: int | None,
            watch: Watch,
        ) -> Transcriber:
            if media.data != file:
                return begin(builder, media, field, asked, seed, watch)

            def slowly(seconds: float) -> None:
                watch(seconds)
                if seconds >= from_s:
                    self.begun.set()
                    time.sleep(_BETWEEN_S)

            try:
                return begin(builder, media, field, asked, seed, slowly)
            finally:
                if self.begun.is_set():
                    self.ended.set()

        monkeypatch.setattr(TranscriptionBuilder, "begin", slow)
