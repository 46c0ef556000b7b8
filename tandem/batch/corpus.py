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

from tandem.batch import media_columns, records
from tandem.batch.media_files import files_in, modality_of
from tandem.errors import InvalidRequest
from tandem.inputs import MODALITIES, Modality
from tandem.lines import read_lines

_COMPRESSIONS: Final = (".gz", ".bz2", ".zst", ".lz4")
_ROWS_OF_BYTES: Final = 16  # read at once, of tables that hold files
_KINDS: Final = (".jsonl", *(f".jsonl{compression}" for compression in _COMPRESSIONS), ".parquet")


def files(source: Path) -> list[Path]:
    """The files that `source` stands for, sorted: itself, those of a folder, or those a pattern matches. A
    folder without lines stands for its recordings and those of the folders in it; one without recordings for
    its images.

    Raises InvalidRequest where there is none.
    """
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.name.endswith(_KINDS))
        found = found or next(filter(None, (files_in(source, one).found for one in MODALITIES)), [])
    elif source.exists() or not glob.has_magic(str(source)):
        return [source]
    else:
        found = sorted(map(Path, glob.glob(str(source), recursive=True)))
    if not found:
        raise InvalidRequest(
            f"no {' or '.join(_KINDS)}, no recording and no image in {source}", field="input"
        )
    return found


def modality(source: Path) -> Modality | None:
    """What all the files are; None: they have lines, or are not all of one kind."""
    found = set(map(modality_of, files(source)))
    return found.pop() if len(found) == 1 else None


def count(source: Path) -> int:
    """How many `lines` there are."""
    return sum(_row_count(path, _folder(source)) for path in files(source))


def lines(source: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers, from 1 on through all files.

    A row of a Parquet file is a line, too: its columns are an object's members. So is a recording or an
    image: its members are "audio" or "image", its path, and "id", its path within the folder that was named.
    """
    number, folder = 0, _folder(source)
    for path in files(source):
        with _read(path, folder) as texts:
            for text in texts:
                number += 1
                if text.strip():
                    yield number, text


@contextmanager
def _read(path: Path, folder: Path) -> Iterator[Iterator[bytes]]:
    try:
        if path.name.endswith(".parquet"):
            yield _rows(path)
        elif (column := modality_of(path)) is not None:
            values = {"id": path.relative_to(folder).as_posix(), column: str(path)}
            yield iter([json.dumps(values).encode()])
        else:
            yield _lines(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError | ValueError) -> InvalidRequest:
    """Which file of several cannot be read, and why."""
    why = (isinstance(error, OSError) and error.strerror) or error
    return InvalidRequest(f"cannot be read: {path}: {why}", field="input")


def _folder(source: Path) -> Path:
    """The folder that a path or a pattern begins with."""
    named = next(path for path in (source, *source.parents) if not glob.has_magic(str(path)))
    return named if named.is_dir() else named.parent


def _row_count(path: Path, folder: Path) -> int:
    """Those of a table without a look at them, which may be gigabytes of files."""
    if path.name.endswith(".parquet"):
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
    with _read(path, folder) as texts:
        return sum(1 for text in texts if text.strip())


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
        of_bytes = any("binary" in str(field.type) for field in file.schema_arrow)
        for batch in file.iter_batches(_ROWS_OF_BYTES) if of_bytes else file.iter_batches():
            for row in batch.to_pylist():
                # A row has every column of the file; those it makes no use of are null.
                values = {
                    name: media_columns.encoded(value) for name, value in row.items() if value is not None
                }
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
    total = count(source)
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
