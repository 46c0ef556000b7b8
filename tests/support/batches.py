"""What tests of batches share: a server that answers by itself, files of lines, a pipeline without Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from tandem.batch.answerer import Answerer
from tandem.inputs import Audio, CallOptions, Prompt, RequestOptions, TaskOptions, task_options
from tandem.outputs import CompletionOutput, RequestOutput
from tandem.params import Params
from tandem.transcription import Transcription, TranscriptionOptions, TranscriptionSegment


def output(text: str, finish_reason: Any = "stop") -> RequestOutput:
    return RequestOutput("r", None, [5, 1], None, [0], [CompletionOutput(0, text, [7, 8, 1], finish_reason)])


def transcription(text: str, duration_s: float) -> Transcription:
    segment = TranscriptionSegment(0, 0.0, 0.0, duration_s, f" {text}", [7, 8], 0.0, -0.5, 1.0, 0.1)
    return Transcription(text, "en", duration_s, [segment], "sequential", 50, 2)


class Server:
    """Answers with the prompt in capitals, unless a test's `answer` says otherwise; to a recording with its
    bytes, which take a second each."""

    def __init__(self, answer: Callable[[str], Awaitable[RequestOutput]] | None = None) -> None:
        self.asked: list[tuple[Prompt, Params | None, int]] = []
        self.task_options: list[TaskOptions] = []
        self.truncations: list[int | None] = []
        self.heard: list[tuple[Audio, CallOptions, TranscriptionOptions]] = []
        self.running = self.most = 0
        self._answer = answer

    async def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        **options: Unpack[RequestOptions],
    ) -> RequestOutput:
        assert options["timeout_s"]
        self.task_options.append(task_options(options))
        self.truncations.append(options.get("truncate_prompt_tokens"))
        self.asked.append((prompt, params, options["priority"]))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            text = str(prompt.get("prompt", prompt) if isinstance(prompt, dict) else prompt)
            return await self._answer(text) if self._answer else output(text.upper())
        finally:
            self.running -= 1

    async def transcribe(
        self, audio: Audio, *, options: CallOptions | None = None, **asked: Unpack[TranscriptionOptions]
    ) -> Transcription:
        assert isinstance(audio, bytes)
        self.heard.append((audio, options or {}, asked))
        if self._answer:
            await self._answer(audio.decode())
        return transcription(audio.decode().upper(), float(len(audio)))


def write(path: Path, *lines: Any) -> None:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def in_process(
    read: Callable[[], Iterator[pa.Table]], answerer: dict[str, Any], connections: int
) -> Generator[pa.Table, None, None]:
    assert connections == 1
    answer = Answerer(**answerer)
    with asyncio.Runner() as runner:
        for chunk in read():
            yield runner.run(answer(chunk))
