"""Whatever a command is doing when SIGINT or SIGTERM comes, it ends with 130 or 143 and says so."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

# Each waits until it has said that it is there; what a signal then meets is what real commands met.
COMMANDS = """
import atexit, contextlib, os, signal, sys, threading, time
from tandem.cli import _Command
from tandem.cli.options import errors_shown, err
from tandem.errors import Unavailable
app = _Command(pretty_exceptions_enable=False)

def there():
    print("there", flush=True)

@app.command()
def works():
    with errors_shown():
        there()
        time.sleep(60)

@app.command()
def waits():
    with errors_shown("Stopped."):
        with contextlib.suppress(KeyboardInterrupt):
            there()
            threading.Event().wait()
        err.print("Finishing")

@app.command()
def drops_it():
    with errors_shown():
        try:
            there()
            time.sleep(60)
        except BaseException:
            pass

class Slow:
    def __del__(self):
        there()
        time.sleep(5)

@app.command()
def interrupted_where_nobody_is_told():
    with errors_shown():
        slow = Slow()
        del slow
        time.sleep(60)

@app.command()
def cleans_up_with(error: str):
    with errors_shown():
        try:
            there()
            time.sleep(60)
        finally:
            raise {"pipe": BrokenPipeError(32, "Broken pipe"), "ours": Unavailable("gone"),
                   "exit": SystemExit(1), "value": ValueError("x")}[error]

@app.command()
def crashes_at_exit():
    atexit.register(os.abort)
    with errors_shown():
        there()
        time.sleep(60)

@app.command()
def ray_starts():
    from tandem.cluster.serve_compat.driver import own_signals
    with errors_shown():
        with own_signals():
            signal.signal(signal.SIGTERM, lambda *_: os.abort())  # as Ray's library does
            there()
            end = time.monotonic() + 1
            while time.monotonic() < end:
                time.sleep(0.05)
            print("started", flush=True)
        time.sleep(60)

@app.command()
def ends_slowly():
    with errors_shown():
        try:
            there()
            time.sleep(60)
        finally:
            there()
            time.sleep(60)
app()
"""
CASES: list[tuple[list[str], str]] = [
    (["works"], "Interrupted."),
    (["waits"], "Finishing\nStopped."),
    (["drops-it"], "Interrupted."),
    (["interrupted-where-nobody-is-told"], "Interrupted."),
    (["cleans-up-with", "pipe"], "Interrupted."),
    (["cleans-up-with", "ours"], "Interrupted."),
    (["cleans-up-with", "exit"], "Interrupted."),
    (["cleans-up-with", "value"], "Interrupted."),
    (["crashes-at-exit"], "Interrupted."),
    (["ray-starts"], "Interrupted."),
    (["ends-slowly"], ""),  # the second signal ends it at once
]


def ended(arguments: list[str], number: signal.Signals) -> tuple[int, str]:
    command = [sys.executable, "-c", COMMANDS, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "there\n", process.stderr.read()
        process.send_signal(number)
        if arguments == ["ends-slowly"]:
            assert process.stdout.readline() == "there\n"
            process.send_signal(number)
        if arguments == ["ray-starts"]:
            assert process.stdout.readline() == "started\n"
        _, said = process.communicate(timeout=60)
        return process.returncode, said.strip()


@pytest.mark.parametrize(
    ("number", "code", "cases"), [(signal.SIGINT, 130, CASES), (signal.SIGTERM, 143, [CASES[0], CASES[-2]])]
)
def test_the_exit_code_is_the_signals(
    number: signal.Signals, code: int, cases: list[tuple[list[str], str]]
) -> None:
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(lambda case: ended(case[0], number), cases)
        for (arguments, said), result in zip(cases, results, strict=True):
            assert result == (code, said), arguments
