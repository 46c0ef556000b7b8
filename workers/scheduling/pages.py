"""Which K/V pages are free. Only their ids: the tensors are `models.kv_pool`'s."""

from __future__ import annotations

from itertools import pairwise


class PagePool:
    """Hands out page ids 0 … total-1. Self- and cross-attention draw from the same pool."""

    def __init__(self, total: int, page_size: int) -> None:
        self.total = total
        self.page_size = page_size  # positions in a page
        self._free = list(range(total - 1, -1, -1))  # popped from the end: low ids first

    @property
    def free(self) -> int:
        return len(self._free)

    def pages_for(self, positions: int) -> int:
        return -(-positions // self.page_size)

    def take(self, count: int) -> list[int] | None:
        """`count` pages, or None, and none taken, if fewer are free."""
        if count > len(self._free):
            return None
        if count == 0:
            return []
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        return taken

    def give_back(self, pages: list[int]) -> None:
        self._free.extend(reversed(pages))

    def check(self, held: list[int]) -> None:
        """Raises AssertionError unless every page is in exactly one place: free, or once in `held`."""
        seen = sorted(self._free + held)
        if seen != list(range(self.total)):
            lost = sorted(set(range(self.total)) - set(seen))
            twice = sorted({page for page, after in pairwise(seen) if page == after})
            raise AssertionError(f"pages lost: {lost}, used twice: {twice}")
