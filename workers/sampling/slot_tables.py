"""What the sampler remembers of every slot, on the device."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from tandem.workers.sampling.to_device import to_device


class Columns:
    """Named numbers for every slot. One copy to the device sets them all."""

    def __init__(self, slots: int, names: Seq[str], dtype: torch.dtype, device: torch.device) -> None:
        self.names = tuple(names)
        self._table = torch.zeros(len(names), slots, dtype=dtype, device=device)
        self._rows: dict[str, torch.Tensor] = dict(zip(self.names, self._table, strict=True))

    def put(self, slots: torch.Tensor, values: Seq[Seq[float]]) -> None:
        """values: [len(slots)][len(names)]. slots: int64, distinct."""
        table = to_device(values, self._table.device, self._table.dtype)
        self._table[:, slots] = table.T

    def __getitem__(self, name: str) -> torch.Tensor:
        """[slots], to read and to write."""
        return self._rows[name]

    def of(self, slots: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every number of these slots, [len(slots), 1] each, read in one go."""
        return dict(zip(self.names, self._table[:, slots].unsqueeze(2).unbind(), strict=True))


class Lists:
    """A list for every slot, padded with `fill`; as wide as the longest so far."""

    def __init__(
        self, slots: int, device: torch.device, *, dtype: torch.dtype = torch.int64, fill: float = -1
    ) -> None:
        self._table = torch.full((slots, 0), fill, dtype=dtype, device=device)
        self._fill = fill

    @property
    def table(self) -> torch.Tensor:
        """[slots, width], to read."""
        return self._table

    def clear(self, slots: torch.Tensor) -> None:
        if self._table.shape[1]:
            self._table[slots] = self._fill

    def put(self, slots: Seq[int], values: Seq[float]) -> None:
        """Gives these slots, which are clear, the same list."""
        self._table = widened(self._table, len(values), self._fill)
        device = self._table.device
        self._table[to_device(slots, device), : len(values)] = to_device(values, device, self._table.dtype)

    def __getitem__(self, slots: torch.Tensor) -> torch.Tensor:
        """[len(slots), width]."""
        return self._table[slots]


class History:
    """The decoder's tokens of every slot whose request reads them: the prefix, then the generated ones."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._table = torch.zeros(slots, 0, dtype=torch.int64, device=device)

    @property
    def table(self) -> torch.Tensor:
        """int64 [slots, width], to read."""
        return self._table

    @property
    def width(self) -> int:
        return self._table.shape[1]

    def start(self, slots: Seq[int], tokens: Seq[int], positions: int) -> None:
        """These slots begin with `tokens` and may grow to `positions`."""
        self._table = widened(self._table, positions, 0)
        device = self._table.device
        self._table[to_device(slots, device), : len(tokens)] = to_device(tokens, device)

    def append(self, slots: torch.Tensor, lengths: torch.Tensor, tokens: torch.Tensor) -> None:
        """Writes one token for each slot, at position `lengths`. A slot that was not started may be longer
        than the table; its tokens are never read."""
        self._table[slots, lengths.clamp(max=self.width - 1)] = tokens

    def __getitem__(self, slots: torch.Tensor) -> torch.Tensor:
        """int64 [*slots.shape, width]; the tokens beyond a slot's length are arbitrary."""
        return self._table[slots]

    def __setitem__(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        self._table[slots] = tokens


def widened(table: torch.Tensor, width: int, fill: float) -> torch.Tensor:
    """The table with at least `width` columns. It grows to at least twice its width, and so seldom."""
    slots, before = table.shape
    if width <= before:
        return table
    wide = table.new_full((slots, max(width, 2 * before)), fill)
    wide[:, :before] = table
    return wide
