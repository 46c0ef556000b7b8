"""OpenAI's audio endpoints: transcriptions, and translations into English.

Forms have OpenAI's fields; the further ones of `TranscriptionParams`, with openai-whisper's semantics where
nothing is said, `priority` and `timeout_s` may stand in them, too.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from tandem import transcripts
from tandem.cluster.ingress.arrivals import http_arrival
from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.http.answers import TokenTexts
from tandem.cluster.ingress.http.body import unless_disconnected
from tandem.cluster.ingress.http.forms import read_fields
from tandem.cluster.ingress.http.speech.audio_fields import FIELDS, AudioForm
from tandem.cluster.ingress.http.sse import EventStream
from tandem.cluster.ingress.service import Service
from tandem.errors import renaming_fields
from tandem.transcription import Transcription, TranscriptionDelta, TranscriptionSegment
from tandem.workers.requests.speech import english_name

_TRANSCRIBE: Final = "transcribe"
_TRANSLATE: Final = "translate"


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/audio")

    @router.post("/transcriptions")
    async def transcriptions(request: Request) -> Response:
        """A recording's text, in its language."""
        return await _answer(service, request, _TRANSCRIBE)

    @router.post("/translations")
    async def translations(request: Request) -> Response:
        """A recording's text, in English."""
        return await _answer(service, request, _TRANSLATE)

    return router


async def _answer(service: Service, request: Request, task: str) -> Response:
    limits = service.config.limits
    async with AsyncExitStack() as resources:
        call = resources.enter_context(Call(service, "http", f"audio_{task}", http_arrival(request.scope)))
        fields = await read_fields(request, limits, limits.request_bytes)
        form = AudioForm.read(fields, task, request.headers.get("x-request-id"))
        with renaming_fields(FIELDS):
            prepared = await call.prepare_transcription(form.media, form.params, "file", **form.options)
        if not form.stream:
            whole = await unless_disconnected(request.receive, call.transcription(prepared))
            return _whole(service, form, task, whole)
        deltas = await resources.enter_async_context(aclosing(call.transcription_deltas(prepared)))
        # The first delta is awaited here, so that an error before it has a status of its own.
        first = await unless_disconnected(request.receive, _next(deltas))
        return EventStream(_events(service, form, first, deltas), resources.pop_all())


def _whole(service: Service, form: AudioForm, task: str, answer: Transcription) -> Response:
    match form.format:
        case "text":
            return PlainTextResponse(f"{answer.text}\n")
        case "srt" | "vtt":
            return PlainTextResponse(transcripts.written(answer, form.format))
        case "verbose_json":
            body = transcripts.verbose(answer, task=task, language=english_name(answer.language))
            if "segment" not in form.granularities:
                del body["segments"]
            return JSONResponse({**body, "usage": _duration(answer)})
        case "json":
            body = {"text": answer.text, **_logprobs(service, answer.segments), "usage": _duration(answer)}
            return JSONResponse(body)


async def _next(deltas: AsyncIterator[TranscriptionDelta]) -> TranscriptionDelta:
    return await anext(deltas)


async def _events(
    service: Service, form: AudioForm, first: TranscriptionDelta, rest: AsyncIterator[TranscriptionDelta]
) -> AsyncIterator[dict[str, Any]]:
    for event in _of_delta(service, form, first):
        yield event
    async for delta in rest:
        for event in _of_delta(service, form, delta):
            yield event


def _of_delta(service: Service, form: AudioForm, delta: TranscriptionDelta) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    if delta.text:
        logprobs = _logprobs(service, delta.segments)
        events.append({"type": "transcript.text.delta", "delta": delta.text, **logprobs})
    if form.format == "verbose_json":
        events += [
            {
                **transcripts.verbose_segment(segment),
                "type": "transcript.text.segment",
                "id": str(segment.id),
                "speaker": "",  # speakers are not told apart
            }
            for segment in delta.segments
        ]
    if (whole := delta.transcription) is not None:
        events.append(
            {
                "type": "transcript.text.done",
                "text": whole.text,
                **_logprobs(service, whole.segments),
                "usage": _tokens(whole),
            }
        )
    return events


def _logprobs(service: Service, segments: Sequence[TranscriptionSegment]) -> dict[str, Any]:
    """The segments' tokens with theirs, times left out; nothing where they were not asked for."""
    if not any(segment.logprobs for segment in segments):
        return {}
    texts = TokenTexts(service.request_builder.vocabulary)
    text_end = min(service.request_builder.info.eos_ids)  # text has ids below
    entries = []
    for segment in segments:
        for token_id, logprob in zip(segment.token_ids, segment.logprobs or (), strict=False):
            if token_id < text_end:
                entries.append(texts.entry(token_id, logprob))
                texts.advance(token_id)
    return {"logprobs": entries}


def _tokens(answer: Transcription) -> dict[str, Any]:
    """OpenAI's other kind of usage, which its streams have."""
    heard, said = answer.encoder_tokens, answer.generated_tokens
    return {
        "type": "tokens",
        "input_tokens": heard,
        "output_tokens": said,
        "total_tokens": heard + said,
        "input_token_details": {"audio_tokens": heard, "text_tokens": 0},
    }


def _duration(answer: Transcription) -> dict[str, Any]:
    """What OpenAI bills: the recording's seconds."""
    return {"type": "duration", "seconds": math.ceil(answer.duration_s)}
