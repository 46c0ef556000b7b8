"""What is said to CUDA, in which order: there need not be a GPU to tell it to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tandem.workers.execution.side_stream import SideStream


def test_without_cuda_work_is_done_as_it_comes() -> None:
    made = torch.ones(2)
    work = SideStream(torch.device("cpu")).begin(lambda: made)
    assert work.done
    assert work.wait() is made


def test_whoever_reads_waits_and_keeps_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    over = [False, True]

    class Stream:
        def __init__(self, device: torch.device, name: str = "side") -> None:
            self.device, self.name = device, name

        def wait_stream(self, other: Stream) -> None:
            said.append(f"{self.name} waits for {other.name}")

        def record_event(self) -> SimpleNamespace:
            said.append(f"{self.name} marks the end")
            return SimpleNamespace(query=lambda: over.pop(0))

        def wait_event(self, event: object) -> None:
            assert isinstance(event, SimpleNamespace)
            said.append(f"{self.name} waits for the end")

    class Made:
        device = torch.device("cuda", 0)

        def record_stream(self, stream: Stream) -> None:
            said.append(f"{stream.name} keeps it")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        said.append(f"on {stream.name}")
        yield
        said.append(f"off {stream.name}")

    def work() -> Made:
        said.append("work")
        return Made()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    side = SideStream(torch.device("cuda", 0))
    assert said == ["side waits for main"]  # which loads the weights
    said.clear()
    begun = side.begin(work)  # type: ignore[arg-type]
    assert said == ["on side", "work", "off side", "side marks the end"]  # nobody waits yet
    assert [begun.done, begun.done] == [False, True]
    said.clear()
    assert isinstance(begun.wait(), Made)
    assert said == ["main waits for the end", "main keeps it"]
