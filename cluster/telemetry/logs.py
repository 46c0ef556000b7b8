"""Lines about what happens, of every process of a cluster: one for each call and one for each event.

They go to the pipe or file that TANDEM_LOG names, else to standard error, which Ray keeps in its own files.
What clients send or are sent is in none of them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, Literal

LogFormat = Literal["text", "json"]

PATH: Final = "TANDEM_LOG"  # of the environment
_LINES: Final = 10_000  # that wait to be written; what is beyond is dropped, and counted
_PAUSE_S: Final = 0.05  # lines gather so long: a write costs as much as the making of a few
_URGENT_S: Final = 0.2  # longest that whoever logs a warning waits for it to be written
_CLOSE_S: Final = 2.0  # longest that the end of a log waits for its reader
_PIECE: Final = 4096  # bytes: what a pipe takes in one piece, from several processes
_STDERR: Final = 2

_GOES_ON: Final = "  > "  # begins each line of a traceback, in text
_OURS: Final = re.compile(
    r'(\{"time": ")?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z(", "level": "| )'
    r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b|" + _GOES_ON
)

# Where Ray begins to guess, in several lines.
_GUESSES: Final = re.compile(r" (?:Some common causes|There are some potential root causes)")

_log: Log | None = None  # this process's


def start(log_format: LogFormat, *, calls: bool) -> None:
    """Has this process's loggers write lines. `calls`: clients' calls, too. Later calls of it do nothing."""
    global _log
    if _log is None:
        _log = Log(log_format, calls, os.environ.get(PATH))
        root = logging.getLogger("tandem")
        root.addHandler(_Handler(_log))
        root.setLevel(logging.INFO)


def call(fields: Mapping[str, object]) -> None:
    """Logs a client's call, where calls are logged. Fields that are None or "" are left out."""
    if _log is not None and _log.calls:
        _log.add(time.time(), "INFO", "call", fields)


def is_ours(line: str) -> bool:
    """Whether a line among those of others is one that a process has logged here."""
    return _OURS.match(line) is not None


def cause(error: object) -> str:
    """Why a worker is gone, in one short line."""
    text = short_cause(str(error))
    return f"{type(error).__name__}: {text}" if text else repr(error)


def short_cause(text: str) -> str:
    """Ray's account of a death without its guesses, in one short line."""
    text = " ".join(text.split())
    for begin in ("Worker exit detail: ", "The actor is dead because "):
        _, found, rest = text.partition(begin)
        if found:
            text = _GUESSES.split(rest, maxsplit=1)[0]
            break
    return text[:300]


class Log:
    """Formats lines here and writes them in a thread of its own, so that nobody waits for a slow reader."""

    def __init__(self, log_format: LogFormat, calls: bool, path: str | None) -> None:
        """`path`: of the file or pipe; None: standard error. So is one that cannot be written to, which a
        line says."""
        self.calls = calls
        self._shape = _json if log_format == "json" else _text
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._wanted, self._urgent, self._written = threading.Event(), threading.Event(), threading.Event()
        self._fd, problem = _opened(path)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        atexit.register(self._write_all)
        if problem:
            self.add(time.time(), "WARNING", problem, {})

    def add(self, at: float, level: str, message: str, fields: Mapping[str, object]) -> None:
        """`at`: in seconds since 1970."""
        self.add_line(self._shape(at, level, message, fields))

    def add_line(self, line: str) -> None:
        """A whole one, or several that belong together."""
        if len(self._waiting) >= _LINES:
            self._dropped += 1
            return
        self._waiting.append(line)
        if not self._wanted.is_set():
            self._wanted.set()

    def hurry(self) -> None:
        """Returns when what has been added is written, or the reader is slow."""
        self._written.clear()
        self._urgent.set()
        self._wanted.set()
        self._written.wait(_URGENT_S)

    def close(self) -> None:
        """Returns when all is written, or the reader is too slow for it."""
        atexit.unregister(self._write_all)
        self._closed = True
        self._urgent.set()
        self._wanted.set()
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive() and self._fd != _STDERR:
            os.close(self._fd)

    def _run(self) -> None:
        while not self._closed:
            self._wanted.wait()
            self._urgent.wait(_PAUSE_S)
            self._wanted.clear()
            self._urgent.clear()
            self._write_all()
            self._written.set()

    def _write_all(self) -> None:
        if self._dropped:
            lost, self._dropped = self._dropped, 0
            self._waiting.append(
                self._shape(time.time(), "WARNING", f"{lost} lines were dropped: too slow a reader", {})
            )
        with contextlib.suppress(OSError):  # the reader has gone, and another one may come; the disk is full
            for piece in _pieces(self._waiting):
                while piece:
                    piece = piece[os.write(self._fd, piece) :]


class _Handler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        self._log.add(record.created, record.levelname, record.getMessage(), fields)
        if record.levelno >= logging.WARNING:
            self._log.hurry()


def _opened(path: str | None) -> tuple[int, str]:
    """Where lines go, and what is wrong with where they should."""
    if path is None:
        return _STDERR, ""
    try:
        # A pipe that nobody reads is refused at once, instead of waiting for a reader.
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
        os.set_blocking(fd, True)
    except OSError as error:
        return _STDERR, f"{PATH}={path} cannot be written to ({error.strerror}): lines go to standard error"
    return fd, ""


def _pieces(lines: deque[str]) -> Iterator[bytes]:
    """Takes the lines, whole ones together as far as a pipe takes them in one piece."""
    piece = b""
    while lines:
        line = lines.popleft().encode(errors="backslashreplace")
        if piece and len(piece) + len(line) > _PIECE:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece


def _stamp(at: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at * 1000) % 1000:03}Z"


def _given(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def _json(at: float, level: str, message: str, fields: Mapping[str, object]) -> str:
    said = {"time": _stamp(at), "level": level, "message": message, **_given(fields)}
    return json.dumps(said) + "\n"


def _text(at: float, level: str, message: str, fields: Mapping[str, object]) -> str:
    said = _given(fields)
    trace = said.pop("traceback", None)
    named = "".join(f" {name}={_value(value)}" for name, value in said.items())
    line = f"{_stamp(at)} {level} {message.translate(_ONE_LINE)}{named}\n"
    return line + "".join(f"{_GOES_ON}{more}\n" for more in str(trace or "").splitlines())


_ONE_LINE: Final = {ord("\n"): " ", ord("\r"): " "}
_QUOTED: Final = re.compile(r'[ ="\\\n\r]')  # a value with one of these


def _value(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text or _QUOTED.search(text) else text
