"""The files of a batch: lines of requests in, which may be many files, and one file of answers out.

The output has a line for each line of the input, in the same order. That order is also all there is to
remember: what the output holds is done, and a run that finds it goes on from there.
"""

from __future__ import annotations

import fcntl
import glob
import io
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from tandem.batch import records
from tandem.errors import InvalidRequest
from tandem.lines import read_lines

_COMPRESSIONS: Final = (".gz", ".bz2", ".zst", ".lz4")
_KINDS: Final = (".jsonl", *(f".jsonl{compression}" for compression in _COMPRESSIONS), ".parquet")


def files(source: Path) -> list[Path]:
    """The files that `source` stands for, sorted: itself, those of a folder, or those a pattern matches.

    Raises InvalidRequest where there is none.
    """
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.name.endswith(_KINDS))
    elif source.exists() or not glob.has_magic(str(source)):
        return [source]
    else:
        found = sorted(map(Path, glob.glob(str(source), recursive=True)))
    if not found:
        raise InvalidRequest(f"no {' or '.join(_KINDS)} in {source}", field="input")
    return found


def lines(source: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers, from 1 on through all files.

    A row of a Parquet file is a line, too: its columns are an object's members.
    """
    number = 0
    for path in files(source):
        try:
            for text in _rows(path) if path.name.endswith(".parquet") else _lines(path):
                number += 1
                if text.strip():
                    yield number, text
        except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
            raise InvalidRequest(f"cannot be read: {error}", field="input") from None


def _lines(path: Path) -> Iterator[bytes]:
    if not path.name.endswith(_COMPRESSIONS):
        with path.open("rb") as file:
            yield from read_lines(file)
        return
    import pyarrow as pa

    with pa.input_stream(path) as stream:  # the name's end says which compression
        yield from read_lines(io.BufferedReader(stream))


def _rows(path: Path) -> Iterator[bytes]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                # A row has every column of the file; those it makes no use of are null.
                values = {name: value for name, value in row.items() if value is not None}
                yield json.dumps(values, default=str).encode()


@contextmanager
def answers(source: Path, sink: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The output, which only one run may write, and the number of lines it answers already.

    Raises InvalidRequest where that cannot be, or where it answers another input.
    """
    if sink.exists() and any(path.exists() and path.samefile(sink) for path in files(source)):
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
        yield file, _resume(source, file)


def remaining(source: Path, sink: Path) -> int:
    """How many lines of `source` are not answered in `sink` yet. Raises InvalidRequest as `answers`."""
    total = sum(1 for _ in lines(source))
    with answers(source, sink) as (_, done):
        return total - done


def _resume(source: Path, out: IO[bytes]) -> int:
    """The number of answered lines. An answer that was being written when a run was killed is cut off."""
    out.seek(0)
    done = end = 0
    last = b""
    for text in out:
        if text.endswith(b"\n"):
            done, end, last = done + 1, end + len(text), text
    out.truncate(end)
    if not done:
        return 0
    answered = next(itertools.islice(lines(source), done - 1, None), None)
    if answered is None:
        raise InvalidRequest(f"has {done} lines, more than the input", field="output")
    number, text = answered
    if _answered(last, number) != identity(text, number):
        raise InvalidRequest(
            f"its line {done} does not answer line {number} of the input; remove it to start anew",
            field="output",
        )
    return done


def identity(text: bytes, default: int | None) -> int | str | None:
    """A line's own id, else `default`, even where the line is malformed otherwise."""
    try:
        return records.identity(records.parse(text), default)
    except InvalidRequest:
        return default


def _answered(line: bytes, number: int) -> int | str | None:
    """Which line an answer's line is for: one whose `custom_id` is no id is known by its place alone."""
    try:
        values = records.parse(line)
    except InvalidRequest:
        return None
    return records.identity(values, number if "custom_id" in values else None)
