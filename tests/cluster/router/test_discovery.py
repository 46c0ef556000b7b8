"""A router goes on looking for replicas, whatever they answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ray.exceptions import RayError

from tandem.cluster.router import discovery
from tandem.cluster.router.discovery import Discovery


class Handle:
    """A deployment's handle. `answers` are its next looks, the last again and again."""

    def __init__(self, *answers: list[Any] | Exception) -> None:
        self._answers = list(answers)

    def broadcast(self, method: str) -> Handle:
        assert method == "describe"
        return self

    async def results_async(self, **_: object) -> list[Any]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@asynccontextmanager
async def looking(*answers: list[Any] | Exception) -> AsyncIterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    handle: Any = Handle(*answers)
    looks = Discovery("mine", handle, found.__setitem__, lambda: bool(found))
    await looks.start()
    yield found
    await looks.close()


@pytest.mark.parametrize(
    "trouble",
    [
        ValueError("unforeseen"),
        RayError(),
        TimeoutError(),
        [None],
        [("a",)],
        [(1, 2, 3, 4)],
        [("a", "actor")],
    ],
    ids=str,
)
async def test_trouble_with_one_look_is_not_the_end(trouble: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "RETRY_S", 0.001)
    async with looking([], trouble, [("a", "actor", "mine")]) as found, asyncio.timeout(5):
        while not found:
            await asyncio.sleep(0.001)
    assert found == {"a": "actor"}


async def test_replicas_of_others_are_passed_over() -> None:
    answers = [("a", 1, "mine"), ("b", 2, "another's"), ("c", 3), RayError(), ("d", 4, "mine")]
    async with looking(answers) as found:
        assert found == {"a": 1, "d": 4}
