"""Recordings to transcriptions, step by step: with a model in this process, or by a server."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

import typer

from tandem.cli.options import connect
from tandem.cli.speech.recordings import STDIN, Recording
from tandem.errors import Overloaded, TandemError, renaming_fields

if TYPE_CHECKING:
    from tandem.client import Client
    from tandem.inputs import Audio
    from tandem.transcription import Transcription, TranscriptionOptions

_AT_ONCE: Final = 8  # recordings at a server
_PAUSE_S: Final = 0.5  # before a full server is asked again


class Step(NamedTuple):
    """How far a recording is."""

    number: int  # the recording's
    done_s: float
    answer: Transcription | TandemError | None  # with its last step


def transcription_steps(
    recordings: Sequence[Recording],
    model: str | None,
    server: str | None,
    api_key_env: str,
    asked: TranscriptionOptions,
    timeout_s: float,
) -> Generator[Step, None, None]:
    """Exactly one of model and server is there. Raises what is every recording's error."""
    audio = [_read_stdin() if one.path is None else one.path for one in recordings]
    if server is not None:
        with connect(server, api_key_env) as client:
            yield from _on_server(client, audio, asked, timeout_s)
        return
    assert model is not None
    from tandem.offline import LLM

    with LLM(model) as llm, closing(llm.transcribe_each(audio, **asked)) as steps:
        for step in steps:
            yield Step(step.number, step.done_s, step.answer)


def _on_server(
    client: Client, audio: Sequence[Audio], asked: TranscriptionOptions, timeout_s: float
) -> Generator[Step, None, None]:
    """A few recordings at a time, so that their windows share batches there."""
    steps: SimpleQueue[Step | Exception] = SimpleQueue()

    def transcribe(number: int, one: Audio) -> None:
        give_up = time.monotonic() + timeout_s
        while True:
            try:
                # gRPC's request has the parameters in a message of their own.
                with renaming_fields(lambda field: field.removeprefix("params.")):
                    for delta in client.stream_transcription(one, options={"timeout_s": timeout_s}, **asked):
                        steps.put(Step(number, delta.done_s, delta.transcription))
            except Overloaded as error:
                if time.monotonic() < give_up:
                    time.sleep(_PAUSE_S)
                    continue
                steps.put(Step(number, 0.0, error))
            except TandemError as error:
                steps.put(Step(number, 0.0, error))
            except Exception as error:
                steps.put(error)
            return

    pool = ThreadPoolExecutor(_AT_ONCE, "recording")
    try:
        for number, one in enumerate(audio):
            pool.submit(transcribe, number, one)
        left = len(audio)
        while left:
            step = steps.get()
            if isinstance(step, Exception):
                raise step
            left -= step.answer is not None
            yield step
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        client.close()  # ends what is under way


def _read_stdin() -> bytes:
    if sys.stdin.isatty():
        raise typer.BadParameter(f"{STDIN} is a terminal, not a recording", param_hint="FILES")
    return sys.stdin.buffer.read()
