"""Lines to answers: what each actor of a batch does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, Unpack

import pyarrow as pa

from tandem.batch import corpus, images, media_columns, openai_lines, recordings, records
from tandem.batch.media_columns import MediaColumn
from tandem.errors import (
    OF_ONE_REQUEST,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    Unavailable,
    renaming_fields,
)
from tandem.inputs import Audio, CallOptions, Prompt, RequestOptions
from tandem.limits import DEFAULT_LIMITS
from tandem.outputs import RequestOutput
from tandem.params import Params
from tandem.transcription import Transcription, TranscriptionOptions, TranscriptionParams

T = TypeVar("T")

# A line whose answer keeps failing may be what makes it fail: it is given up, and the others go on.
_ATTEMPTS: Final = 3
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_PARAMS: Final = {f"params.{name}": name for name in TranscriptionParams.model_fields}
_IMAGES: Final = ("encoder_prompt.media", "multi_modal_data.image")
_PRIORITY: Final = -DEFAULT_LIMITS.priority  # whoever waits for an answer goes first


class Server(Protocol):
    """The part of `AsyncClient` that a run needs."""

    async def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        **options: Unpack[RequestOptions],
    ) -> RequestOutput: ...

    async def transcribe(
        self, audio: Audio, *, options: CallOptions | None = None, **asked: Unpack[TranscriptionOptions]
    ) -> Transcription: ...


class Answerer:
    """Has lines answered: what an actor does.

    Args:
        connect, connect_http: make the connections to the cluster, for lines of Tandem's and of OpenAI's.
            Lines without a connection are refused.
        concurrency: requests sent ahead of their answers.
        defaults, timeout_s, patience_s: see `run`.
        media: which member of lines is a recording, or an image; None: none is.
        folder: where relative paths begin.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], Server] | None,
        connect_http: Callable[[], openai_lines.HttpServer] | None,
        concurrency: int,
        defaults: Mapping[str, Any],
        timeout_s: float,
        patience_s: float,
        media: MediaColumn | None,
        folder: Path,
    ) -> None:
        self._connect, self._connect_http = connect, connect_http
        self._defaults = defaults
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._media, self._folder = media, folder
        self._server: Server | None = None
        self._http: openai_lines.HttpServer | None = None
        self._chunks = 0  # at work
        self._carried: dict[str, None] = {}  # names that no chunk has told yet
        self._free = asyncio.Semaphore(concurrency)

    async def __call__(self, chunk: pa.Table) -> pa.Table:
        """A chunk is one row: the lines' `numbers` and `texts` become `answers`, which are lines as well, the
        `tokens` of each answer, null where it is an error, the seconds of their recordings (`audio_s`), the
        `errors`, each after its line's number, and the names of what is `carried`."""
        (numbers,), (texts,) = chunk["numbers"].to_pylist(), chunk["texts"].to_pylist()
        self._chunks += 1
        try:
            answers = await asyncio.gather(
                *(self._answer(number, text) for number, text in zip(numbers, texts, strict=True))
            )
        finally:
            self._chunks -= 1
            if not self._chunks and self._http is not None:  # nothing says which chunk is the last
                http, self._http = self._http, None
                await http.close()
        lines = "".join(map(records.line, answers)).encode()
        errors = [
            f"line {number}: {message}".encode(errors="backslashreplace")
            for number, answer in zip(numbers, answers, strict=True)
            if (message := _error(answer)) is not None
        ]
        carried, self._carried = self._carried, {}
        return pa.table(
            {
                "answers": pa.array([lines], pa.large_binary()),
                "tokens": pa.array([[_tokens(answer) for answer in answers]], pa.list_(pa.int64())),
                "audio_s": pa.array([sum(map(_audio_s, answers))], pa.float64()),
                "errors": pa.array([errors], pa.list_(pa.large_binary())),
                "carried": pa.array([list(carried)], pa.list_(pa.string())),
            }
        )

    async def _answer(self, number: int, text: bytes) -> dict[str, Any]:
        identity: dict[str, Any] = {"id": corpus.identity(text, number)}
        async with self._free:
            try:
                values = records.parse(text)
                if self._media is not None:
                    modality, column = self._media
                    carried = (recordings if modality == "audio" else images).carried(values, column)
                    self._carried |= dict.fromkeys(carried)
                    identity |= media_columns.place(values, column) | carried
                    answer = self._transcribe if modality == "audio" else self._read_images
                    return identity | await answer(values, column)
                if openai_lines.is_request(values):
                    return await self._post(values)
                carried = records.carried(values)
                self._carried |= dict.fromkeys(carried)
                identity |= carried
                asked = records.request(values, self._defaults)
                return identity | records.answer(await self._patiently(partial(self._ask, *asked)))
            except OF_ONE_REQUEST as error:
                if error.field in ("timeout_s", "timeout_ms"):  # not the line's
                    raise
                return identity | records.failure(error)

    async def _transcribe(self, values: dict[str, Any], column: str) -> dict[str, Any]:
        """The answer's part of a line with a recording."""
        asked = recordings.request(values, column, self._defaults)
        data = await asyncio.to_thread(media_columns.read, values.get(column), column, self._folder)
        options = CallOptions(priority=_PRIORITY, timeout_s=self._timeout_s)

        async def ask() -> Transcription:
            return await self._connected().transcribe(data, options=options, **asked)

        # gRPC's request has the recording as audio, and the parameters in a message of their own.
        with renaming_fields({"audio": column} | _PARAMS):
            return recordings.answer(await self._patiently(ask))

    async def _read_images(self, values: dict[str, Any], column: str) -> dict[str, Any]:
        """The answer's part of a line with an image, or several."""
        prompt, params, options = images.request(values, column, self._defaults)
        prompt = images.about(prompt, await asyncio.to_thread(images.read, values, column, self._folder))
        with renaming_fields(dict.fromkeys(_IMAGES, column)):
            return records.answer(await self._patiently(partial(self._ask, prompt, params, options)))

    def _connected(self) -> Server:
        if self._connect is None:
            raise InvalidRequest(
                "is needed over HTTP, for one of OpenAI's request lines; --server HOST:PORT, the gRPC "
                "endpoint, answers the others",
                field="custom_id",
            )
        if self._server is None:  # it belongs to the event loop, which the constructor is not in
            self._server = self._connect()
        return self._server

    async def _ask(self, prompt: Prompt, params: Params | None, options: RequestOptions) -> RequestOutput:
        options = {**options, "priority": _PRIORITY, "timeout_s": self._timeout_s}
        output = await self._connected().generate(prompt, params, **options)
        if any(sample.finish_reason == "deadline" for sample in output.outputs):
            raise DeadlineExceeded(f"not finished after {self._timeout_s:g} s")
        return output

    async def _post(self, values: dict[str, Any]) -> dict[str, Any]:
        """The answer of one of OpenAI's lines."""
        try:
            if self._connect_http is None:
                raise InvalidRequest(
                    "is of OpenAI's HTTP API: give --server http://HOST:PORT", field="custom_id"
                )
            if self._http is None:
                self._http = self._connect_http()
            url, body = openai_lines.request(values, self._defaults)
            body = {"priority": _PRIORITY, "timeout_s": self._timeout_s, **body}
            response = await self._patiently(partial(self._http.post, url, body, self._timeout_s))
        except OF_ONE_REQUEST as error:
            return openai_lines.failure(values, error)
        return openai_lines.answer(values, response)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Tries again while the server is gone or full, and a few times where a request fails."""
        loop = asyncio.get_running_loop()
        give_up, pause, attempts = loop.time() + self._patience_s, _FIRST_PAUSE_S, 0
        while True:
            try:
                return await ask()
            except (Unavailable, Overloaded):
                if loop.time() > give_up:
                    raise
            except (DeadlineExceeded, InternalError):
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _error(answer: Mapping[str, Any]) -> str | None:
    if "custom_id" in answer:
        return openai_lines.message(answer)
    return str(answer["error"]["message"]) if "error" in answer else None


def _tokens(answer: Mapping[str, Any]) -> int | None:
    if "custom_id" in answer:
        return openai_lines.tokens(answer)
    if recordings.is_answer(answer):
        return recordings.tokens(answer)
    return sum(output["tokens"] for output in answer["outputs"]) if "outputs" in answer else None


def _audio_s(answer: Mapping[str, Any]) -> float:
    return float(answer["duration"]) if recordings.is_answer(answer) else 0.0
