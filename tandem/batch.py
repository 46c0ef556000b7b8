"""Whole corpora: JSON lines in, JSON lines out, through a server, as often interrupted as it likes.

The output has a line for each line of the input, in the same order. That order is also all there is to
remember: what the output holds is done, and a run that finds it goes on behind it.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Protocol, Unpack

from tqdm import tqdm

from tandem import records
from tandem.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    RequestTooLarge,
    Unavailable,
)
from tandem.inputs import Chosen, Prompt
from tandem.limits import DEFAULT_LIMITS
from tandem.outputs import RequestOutput
from tandem.params import Params

CONCURRENCY: Final = 256  # requests at the server at a time
# Lines taken up, as a multiple of those, while the answer to the first of them is awaited.
_AHEAD: Final = 8
# A line whose answer keeps failing may be what makes it fail: it is given up, and the others go on.
_ATTEMPTS: Final = 3
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_PRIORITY: Final = -DEFAULT_LIMITS.priority  # whoever waits for an answer goes first


class Server(Protocol):
    """What is needed of `AsyncClient`."""

    async def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        **chosen: Unpack[Chosen],
    ) -> RequestOutput: ...


_Ask = Callable[[Prompt, Params | None, Chosen], Awaitable[RequestOutput]]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run has done; lines of earlier runs are not counted."""

    answered: int
    refused: int  # lines whose answer is an error
    tokens: int  # generated


def remaining(source: Path, sink: Path) -> int:
    """How many lines of `source` are not answered in `sink` yet. Raises InvalidRequest as `run` does."""
    total = sum(1 for _ in _lines(source))
    with _opened(source, sink) as out:
        return total - _resume(source, out)


async def run(
    source: Path,
    sink: Path,
    server: Server,
    *,
    defaults: Mapping[str, Any] | None = None,
    beams: bool = False,
    concurrency: int = CONCURRENCY,
    timeout_s: float = DEFAULT_LIMITS.timeout_s,
    patience_s: float = 600.0,
    use_tqdm: bool = True,
) -> Summary:
    """Answers the lines of `source` that `sink` does not answer yet.

    Args:
        source: a JSON object a line: a prompt (see `records.request`) and its decoding parameters.
        defaults: decoding parameters, task and languages for lines that do not set them.
        beams: the model searches with beams where a line does not say how to decode.
        concurrency: requests at the server at a time.
        timeout_s: longest time an answer may take.
        patience_s: how long a server may be gone or full before the run gives up.
        use_tqdm: show a progress bar.

    A line that is refused has its error in the output. Raises InvalidRequest for files that do not belong
    together, Unavailable where patience is over; another run goes on from there.
    """
    if concurrency < 1:
        raise InvalidRequest(f"must be at least 1, got {concurrency}", field="concurrency")
    records.parameters(dict(defaults or {}), beams=beams)  # else every line would be refused
    total = sum(1 for _ in _lines(source))
    with _opened(source, sink) as out:
        done = _resume(source, out)
        lines = itertools.islice(_lines(source), done, None)
        answered = refused = tokens = 0
        ask = partial(_ask, server, timeout_s, patience_s)
        answer = partial(_answer, ask=ask, defaults=defaults or {}, beams=beams)
        async with aclosing(_answers(lines, answer, concurrency)) as answers:
            progress = tqdm(total=total, initial=done, desc="Answering", unit="line", disable=not use_tqdm)
            async for record in answers:
                out.write(records.line(record).encode())
                out.flush()
                if "error" in record:
                    refused += 1
                else:
                    answered += 1
                    tokens += sum(output["tokens"] for output in record["outputs"])
                progress.set_postfix(tokens=tokens, errors=refused, refresh=False)
                progress.update()
            progress.close()
        os.fsync(out.fileno())
    return Summary(answered, refused, tokens)


async def _answers(
    lines: Iterator[tuple[int, bytes]],
    answer: Callable[[int, bytes], Coroutine[Any, Any, dict[str, Any]]],
    concurrency: int,
) -> AsyncGenerator[dict[str, Any]]:
    """The lines' answers, in their order."""
    free = asyncio.Semaphore(concurrency)
    ahead: deque[asyncio.Task[dict[str, Any]]] = deque()
    try:
        for number, text in lines:
            await free.acquire()
            task = asyncio.create_task(answer(number, text))
            task.add_done_callback(lambda _: free.release())
            ahead.append(task)
            while ahead and (ahead[0].done() or len(ahead) == _AHEAD * concurrency):
                yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def _answer(
    number: int, text: bytes, ask: _Ask, defaults: Mapping[str, Any], beams: bool
) -> dict[str, Any]:
    identity = {"id": _identity(text, number)}
    try:
        asked = records.request(records.parse(text), defaults, beams=beams)
        return identity | records.answer(await ask(*asked))
    except (InvalidRequest, RequestTooLarge, DeadlineExceeded, InternalError) as error:
        if error.field in ("timeout", "timeout_ms"):  # not the line's
            raise
        return identity | records.failure(error)


async def _ask(
    server: Server,
    timeout_s: float,
    patience_s: float,
    prompt: Prompt,
    params: Params | None,
    chosen: Chosen,
) -> RequestOutput:
    """Tries again what is worth it: while the server is gone or full, and a few times where it fails."""
    loop = asyncio.get_running_loop()
    give_up, pause, attempts = loop.time() + patience_s, _FIRST_PAUSE_S, 0
    while True:
        try:
            output = await server.generate(prompt, params, priority=_PRIORITY, timeout=timeout_s, **chosen)
            if all(sample.finish_reason != "deadline" for sample in output.outputs):
                return output
            raise DeadlineExceeded(f"not finished after {timeout_s:g} s")
        except (Unavailable, Overloaded):
            if loop.time() > give_up:
                raise
        except (DeadlineExceeded, InternalError):
            attempts += 1
            if attempts == _ATTEMPTS:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers, from 1."""
    try:
        with source.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InvalidRequest(f"cannot be read: {error}", field="input") from None


@contextmanager
def _opened(source: Path, sink: Path) -> Iterator[IO[bytes]]:
    """The output, which only one run may write."""
    if sink.exists() and source.samefile(sink):
        raise InvalidRequest("must not be the input", field="output")
    try:
        file = sink.open("ab+")
    except OSError as error:
        raise InvalidRequest(f"cannot be written: {error}", field="output") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(f"another run writes {sink}", field="output") from None
        yield file


def _resume(source: Path, out: IO[bytes]) -> int:
    """How many lines are answered. Takes away an answer that was being written when a run was killed.

    Raises InvalidRequest where the answers are to other lines.
    """
    out.seek(0)
    done = end = 0
    last = b""
    for text in out:
        if text.endswith(b"\n"):
            done, end, last = done + 1, end + len(text), text
    out.truncate(end)
    if not done:
        return 0
    answered = next(itertools.islice(_lines(source), done - 1, None), None)
    if answered is None:
        raise InvalidRequest(f"has {done} lines, more than the input", field="output")
    number, text = answered
    if _identity(last, None) != _identity(text, number):
        raise InvalidRequest(
            f"its line {done} does not answer line {number} of the input; remove it to start anew",
            field="output",
        )
    return done


def _identity(text: bytes, default: int | None) -> int | str | None:
    try:
        return records.identity(records.parse(text), default)
    except InvalidRequest:
        return default
