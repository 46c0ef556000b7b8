"""Hidden states arrive as they left."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError, ObjectLostError, OwnerDiedError

from tandem.cluster import handoff
from tandem.cluster.handoff import HiddenLoader, HiddenSlice, fetch, pack, unpack
from tandem.errors import HiddenStatesLost


class Reference:
    def __init__(self, value: object) -> None:
        self.value = value

    def future(self) -> Future[Any]:
        future: Future[Any] = Future()
        if isinstance(self.value, BaseException):
            future.set_exception(self.value)
        else:
            future.set_result(self.value)
        return future


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "kind"), [(7, bytes), (9000, np.ndarray)])
def test_packed_states_survive_the_way_bit_by_bit(dtype: torch.dtype, tokens: int, kind: type) -> None:
    hidden = torch.randn(tokens, 5).to(dtype)
    assert isinstance(pack(hidden)["rows"], kind)
    arrived = unpack(pickle.loads(pickle.dumps(pack(hidden), protocol=5)))
    assert arrived.dtype == dtype
    assert torch.equal(arrived, hidden)


def test_packing_takes_views_and_gradients() -> None:
    hidden = torch.randn(6, 8, requires_grad=True)[::2, ::2]
    assert torch.equal(unpack(pack(hidden)), hidden.detach())


LARGE = handoff.SMALL_BYTES // 8 + 1  # rows of two numbers


def test_unpacking_copies_nothing() -> None:
    packed = pack(torch.zeros(LARGE, 2))
    rows: Any = packed["rows"]
    rows[1, 1] = 5
    assert unpack(packed)[1, 1] == 5
    view = unpack(packed)
    rows[0, 0] = 7
    assert view[0, 0] == 7


def test_read_only_memory_is_read_without_a_warning() -> None:
    packed = pack(torch.ones(LARGE, 2))
    rows: Any = packed["rows"]
    rows.flags.writeable = False
    assert unpack(packed).sum() == 2 * LARGE


def test_another_version_counts_as_lost() -> None:
    packed = pack(torch.zeros(1, 1))
    packed["schema"] = handoff.SCHEMA + 1
    with pytest.raises(HiddenStatesLost, match="schema"):
        unpack(packed)


@pytest.mark.parametrize(
    "error",
    [ObjectLostError("0" * 56, None, ""), OwnerDiedError("0" * 56, None, ""), ActorDiedError()],
    ids=["object", "owner", "encoder"],
)
async def test_every_loss_is_the_same_error(error: Exception) -> None:
    with pytest.raises(HiddenStatesLost, match=type(error).__name__):
        await fetch(Reference(error))  # type: ignore[arg-type]


async def test_an_encoder_is_waited_for_but_a_transfer_has_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([False, False, True])
    monkeypatch.setattr(handoff, "TRANSFER_S", 0.02)
    monkeypatch.setattr(handoff, "is_made", lambda _: next(made))
    reference = Reference(None)
    monkeypatch.setattr(reference, "future", Future)
    async with asyncio.timeout(5):
        with pytest.raises(HiddenStatesLost):
            await fetch(reference)  # type: ignore[arg-type]
    assert next(made, None) is None


async def test_giving_up_waiting_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, future = Reference(None), Future[Any]()
    monkeypatch.setattr(reference, "future", lambda: future)
    task = asyncio.create_task(fetch(reference))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert future.cancelled()


async def test_a_loader_has_its_rows_until_the_request_ends_and_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.get", None)
    hidden = torch.arange(12.0).reshape(6, 2)
    reference: Any = Reference(pack(hidden))
    fetched = await fetch(reference)
    loader = HiddenLoader(9, HiddenSlice(reference, 2, 5), fetched)
    assert loader.handle == 9
    assert torch.equal(loader(), hidden[2:5])
    assert torch.equal(loader(), hidden[2:5])  # after a preemption
    rows = weakref.ref(loader())
    loader.let_go()
    gc.collect()
    assert rows() is None
    with pytest.raises(HiddenStatesLost):
        loader()
