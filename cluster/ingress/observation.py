"""One call, as an ingress replica sees it: what it adds to the metrics, its line in the log, its trace."""

from __future__ import annotations

import asyncio
import logging
import time
from traceback import format_tb
from types import TracebackType
from typing import Final, Self

from tandem.cluster.callers import CALLER
from tandem.cluster.ingress.metrics import Metrics, Protocol
from tandem.cluster.router.routed_request import Arrival
from tandem.cluster.telemetry import logs, traces
from tandem.errors import TandemError, status_of
from tandem.outputs import FinishReason
from tandem.workers.transcription.live.live_transcriber import LiveTranscriber
from tandem.workers.transcription.transcriber import Transcriber

logger = logging.getLogger(__name__)

_PROBES: Final = ("Check", "List", "Watch")  # of grpc.health.v1: not logged where all is well


class Observation:
    """One call of a client, from its arrival to the end of the `with` block: then it is counted and logged.
    Unexpected errors, whose text no client is shown, are logged here with the request's id; their text is
    not, which may quote what the client has sent."""

    def __init__(self, metrics: Metrics, protocol: Protocol, method: str, arrival: Arrival) -> None:
        self._metrics, self._protocol, self._method = metrics, protocol, method
        self._caller = CALLER.get()
        self._arrived = arrival.at
        self._trace = traces.begin(protocol, method, arrival.parent, arrival.at)
        self._last: dict[tuple[int, int], float] = {}  # by prompt and sample: time of its latest token
        self._encoder_tokens = self._media_tokens = self._generated = 0
        self._queued_s: float | None = None  # the longest of its sequences
        self._first_token_s: float | None = None
        self._finished: list[FinishReason] = []  # each once
        self.request_id = "-"

    def accepted(self, encoder_tokens: int, media_tokens: int) -> None:
        self._encoder_tokens += encoder_tokens
        self._media_tokens += media_tokens
        self._metrics.encoded(encoder_tokens, media_tokens, self._caller)

    def queued(self, seconds: float) -> None:
        """A sequence of the call joined an engine's batch so long after it came to the router."""
        self._metrics.queue.observe(seconds)
        self._queued_s = max(seconds, self._queued_s or 0.0)

    def grew(self, number: int, sample: int, tokens: int) -> None:
        """Counts `tokens` that have come together, for a sample of the call's prompt with this number."""
        if not tokens:
            return
        now, key = time.monotonic(), (number, sample)
        self._metrics.generated(tokens, self._caller)
        self._generated += tokens
        if not self._last:
            self._first_token_s = now - self._arrived
            self._metrics.first_token.observe(self._first_token_s)
        if key in self._last:
            each = (now - self._last[key]) / tokens
            for _ in range(tokens):
                self._metrics.between_tokens.observe(each)
        self._last[key] = now

    def finished(self, reason: FinishReason) -> None:
        self._metrics.finished(reason)
        if reason not in self._finished:
            self._finished.append(reason)

    def transcribed(self, transcriber: Transcriber) -> None:
        """Counts a transcription that has ended, or has been given up."""
        metrics, counts = self._metrics, transcriber.counts
        metrics.audio_seconds.inc(transcriber.seek_s)
        metrics.windows(transcriber.mode, counts.windows)
        metrics.silent_windows.inc(counts.silent)
        metrics.refused_answers.inc(counts.refused)
        self._spoken(counts.encoder_tokens, counts.tokens)
        if transcriber.done:
            took_s = time.monotonic() - self._arrived
            metrics.whole_request.observe(took_s)
            if transcriber.duration_s:
                metrics.real_time.observe(took_s / transcriber.duration_s)

    def heard(self, live: LiveTranscriber) -> None:
        """Counts speech that was transcribed while it went on."""
        self._metrics.audio_seconds.inc(live.heard_s)
        self._metrics.hypotheses.inc(live.hypotheses)
        self._spoken(live.encoder_tokens, live.generated_tokens)

    def _spoken(self, encoder_tokens: int, generated: int) -> None:
        """Counts what speech took, all of whose positions are its own."""
        self.accepted(encoder_tokens, encoder_tokens)
        self._metrics.generated(generated, self._caller)
        self._generated += generated

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused: str | None = None
        if error is None:
            status = "OK"
            if self._last:  # the call generated tokens
                self._metrics.whole_request.observe(time.monotonic() - self._arrived)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            status = "CANCELLED"
        else:
            status = status_of(error).grpc
            if isinstance(error, TandemError):
                refused = error.refused
                self._metrics.refused(error)
            else:
                frames = "".join(format_tb(error.__traceback__))
                name = type(error).__name__
                logger.error("%s failed, request id %s: %s\n%s", self._method, self.request_id, name, frames)
        self._metrics.ended(self._protocol, self._method, status, self._caller)
        fields = self._fields(status, refused)
        if status != "OK" or self._method not in _PROBES:
            logs.call(fields)
        if self._trace is not None:
            self._trace.end(fields)

    def _fields(self, status: str, refused: str | None) -> dict[str, object]:
        """What the log and the trace say of the call."""
        return {
            "protocol": self._protocol,
            "method": self._method,
            "status": status,
            "request_id": self.request_id,
            "tenant": self._caller.name,
            "refused": refused,
            "finish_reason": ",".join(self._finished),
            "prompt_tokens": self._encoder_tokens or None,
            "media_tokens": self._media_tokens or None,
            "generated_tokens": self._generated or None,
            "queue_ms": _milliseconds(self._queued_s),
            "first_token_ms": _milliseconds(self._first_token_s),
            "total_ms": _milliseconds(time.monotonic() - self._arrived),
        }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)
