"""When an ingress replica has another process started, and when no more."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import grpc
import pytest

from tandem.cluster.ingress import spare


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "_LATER_S", 0.0)
    monkeypatch.setattr(spare, "_LOOK_S", 0.0)


class Enough(Exception):
    pass


def machine(*there: bool) -> tuple[list[int], Callable[[], bool], Callable[[], None]]:
    """What is asked of a machine on which at each look a process waits, or not."""
    looks, started = list(there), list[int]()

    def waits() -> bool:
        if not looks:
            raise Enough
        return looks.pop(0)

    return started, waits, lambda: started.append(len(looks))


async def test_one_that_is_gone_is_replaced_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    expired = [True, False, True, True]
    started, waits, start = machine(False, *expired, *expired, *expired, *expired)
    with pytest.raises(Enough):
        await spare.keep_spare(waits, start)
    assert started == [16, 14, 10, 6, 2]
    assert not caplog.messages


async def test_where_none_is_kept_none_is_started_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    started, waits, start = machine(*[False] * 9)
    await asyncio.wait_for(spare.keep_spare(waits, start), 10)
    assert len(started) == 3
    [line] = caplog.messages
    assert line.startswith("no process waits to be the next ingress replica: Ray ends it")


async def test_a_machine_that_does_not_answer_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise Refused("it is gone")

    class Refused(grpc.RpcError):
        pass

    _, waits, _ = machine(*[False] * 9)
    await asyncio.wait_for(spare.keep_spare(waits, fails), 10)
    [line] = caplog.messages
    assert line.endswith("it is gone")


PREPARED = """
import sys, time, types
import ray
from tandem.cluster.ingress import preparation
from tandem.cluster.serve_compat import spare_worker
sys.modules["tandem.cluster.ingress.ingress"] = None  # it need not be loaded

ids = {"nobody": ray.ActorID.nil(), "actor": ray.ActorID(b"a" * ray.ActorID.size())}
ray._private.worker.global_worker = types.SimpleNamespace(actor_id=ids[%r])
assert spare_worker.WAITS_S <= 3600
spare_worker.WAITS_S = 0.1
preparation.prepare()
time.sleep(1)
raise SystemExit(3)
"""


@pytest.mark.parametrize(("whose", "code"), [("nobody", 0), ("actor", 3)])
def test_a_process_that_nobody_has_taken_ends_itself(whose: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", PREPARED % whose], timeout=120)
    assert done.returncode == code
