"""Whole corpora: lines of requests in, lines of answers out. A run that was interrupted is taken up again.

A Ray Data pipeline: one task reads the lines, actors send them to the cluster's ingress and wait for the
answers, and this process writes these in the input's order. Ray Data streams, so that a corpus may be
larger than all memory, and replaces a reader or an actor that dies: the few chunks it was at are done
again, and written once. The engines are the cluster's, where a request that loses its engine goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, Unpack

import pyarrow as pa
from tqdm import tqdm

from tandem.batch import corpus, openai_lines, records
from tandem.errors import (
    OF_ONE_REQUEST,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from tandem.inputs import Prompt, RequestOptions
from tandem.limits import DEFAULT_LIMITS
from tandem.outputs import RequestOutput
from tandem.params import Params

T = TypeVar("T")

CONCURRENCY: Final = 256  # requests at the cluster at a time
# Lines that are sent, answered and written together: what Ray does for each costs about as much as a
# request, and an actor that dies has them done again.
_CHUNK: Final = 16
# Lines an actor holds, as a multiple of its requests, so that it never waits for the slowest of a chunk.
_AHEAD: Final = 2
# Lines read, and answers that are ready before those of an earlier line, take no more than this of the
# object store, which also carries what encoders hand to decoders.
_BUFFER_BYTES: Final = 256 * 2**20
# A line whose answer keeps failing may be what makes it fail: it is given up, and the others go on.
_ATTEMPTS: Final = 3
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_PRIORITY: Final = -DEFAULT_LIMITS.priority  # whoever waits for an answer goes first


class Server(Protocol):
    """The part of `AsyncClient` that a run needs."""

    async def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        **options: Unpack[RequestOptions],
    ) -> RequestOutput: ...


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run has done; lines of earlier runs are not counted."""

    answered: int
    refused: int  # lines whose answer is an error
    tokens: int  # generated


class Answerer:
    """Has lines answered: what an actor does.

    Args:
        connect, connect_http: make the connections to the cluster, for lines of Tandem's and of OpenAI's.
            Lines without a connection are refused.
        concurrency: requests sent ahead of their answers.
        defaults, timeout_s, patience_s: see `run`.
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
    ) -> None:
        self._connect, self._connect_http = connect, connect_http
        self._defaults = defaults
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._server: Server | None = None
        self._http: openai_lines.HttpServer | None = None
        self._chunks = 0  # at work
        self._carried: dict[str, None] = {}  # names that no chunk has told yet
        self._free = asyncio.Semaphore(concurrency)

    async def __call__(self, chunk: pa.Table) -> pa.Table:
        """A chunk is one row: the lines' `numbers` and `texts` become `answers`, which are lines as well, the
        `tokens` of each answer, null where it is an error, the `errors`, each after its line's number, and
        the names of what is `carried`."""
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
                "errors": pa.array([errors], pa.list_(pa.large_binary())),
                "carried": pa.array([list(carried)], pa.list_(pa.string())),
            }
        )

    async def _answer(self, number: int, text: bytes) -> dict[str, Any]:
        identity: dict[str, Any] = {"id": corpus.identity(text, number)}
        async with self._free:
            try:
                values = records.parse(text)
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

    async def _ask(self, prompt: Prompt, params: Params | None, options: RequestOptions) -> RequestOutput:
        if self._connect is None:
            raise InvalidRequest(
                "is needed over HTTP, for one of OpenAI's request lines; --server HOST:PORT, the gRPC "
                "endpoint, answers the others",
                field="custom_id",
            )
        if self._server is None:  # it belongs to the event loop, which the constructor is not in
            self._server = self._connect()
        options = {**options, "priority": _PRIORITY, "timeout_s": self._timeout_s}
        output = await self._server.generate(prompt, params, **options)
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


# Lines, what has them answered, and how many of those → the answers, in order.
Pipeline = Callable[[Callable[[], Iterator[pa.Table]], dict[str, Any], int], Generator[pa.Table, None, None]]


def run(
    source: Path,
    sink: Path,
    connect: Callable[[], Server] | None,
    *,
    connect_http: Callable[[], openai_lines.HttpServer] | None = None,
    connections: int = 1,
    defaults: Mapping[str, Any] | None = None,
    concurrency: int = CONCURRENCY,
    timeout_s: float = DEFAULT_LIMITS.timeout_s,
    patience_s: float = 600.0,
    use_tqdm: bool = True,
    on_error: Callable[[str], None] = lambda _: None,
    on_carried: Callable[[list[str]], None] = lambda _: None,
    pipeline: Pipeline | None = None,
) -> Summary:
    """Answers the lines of `source` that `sink` does not answer yet. Ray must run.

    Args:
        source: a file, a folder or a pattern (see `corpus.files`): a JSON object a line, which is a prompt
            (see `records.request`) and its decoding parameters.
        connect, connect_http: make a connection to the cluster, in an actor on this machine, for lines of
            Tandem's and of OpenAI's (see `openai_lines`); None: such lines are refused.
        connections: how many connections.
        defaults: decoding parameters, task and languages for lines that do not set them.
        concurrency: requests at the cluster at a time.
        timeout_s: longest time an answer may take.
        patience_s: how long the cluster may be gone or full before the run gives up.
        use_tqdm: show a progress bar.
        on_error: is told of each line that is refused, "line 17: …", the lines of all files numbered through.
        on_carried: is told the names of members that are copied to the answers, see `records.carried`, once.
        pipeline: has the lines answered; None: `on_ray`.

    A line that is refused has its error in the output. Raises InvalidRequest for files that do not belong
    together, Unavailable where patience is over; another run goes on from there.
    """
    if concurrency < 1:
        raise InvalidRequest(f"must be at least 1, got {concurrency}", field="concurrency")
    records.parameters(defaults or {})  # else every line would be refused
    records.options(defaults or {})
    total = sum(1 for _ in corpus.lines(source))
    with corpus.answers(source, sink) as (out, done):
        answerer = {
            "connect": connect,
            "connect_http": connect_http,
            "concurrency": -(-concurrency // connections),
            "defaults": dict(defaults or {}),
            "timeout_s": timeout_s,
            "patience_s": patience_s,
        }
        read = partial(_read, source.absolute(), done)
        answered = refused = tokens = 0
        carried: set[str] = set()
        progress = tqdm(total=total, initial=done, desc="Answering", unit="line", disable=not use_tqdm)
        with closing(progress), closing((pipeline or on_ray)(read, answerer, connections)) as chunks:
            for chunk in chunks:
                (lines,), (counts,) = chunk["answers"].to_pylist(), chunk["tokens"].to_pylist()
                (messages,), (names,) = chunk["errors"].to_pylist(), chunk["carried"].to_pylist()
                out.write(lines)
                out.flush()
                for message in messages:
                    on_error(message.decode())
                if new := [name for name in names if name not in carried]:
                    carried.update(new)
                    on_carried(new)
                errors = counts.count(None)
                answered, refused = answered + len(counts) - errors, refused + errors
                tokens += sum(filter(None, counts))
                progress.set_postfix(tokens=tokens, errors=refused, refresh=False)
                progress.update(len(counts))
        os.fsync(out.fileno())
    return Summary(answered, refused, tokens)


def on_ray(
    read: Callable[[], Iterator[pa.Table]], answerer: dict[str, Any], connections: int
) -> Generator[pa.Table, None, None]:
    """The pipeline on Ray Data. None of its tasks reserves a CPU: workers may have reserved them all, and
    a task that waits for one would wait for ever."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources
    from ray.exceptions import RayTaskError

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=_BUFFER_BYTES
    )
    context.target_max_block_size = 1  # byte: a chunk is a row, and each is passed on by itself
    context.execution_no_progress_timeout_s = -1  # `_ask` has its own
    context.raise_original_map_exception = True
    calls = _AHEAD * -(-answerer["concurrency"] // _CHUNK)
    # Files need not be the same on all machines, nor need the cluster listen beyond this one. The two
    # selectors differ in words only, which keeps Ray Data from making one task of reading and answering.
    node = ray.get_runtime_context().get_node_id()
    reader, actors = {"ray.io/node-id": node}, {"ray.io/node-id": f"in({node})"}
    with DataContext.current(context):
        answers = (
            ray.data.from_items([0])
            .map_batches(lambda _: read(), num_cpus=0, label_selector=reader)
            .map_batches(
                Answerer,
                fn_constructor_kwargs=answerer,
                batch_format="pyarrow",
                num_cpus=0,
                label_selector=actors,
                compute=ActorPoolStrategy(size=connections, max_concurrent_calls_per_actor=calls),
            )
        )
        try:
            yield from answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        except RayTaskError as error:
            raise error.cause from None


def _read(source: Path, done: int) -> Iterator[pa.Table]:
    """The lines after the first `done`, in chunks, with their numbers."""
    lines = itertools.islice(corpus.lines(source), done, None)
    while chunk := list(itertools.islice(lines, _CHUNK)):
        numbers, texts = zip(*chunk, strict=True)
        yield pa.table(
            {
                "numbers": pa.array([numbers], pa.list_(pa.int64())),
                "texts": pa.array([texts], pa.list_(pa.large_binary())),
            }
        )


def _error(answer: Mapping[str, Any]) -> str | None:
    if "custom_id" in answer:
        return openai_lines.message(answer)
    return str(answer["error"]["message"]) if "error" in answer else None


def _tokens(answer: Mapping[str, Any]) -> int | None:
    if "custom_id" in answer:
        return openai_lines.tokens(answer)
    return sum(output["tokens"] for output in answer["outputs"]) if "outputs" in answer else None
