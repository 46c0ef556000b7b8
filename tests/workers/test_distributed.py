"""What ranks say to each other, between real processes over gloo."""

from __future__ import annotations

import socket
import sys
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from tandem.errors import InternalError
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import IDLE, Group, open_meeting
from tandem.workers.local_group import LocalGroup

CPU = torch.device("cpu")


def test_a_group_of_one_says_nothing(tmp_path: Path) -> None:
    group = Group.create(0, 1, f"file://{tmp_path}/meeting", CPU)
    x = torch.arange(6.0).view(2, 3)
    assert group.all_reduce(x) is group.gather_columns(x) is group.broadcast(x) is x
    group.send_integers([1, 2])
    group.close()
    assert not (tmp_path / "meeting").exists()
    assert not torch.distributed.is_initialized()


def everything(group: Group) -> dict[str, Any]:
    """What a rank gets from every call."""
    rank = group.rank
    mine = torch.arange(6.0).view(2, 3) + 100 * rank
    summed, told = mine.clone(), torch.full((3,), rank)
    group.all_reduce(summed)
    group.broadcast(told)
    # Columns of a wider tensor: not contiguous.
    gathered = group.gather_columns(mine[:, 1:])
    received = []
    for values in ([7, -1, 2**62], [], list(range(5000))):
        if rank == 0:
            group.send_integers(values)
        else:
            received.append(group.receive_integers().tolist())
    return {
        "summed": summed.tolist(),
        "told": told.tolist(),
        "gathered": None if gathered is None else gathered.tolist(),
        "received": received,
        "patience": backend_of(group).options._timeout,
    }


def backend_of(group: Group) -> Any:
    assert group.control is not None
    return group.control._get_backend(CPU)


def _rank(rank: int, size: int, meeting: str, answers: SimpleQueue[tuple[int, dict[str, Any]]]) -> None:
    torch.set_num_threads(1)
    group = Group.create(rank, size, meeting, CPU)
    answers.put((rank, everything(group)))
    group.close()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    size = 3
    meeting = f"file://{tmp_path_factory.mktemp('group')}/meeting"
    heard: SimpleQueue[tuple[int, dict[str, Any]]] = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(size, meeting, heard), nprocs=size)
    return dict(heard.get() for _ in range(size))


def test_all_reduce_sums(answers: dict[int, dict[str, Any]]) -> None:
    expected = (3 * torch.arange(6.0).view(2, 3) + 300).tolist()
    assert [answers[rank]["summed"] for rank in range(3)] == [expected] * 3


def test_broadcast_is_rank_0s(answers: dict[int, dict[str, Any]]) -> None:
    assert [answers[rank]["told"] for rank in range(3)] == [[0, 0, 0]] * 3


def test_columns_are_gathered_on_rank_0_in_order(answers: dict[int, dict[str, Any]]) -> None:
    assert answers[0]["gathered"] == [[1, 2, 101, 102, 201, 202], [4, 5, 104, 105, 204, 205]]
    assert answers[1]["gathered"] is answers[2]["gathered"] is None


def test_integers_arrive_as_they_were_sent(answers: dict[int, dict[str, Any]]) -> None:
    for rank in (1, 2):
        assert answers[rank]["received"] == [[7, -1, 2**62], [], list(range(5000))]


def test_no_one_can_take_the_port_of_a_meeting() -> None:
    where, _store = open_meeting()
    port = int(where.rpartition(":")[2])
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    assert open_meeting()[0] != where


def test_an_idle_group_does_not_run_out_of_time(answers: dict[int, dict[str, Any]]) -> None:
    assert [answers[rank]["patience"] for rank in range(3)] == [IDLE] * 3


def test_a_child_that_fails_to_start_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(InternalError, match="rank 1 ended with status 1"):
        LocalGroup(EngineConfig("somewhere", tensor_parallel_size=2))
    assert not torch.distributed.is_initialized()
