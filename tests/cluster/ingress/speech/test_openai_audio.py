"""OpenAI's audio endpoints, asked by OpenAI's own client: its every call, and what it cannot ask."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from audio_files import wav
from fake_service import connected, make_service
from local_router import LocalRouter
from openai import AsyncOpenAI, BadRequestError, RateLimitError
from voices import voices
from whisper import EOS, RATE, sound

from tandem import LLM, ServerVad, Transcription, Unavailable
from tandem.cluster.ingress.service import Service
from tandem.limits import Limits
from tandem.transcription import TranscriptionOptions
from tandem.workers.requests.request_builder import RequestBuilder

SECONDS = 3.3  # four windows
FILE = wav(sound(3, SECONDS), RATE)
ASKED: TranscriptionOptions = {"semantics": "openai", "language": "en", "temperature": (0.0,)}


@pytest.fixture(scope="module")
def spoken(llm: LLM) -> Transcription:
    """What is to be answered."""
    answer = llm.transcribe(FILE, **ASKED)
    assert len(answer.segments) > 3
    return answer


@pytest.fixture
def service(whisper: Path, local_router: LocalRouter) -> Service:
    limits = Limits(media_bytes=len(FILE) + 100, message_bytes=20_000)
    return make_service(whisper, RequestBuilder.load(whisper, "tiny", limits), local_router, limits)


@pytest.fixture
def openai(http: httpx.AsyncClient) -> AsyncOpenAI:
    client: Any = http  # a client of httpx, for openai may have a successor of it
    return AsyncOpenAI(base_url="http://tandem/v1", api_key="none", http_client=client, max_retries=0)


def form(**more: Any) -> dict[str, Any]:
    one = {"language": "en", "extra_body": {"temperature": "[0.0]"}}
    return {"model": "tiny", "file": ("speech.wav", FILE), **one, **more}


async def test_every_format(openai: AsyncOpenAI, spoken: Transcription) -> None:
    audio = openai.audio.transcriptions
    answer = await audio.create(**form())
    assert answer.text == spoken.text
    assert answer.usage is not None
    assert (answer.usage.type, answer.usage.seconds) == ("duration", 4)
    assert await audio.create(**form(response_format="text")) == f"{spoken.text}\n"
    subtitles = await audio.create(**form(response_format="srt"))
    assert subtitles.count(" --> ") == len(spoken.segments)
    assert (await audio.create(**form(response_format="vtt"))).startswith("WEBVTT\n\n00:00:00.")
    verbose = await audio.create(**form(response_format="verbose_json"))
    assert (verbose.text, verbose.language, verbose.duration) == (spoken.text, "english", SECONDS)
    for found, expected in zip(verbose.segments, spoken.segments, strict=True):
        assert (found.id, found.start, found.end, found.text) == (
            expected.id, expected.start_s, expected.end_s, expected.text,
        )  # fmt: skip
        assert (found.tokens, found.seek) == (expected.token_ids, round(100 * expected.seek_s))
        assert found.avg_logprob == pytest.approx(expected.avg_logprob)
        assert found.compression_ratio == pytest.approx(expected.compression_ratio)
        assert found.no_speech_prob == pytest.approx(expected.no_speech_prob)
        assert found.temperature == 0


async def test_a_stream(openai: AsyncOpenAI, spoken: Transcription) -> None:
    """Its text adds up; what is asked for as verbose JSON has the segments, too."""
    for more in ({}, {"response_format": "verbose_json"}):
        events = [
            event async for event in await openai.audio.transcriptions.create(**form(stream=True, **more))
        ]
        deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
        assert "".join(deltas) == spoken.text
        assert len(deltas) > 1
        done = events[-1]
        assert (done.type, done.text) == ("transcript.text.done", spoken.text)
        assert done.usage is not None
        assert (done.usage.type, done.usage.input_tokens) == ("tokens", spoken.encoder_tokens)
        assert done.usage.output_tokens == spoken.generated_tokens > len(spoken.segments)
        segments = [event for event in events if event.type == "transcript.text.segment"]
        expected = [(str(one.id), one.start_s, one.text) for one in spoken.segments] if more else []
        assert [(one.id, one.start, one.text) for one in segments] == expected


async def test_what_is_heard_counts_in_quotas(
    openai: AsyncOpenAI, http: httpx.AsyncClient, spoken: Transcription
) -> None:
    """As much as a prompt with the same sound would."""
    await openai.audio.transcriptions.create(**form())
    values = dict(line.rsplit(" ", 1) for line in (await http.get("/metrics")).text.splitlines())
    named = {name.partition("{")[0]: float(value) for name, value in values.items() if "tenant" in name}
    assert named["tandem_prompt_tokens_total"] == spoken.encoder_tokens > 0
    assert named["tandem_prompt_media_tokens_total"] == spoken.encoder_tokens
    assert named["tandem_generation_tokens_total"] == spoken.generated_tokens


async def test_logprobs(openai: AsyncOpenAI, llm: LLM, spoken: Transcription) -> None:
    """Of all that is said, times left out; those of a stream add up to them."""
    asked: TranscriptionOptions = {**ASKED, "logprobs": True}
    segments = llm.transcribe(FILE, **asked).segments
    assert [one.token_ids for one in segments] == [one.token_ids for one in spoken.segments]
    assert all(len(one.logprobs or ()) == len(one.token_ids) for one in segments)
    expected = [
        logprob
        for one in segments
        for token_id, logprob in zip(one.token_ids, one.logprobs or (), strict=True)
        if token_id < EOS
    ]
    include: Any = ["logprobs"]
    answer = await openai.audio.transcriptions.create(**form(include=include))
    found = answer.logprobs or []
    assert [one.logprob for one in found] == pytest.approx(expected)
    assert "".join(one.token or "" for one in found).strip() == spoken.text
    stream = await openai.audio.transcriptions.create(**form(include=include, stream=True))
    events = [event async for event in stream]
    parts = [one for event in events[:-1] for one in event.logprobs or ()]
    assert [one.logprob for one in parts] == pytest.approx(expected)


async def test_translations(openai: AsyncOpenAI, llm: LLM) -> None:
    answer = await openai.audio.translations.create(
        model="tiny", file=("speech.wav", FILE), extra_body={"temperature": "[0.0]", "language": "en"}
    )
    asked: TranscriptionOptions = {**ASKED, "task": "translate"}
    assert answer.text == llm.transcribe(FILE, **asked).text


async def test_a_prompt_and_what_openai_does_not_have(openai: AsyncOpenAI, llm: LLM) -> None:
    more = {
        "temperature": "[0.0]",
        "num_beams": "2",
        "condition_on_prev_tokens": "false",
        "timeout_s": "3600",
    }
    answer = await openai.audio.transcriptions.create(**form(prompt="ba be", extra_body=more))
    asked: TranscriptionOptions = {
        **ASKED, "prompt": "ba be", "num_beams": 2, "condition_on_prev_tokens": False,
    }  # fmt: skip
    assert answer.text == llm.transcribe(FILE, **asked).text


@pytest.mark.parametrize(
    ("strategy", "vad"),
    [
        ("auto", ServerVad()),
        (
            {"type": "server_vad", "threshold": 0.4, "prefix_padding_ms": 50, "silence_duration_ms": 100},
            ServerVad(threshold=0.4, prefix_padding_ms=50, silence_duration_ms=100),
        ),
    ],
)
async def test_chunks_between_silences(openai: AsyncOpenAI, llm: LLM, strategy: Any, vad: ServerVad) -> None:
    """As OpenAI's client says them, whole and in a stream; and as JSON."""
    file = wav(voices([(0.2, 0.8), (1.4, 1.9), (2.5, 3.1)], SECONDS), RATE)
    asked: TranscriptionOptions = {**ASKED, "chunking_strategy": vad}
    expected = llm.transcribe(file, **asked)
    assert expected.mode == "chunked"
    assert expected.text != llm.transcribe(file, **ASKED).text
    more = {"file": ("speech.wav", file), "chunking_strategy": strategy}
    verbose = await openai.audio.transcriptions.create(**form(response_format="verbose_json", **more))
    assert [one.tokens for one in verbose.segments] == [one.token_ids for one in expected.segments]
    events = [event async for event in await openai.audio.transcriptions.create(**form(stream=True, **more))]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert "".join(deltas) == expected.text
    text = strategy if strategy == "auto" else json.dumps(strategy)
    more = {"temperature": "[0.0]", "chunking_strategy": text}
    answer = await openai.audio.transcriptions.create(**form(file=("speech.wav", file), extra_body=more))
    assert answer.text == expected.text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"chunking_strategy": {"type": "semantic_vad"}}, "chunking_strategy.type"),
        ({"extra_body": {"chunking_strategy": "{nothing"}}, "chunking_strategy"),
        (
            {"extra_body": {"chunking_strategy": "auto", "condition_on_prev_tokens": "true"}},
            "condition_on_prev_tokens",
        ),
        ({"response_format": "pdf"}, "response_format"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "srt", "stream": True}, "response_format"),
        (
            {"timestamp_granularities": ["letter"], "response_format": "verbose_json"},
            "timestamp_granularities[]",
        ),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"language": "klingon"}, "language"),
        ({"extra_body": {"temperature": "-1"}}, "temperature"),
        ({"extra_body": {"temperature": "hot"}}, "temperature"),
        ({"extra_body": {"num_beams": "99"}}, "num_beams"),
        ({"extra_body": {"num_beams": "two"}}, "num_beams"),
        ({"extra_body": {"colour": "red"}}, "colour"),
        ({"extra_body": {"stream": "perhaps"}}, "stream"),
        ({"extra_body": {"timeout_s": "0"}}, "timeout_s"),
        ({"extra_body": {"timeout_s": "3601"}}, "timeout_s"),
        ({"chunking_strategy": "never"}, "chunking_strategy"),
        ({"chunking_strategy": {"type": "server_vad", "threshold": 7}}, "chunking_strategy.threshold"),
        ({"include": ["logprobs"], "response_format": "text"}, "include[]"),
        ({"include": ["colours"]}, "include[]"),
        ({"include": ["logprobs"], "extra_body": {"num_beams": "2"}}, "include[]"),
        ({"known_speaker_names": ["Ann"]}, "known_speaker_names"),
        ({"file": ("speech.wav", b"")}, "file"),
        ({"file": ("speech.wav", b"no audio at all")}, "file"),
        ({"file": ("speech.wav", wav(np.full(1_000, np.nan), RATE))}, "file"),
        ({"prompt": "<|en|>"}, "prompt"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    openai: AsyncOpenAI, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await openai.audio.transcriptions.create(**form(**more))
    body: Any = refused.value.body
    assert body["param"] == param
    assert body["message"]


async def test_a_form_without_a_file_and_what_is_no_form(http: httpx.AsyncClient) -> None:
    for request in (
        {"data": {"model": "tiny"}},
        {"json": {"model": "tiny", "file": "abc"}},
        {"files": {"file": ""}},
    ):
        response = await http.post("/v1/audio/transcriptions", **request)  # type: ignore[arg-type]
        assert (response.status_code, response.json()["error"]["param"]) == (400, "file")
    large = {"file": ("speech.wav", FILE + bytes(30_000))}
    response = await http.post("/v1/audio/transcriptions", files=large)
    assert response.status_code == 413


async def test_an_unknown_model_and_a_full_server(openai: AsyncOpenAI, local_router: LocalRouter) -> None:
    response = await openai.with_options().audio.transcriptions.with_raw_response.create(**form())
    assert response.status_code == 200
    local_router.full = True
    with pytest.raises(RateLimitError):
        await openai.audio.transcriptions.create(**form())


async def test_an_error_after_the_first_window_ends_the_stream(
    http: httpx.AsyncClient, local_router: LocalRouter
) -> None:
    local_router.error = (1, Unavailable("the worker is gone"))
    data = {"stream": "true", "temperature": "[0.0]", "language": "en"}
    response = await http.post("/v1/audio/transcriptions", data=data, files={"file": ("a.wav", FILE)})
    *_, last = [line for line in response.text.split("\n\n") if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
    assert not local_router.live


async def test_a_client_that_goes_frees_its_window(service: Service, local_router: LocalRouter) -> None:
    local_router.stall_after = 1
    async with connected(service) as client:
        data = {"temperature": "[0.0]", "language": "en"}
        asking = asyncio.create_task(
            client.post("/v1/audio/transcriptions", data=data, files={"file": ("a.wav", FILE)})
        )
        while len(local_router.requests) < 2:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert not local_router.live
        assert len(local_router.cancelled) == 1
