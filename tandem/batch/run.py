"""Whole corpora: lines of requests in, lines of answers out. A run that was interrupted is taken up again.

A Ray Data pipeline: one task reads the lines, actors send them to the cluster's ingress and wait for the
answers, and this process writes these in the input's order. Ray Data streams, so that a corpus may be
larger than all memory, and replaces a reader or an actor that dies: the few chunks it was at are done
again, and written once. The engines are the cluster's, where a request that loses its engine goes on.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from tqdm import tqdm

from tandem.batch import corpus, images, openai_lines, recordings, records
from tandem.batch.answerer import Answerer, Server
from tandem.batch.media_columns import MediaColumn
from tandem.errors import InvalidRequest
from tandem.inputs import Modality
from tandem.limits import DEFAULT_LIMITS

CONCURRENCY: Final = 256  # requests at the cluster at a time
# Lines that are sent, answered and written together: what Ray does for each costs about as much as a
# request, and an actor that dies has them done again.
_CHUNK: Final = 16
_CHUNK_BYTES: Final = 8 * 2**20  # a line may hold a recording or images
# Lines an actor holds, as a multiple of its requests, so that it never waits for the slowest of a chunk.
_AHEAD: Final = 2
# Lines read, and answers that are ready before those of an earlier line, take no more than this of the
# object store, which also carries what encoders hand to decoders.
_BUFFER_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run has done; lines of earlier runs are not counted."""

    answered: int
    refused: int  # lines whose answer is an error
    tokens: int  # generated
    audio_s: float = 0.0  # the recordings' length


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
    media: MediaColumn | None = None,
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
        media: the member of lines that has a recording or an image (see `media_columns.read`). A recording is
            transcribed: the other members are fields of `TranscriptionParams` or copied. An image, or a list
            of them, goes with the line's prompt, the defaults' "prompt" or none. None: lines are prompts,
            unless `source` is recordings or images.
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
    if media is None and (modality := corpus.modality(source)) is not None:
        media = MediaColumn(modality, modality)
    check_defaults(defaults or {}, None if media is None else media.modality)
    total = corpus.count(source)
    with corpus.answers(source, sink) as (out, done):
        answerer = {
            "connect": connect,
            "connect_http": connect_http,
            "concurrency": -(-concurrency // connections),
            "defaults": dict(defaults or {}),
            "timeout_s": timeout_s,
            "patience_s": patience_s,
            "media": media,
            "folder": Path.cwd(),
        }
        read = partial(_read, source.absolute(), done)
        answered = refused = tokens = 0
        audio_s = 0.0
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
                audio_s += chunk["audio_s"][0].as_py()
                heard = media is not None and media.modality == "audio"
                audio = {"audio_s": round(audio_s)} if heard else {}
                progress.set_postfix(tokens=tokens, **audio, errors=refused, refresh=False)
                progress.update(len(counts))
        os.fsync(out.fileno())
    return Summary(answered, refused, tokens, audio_s)


def check_defaults(defaults: Mapping[str, Any], modality: Modality | None) -> None:
    """Raises InvalidRequest, naming the field, for what would refuse every line. `modality`: what lines
    have."""
    if modality == "audio":
        recordings.parameters(defaults)
    else:
        defaults = images.without_prompt(defaults) if modality == "image" else defaults
        records.parameters(defaults)
        records.options(defaults)


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
    context.execution_no_progress_timeout_s = -1  # an answerer has its own
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
    for chunk in _chunks(itertools.islice(corpus.lines(source), done, None)):
        numbers, texts = zip(*chunk, strict=True)
        yield pa.table(
            {
                "numbers": pa.array([numbers], pa.list_(pa.int64())),
                "texts": pa.array([texts], pa.list_(pa.large_binary())),
            }
        )


def _chunks(lines: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    chunk: list[tuple[int, bytes]] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line[1])
        if len(chunk) == _CHUNK or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
