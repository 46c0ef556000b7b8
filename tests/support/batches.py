"""A batch's pipeline in this process, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pyarrow as pa

from tandem.batch import run as batch


def in_process(
    read: Callable[[], Iterator[pa.Table]], answerer: dict[str, Any], connections: int
) -> Generator[pa.Table, None, None]:
    assert connections == 1
    answer = batch.Answerer(**answerer)
    with asyncio.Runner() as runner:
        for chunk in read():
            yield runner.run(answer(chunk))
