"""A model's weights: read slice by slice, complete both ways."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from tandem.errors import ModelLoadError
from tandem.workers.models.families import Part, family_of, spec_of
from tandem.workers.models.layers import WeightSlot
from tandem.workers.models.model_folder import read_config, some, weight_files

# What to do about weights of other names than the config implies.
_OTHERS: Final = "config.json is of another model than the weights: save both with one `save_pretrained`"


class Checkpoint:
    """The weights in a model's folder, under our names.

    Opening raises ModelLoadError for a weight that is missing, and for one that no name of the
    family covers: complete both ways.
    """

    def __init__(self, folder: Path) -> None:
        config = read_config(folder)
        family = family_of(config)
        self.spec = spec_of(config)
        self._files = {
            name: file
            for path in weight_files(folder)
            for file in [_opened(path)]
            for name in file.keys()  # noqa: SIM118
        }
        names = {
            ours: [Part(theirs) if isinstance(theirs, str) else theirs for theirs in alternatives]
            for ours, alternatives in family.names(config, self.spec).items()
        }
        unread = family.unused + family.unread(config)
        known = {part.name for alternatives in names.values() for part in alternatives if part}
        unused = sorted(
            name
            for name in self._files.keys() - known
            if not any(fnmatchcase(name, pattern) for pattern in unread)
        )
        if unused:
            raise ModelLoadError(
                f"{folder} has {len(unused)} weights that the model does not: {some(unused)}; {_OTHERS}",
                field="model",
            )
        self._parts: dict[str, Part | None] = {}
        missing = []
        for ours, alternatives in names.items():
            # None, if it is an alternative, is the last.
            found = [part for part in alternatives if part is None or part.name in self._files]
            if found:
                self._parts[ours] = found[0]
            else:
                missing += [part.name for part in alternatives[:1] if part]
        if missing:
            raise ModelLoadError(
                f"{folder} lacks {len(missing)} weights: {some(sorted(missing))}; {_OTHERS}", field="model"
            )

    def tied(self, one: str, other: str) -> bool:
        """Whether two of our weights are one in the checkpoint."""
        return self._parts[one] == self._parts[other]

    def load(self, slots: Iterable[WeightSlot]) -> None:
        """Fills the slots, reading only their slices and converting to their dtype.

        Raises ModelLoadError, naming both shapes, for a weight whose shape the config does not imply.
        """
        for slot in slots:
            part = self._parts[slot.name]
            if part is not None:
                self._read(part, slot)
            elif not slot.filled:
                slot.into.zero_()

    def _read(self, part: Part, slot: WeightSlot) -> None:
        stored = self._files[part.name].get_slice(part.name)
        shape = (slot.shape[0] * part.of, *slot.shape[1:])
        index = [slice(None)] * len(shape)
        index[0] = slice(part.index * slot.shape[0], (part.index + 1) * slot.shape[0])
        if slot.dim is not None:
            start = (index[slot.dim].start or 0) + slot.start
            index[slot.dim] = slice(start, start + slot.into.shape[slot.dim])
        if part.transposed:
            shape, index = shape[::-1], index[::-1]
        if part.row:
            shape, index = (1, *shape), [slice(None), *index]
        if tuple(stored.get_shape()) != shape:
            raise ModelLoadError(
                f"{part.name} has shape {stored.get_shape()}, the config asks for {list(shape)}"
            )
        values = stored[tuple(index)]
        values = values[0] if part.row else values
        slot.into.copy_(values.T if part.transposed and values.ndim == 2 else values)
        if slot.plus:
            slot.into.add_(slot.plus)


def _opened(path: Path) -> Any:
    """An open file of weights, which `safe_open` gives no type. Raises ModelLoadError for what is none."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        with path.open("rb") as file:
            pointer = file.read(40).startswith(b"version https://git-lfs")
        hint = "it is a pointer of git-lfs, run `git lfs pull`"
        if not pointer:
            hint = f"{error}; it is cut short or damaged: copy or download it again"
        raise ModelLoadError(f"{path} cannot be read: {hint}", field="model") from error
