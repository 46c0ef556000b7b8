"""What a process logs: lines, in either format, to the pipe that the starting process prints."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cluster.telemetry import disk, logs
from tandem.cluster.telemetry.logs import Log, cause, is_ours
from tandem.cluster.telemetry.printing import printed
from tandem.errors import Unavailable

TEXTS = st.text(max_size=40) | st.sampled_from(["a=b", 'say "hi"', "two\nlines", "", "\ud800"])


@settings(max_examples=60)
@given(message=TEXTS, value=TEXTS)
def test_each_is_one_line_that_can_be_read_again(message: str, value: str) -> None:
    fields = {"request_id": value, "missing": None, "tokens": 3}
    text = logs._text(1.5, "INFO", message, fields)
    assert text.endswith(" tokens=3\n")
    assert text.rstrip("\n").count("\n") == 0
    assert text.startswith("1970-01-01T00:00:01.500Z INFO ")
    read: dict[str, Any] = json.loads(logs._json(1.5, "INFO", message, fields))
    expected = {"time": "1970-01-01T00:00:01.500Z", "level": "INFO", "message": message, "tokens": 3}
    assert read == expected | ({"request_id": value} if value else {})


LOGGING = """
import logging, sys
from tandem.cluster.telemetry import logs
logs.start(sys.argv[1], calls=True)
for n in range(3000):
    logs.call({"method": "Generate", "status": "OK", "request_id": f"{sys.argv[2]}-{n}"})
try:
    raise ValueError("broken")
except ValueError:
    logging.getLogger("tandem.cluster.test").exception("a defect")
logging.getLogger("other").info("not ours")
if sys.argv[2] == "killed":
    import os
    os._exit(9)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_of_several_processes_are_whole_and_none_is_missing(form: str) -> None:
    out = io.BytesIO()
    with printed(out):
        assert os.environ[logs.PATH]
        processes = [
            subprocess.Popen([sys.executable, "-c", LOGGING, form, name], stderr=subprocess.PIPE, text=True)
            for name in ("one", "two", "killed")
        ]
        for process in processes:
            assert process.communicate(timeout=120)[1] == ""
    assert logs.PATH not in os.environ
    lines = out.getvalue().decode().splitlines()
    for name in ("one", "two", "killed"):
        assert sum(f"{name}-2999" in line for line in lines) == 1
        assert sum(f"{name}-" in line for line in lines) == 3000
    if form == "json":
        read = [json.loads(line) for line in lines]
        defects = [one for one in read if one["level"] == "ERROR"]
        assert [one["message"] for one in defects] == ["a defect"] * 3
        assert "ValueError: broken" in defects[0]["traceback"]
    else:
        assert sum("ERROR a defect logger=tandem.cluster.test" in line for line in lines) == 3


def test_a_pipe_that_nobody_reads_is_said_and_stops_nobody(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "log")
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, "text", "one"], env=os.environ | {logs.PATH: str(pipe)},
        stderr=subprocess.PIPE, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert f"WARNING TANDEM_LOG={pipe} cannot be written to" in done.stderr
    assert "one-2999" in done.stderr


def a_chain() -> Exception:
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise RuntimeError("last\n\nof several lines") from error
    except RuntimeError as error:
        return error


def a_group() -> Exception:
    async def fails() -> None:
        raise ValueError("in a task")

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())
            tasks.create_task(fails())

    try:
        asyncio.run(both())
    except ExceptionGroup as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("make", [a_chain, a_group])
@pytest.mark.parametrize("shape", [logs._text, logs._json])
def test_each_line_of_a_traceback_can_be_told_from_those_of_others(make: Any, shape: Any) -> None:
    error = make()
    trace = "".join(traceback.format_exception(error))
    lines = shape(1.5, "ERROR", "failed", {"traceback": trace}).splitlines()
    assert all(map(is_ours, lines))
    if shape is logs._text:
        assert [line[4:] for line in lines[1:]] == trace.splitlines()
    assert not any(map(is_ours, trace.splitlines()))  # somebody else's


def test_a_reader_that_comes_back_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "log")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = Log("text", True, str(path))
    os.close(reader)
    log.add_line("nobody reads it\n")
    log.hurry()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log.add_line("one\n")
    log.close()
    assert os.read(reader, 100) == b"one\n"
    os.close(reader)


def test_a_log_ends_though_its_reader_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_CLOSE_S", 0.1)
    os.mkfifo(path := tmp_path / "log")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = Log("text", True, str(path))
    log.add_line("a" * 2**21)
    log.close()
    os.close(reader)


def test_a_slow_reader_costs_lines_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    monkeypatch.setattr(logs, "_opened", lambda _: (writer, ""))
    log = Log("text", True, "a pipe")
    for number in range(30_000):
        log.add(0.0, "INFO", f"line {number}", {})
    logging.getLogger("tandem.test").debug("no matter")
    read = b""
    while b"lines were dropped" not in read:
        try:
            read += os.read(reader, 2**20)
        except BlockingIOError:
            log.add(0.0, "INFO", "more", {})
            log.hurry()
    assert re.search(rb"WARNING \d+ lines were dropped: too slow a reader", read)


def test_a_workers_end_is_one_short_line() -> None:
    class ActorDiedError(Exception):
        pass

    error = ActorDiedError(
        "The actor died unexpectedly before finishing this task.\n\tclass_name: EngineActor\n\tactor_id: 0f\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
        "detail: Worker unexpectedly exits with a connection error code 2. End of file. There are some "
        "potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage."
    )
    said = "ActorDiedError: Worker unexpectedly exits with a connection error code 2. End of file."
    assert cause(error) == said
    assert cause(TimeoutError()) == "TimeoutError()"


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    gib = 2**30
    monkeypatch.setenv("RAY_TMPDIR", "/somewhere")
    full = lambda _: (100 * gib, 100 * gib, 2**20)  # noqa: E731
    low = lambda _: (100 * gib, 97 * gib, 3 * gib)  # noqa: E731
    roomy = lambda _: (100 * gib, 90 * gib, 10 * gib)  # noqa: E731
    assert disk.problem(roomy) is None
    assert str(disk.problem(low)).startswith("3.0 GiB, 3.0%, left on /somewhere: ")
    assert str(disk.problem(full)).startswith("no space left on /somewhere: ")
    disk.check_room(low)
    with pytest.raises(Unavailable, match="no space left on /somewhere, where Ray keeps its files"):
        disk.check_room(full)
    monkeypatch.setattr(disk, "problem", lambda: "no space left on /somewhere")
    watch = disk.DiskWatch()
    for _ in range(5):
        watch.look()
    assert caplog.messages == ["no space left on /somewhere"]  # once a minute
