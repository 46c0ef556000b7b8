"""What a front makes of media, computed once for equal items and kept for those that come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from tandem.workers.device import Streams
from tandem.workers.distributed import Group
from tandem.workers.execution.packet import Ints
from tandem.workers.models.stacks import EncoderStack
from tandem.workers.request import NO_KEY, MediaCounts, MediaKey


class FrontCache:
    """An encoder's front, with its outputs by their items' keys: those used last, bounded in bytes.

    Every rank of a group sees the same keys in the same order, so all keep the same outputs, and none has to
    be told which.
    """

    def __init__(self, encoder: EncoderStack, group: Group, capacity_bytes: int, streams: Streams) -> None:
        """capacity_bytes: on each rank; 0: nothing is kept, equal items of one call are computed once."""
        self._encoder, self._group, self._streams = encoder, group, streams
        spec = encoder.spec.front
        self._capacity = capacity_bytes if spec is not None and spec.kept else 0
        self._kept: OrderedDict[MediaKey, torch.Tensor] = OrderedDict()  # the one used last at the end
        self._encoded = self._reused = self._nbytes = 0

    @property
    def counts(self) -> MediaCounts:
        """Since the start."""
        return MediaCounts(self._encoded, self._reused, self._nbytes)

    def vectors(
        self, keys: Sequence[MediaKey], token_ids: Ints, features: Sequence[torch.Tensor]
    ) -> torch.Tensor | None:
        """The front's output for the items of packed inputs, [items * FrontSpec.positions, d_model], which is
        the caller's own; None for no items.

        Args:
            token_ids: the inputs'.
            features: on rank 0 the items', float32 [items of an input, *FrontSpec.features] each, on the CPU.
                The other ranks' are empty: those that are computed come from rank 0.
        """
        front, spec = self._encoder.front, self._encoder.spec.front
        if not keys:
            return None
        assert front is not None, "this stack reads no media"
        assert spec is not None
        # An item without a key is known by its number.
        names = [number if key == NO_KEY else key for number, key in enumerate(keys)]
        found: dict[MediaKey | int, torch.Tensor] = {}
        missing: dict[MediaKey | int, int] = {}
        for number, name in enumerate(names):
            if isinstance(name, tuple) and name in self._kept:
                self._kept.move_to_end(name)
                found[name] = self._kept[name]
            else:
                missing.setdefault(name, number)
        self._encoded += len(missing)
        self._reused += len(keys) - len(missing)
        if missing:
            numbers = list(missing.values())
            own = [] if spec.padding_id is None else spec.own_positions(token_ids)[numbers].tolist()
            made = front(self._features(numbers, features), own)
            found.update(zip(missing, made.split(spec.positions), strict=True))
            for name in missing:
                if isinstance(name, tuple):
                    self._keep(name, found[name])
            if len(missing) == len(keys):
                return made
        return torch.cat([found[name] for name in names])

    def _features(self, numbers: list[int], given: Sequence[torch.Tensor]) -> torch.Tensor:
        """The features of the items of these numbers, on this rank's device. given: rank 0's, see
        `vectors`."""
        device, spec = self._encoder.device, self._encoder.spec.front
        assert spec is not None
        if self._group.rank == 0:
            items = [item for of_input in given for item in of_input]
            found = torch.stack([items[number] for number in numbers])
            features = self._streams.bring(found, device, found.dtype).wait()
        else:
            features = torch.empty(len(numbers), *spec.features, device=device)
        return self._group.broadcast(features)

    def _keep(self, key: MediaKey, rows: torch.Tensor) -> None:
        if rows.nbytes > self._capacity:
            return
        self._kept[key] = rows.clone()  # rows of a batch would keep all of it
        self._nbytes += rows.nbytes
        while self._nbytes > self._capacity:
            _, oldest = self._kept.popitem(last=False)
            self._nbytes -= oldest.nbytes
