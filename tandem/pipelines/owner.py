"""What every pipeline is: a task, and a model that it may have loaded itself."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tandem.offline import LLM


class ModelOwner:
    """`close` (or `with`) ends the worker processes of a model that it has loaded."""

    def __init__(self, task: str, llm: LLM, *, owned: bool) -> None:
        self.task, self.llm, self._owned = task, llm, owned

    def close(self) -> None:
        if self._owned:
            self.llm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
