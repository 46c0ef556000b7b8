"""Where a model's files are, and its weights: read slice by slice, complete both ways."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tandem import quickstart
from tandem.errors import ModelLoadError
from tandem.workers.families import Family, WeightNames
from tandem.workers.spec import ModelSpec

# What is fetched from a hub: never pickles, never code.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
QUICKSTART = "quickstart"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: `quickstart` is the bundled one, a local folder is taken as it is, anything
    else is a Hugging Face hub id, fetched into the hub's cache. Raises ModelLoadError where there is none.
    """
    if model == QUICKSTART:
        return quickstart.PATH
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelLoadError(f"no config.json in {folder}", field="model")
        return folder
    if folder.is_absolute() or str(model).startswith(".") or str(model).count("/") > 1:
        raise ModelLoadError(f"no folder {folder}", field="model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=HUB_PATTERNS))
    except HFValidationError as error:
        raise ModelLoadError(
            f"{str(model)!r} is neither a folder nor a hub id: {error}", field="model"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelLoadError(
            f"{str(model)!r} is not a folder here and could not be had from the hub "
            f"({type(error).__name__}); download it once and give its folder",
            field="model",
        ) from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the model's folder; {} where the file is not there."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON: {error}", field="model") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object", field="model")
    return value


@dataclass(frozen=True)
class WeightSlot:
    """A place for (a part of) a checkpoint's weight in a layer's tensor."""

    name: str  # ours; see families.py
    into: torch.Tensor  # a view of the layer's tensor
    shape: tuple[int, ...]  # of the whole weight in the checkpoint
    dim: int | None = None  # sharded along this dimension; None: every rank holds all of it
    start: int = 0  # first index of this rank's slice along `dim`


class Checkpoint:
    """The weights in a model's folder, under our names.

    Opening it raises ModelLoadError for a weight that is missing, and for one that no name of the
    family covers: complete both ways.
    """

    def __init__(self, folder: Path, spec: ModelSpec, family: Family) -> None:
        self._files = {
            name: file
            for path in _weight_files(folder)
            for file in [safe_open(path, framework="pt")]
            for name in file.keys()  # noqa: SIM118
        }
        names: WeightNames = family.names(spec)
        known = {name for alternatives in names.values() for name in alternatives} | family.unused
        if unused := sorted(set(self._files) - known):
            raise ModelLoadError(
                f"{folder} has {len(unused)} weights that the model does not: {_some(unused)}"
            )
        missing = [theirs[0] for theirs in names.values() if not self._files.keys() & set(theirs)]
        if missing:
            raise ModelLoadError(f"{folder} lacks {len(missing)} weights: {_some(sorted(missing))}")
        self._names = {
            ours: next(name for name in theirs if name in self._files) for ours, theirs in names.items()
        }

    def tied(self, one: str, other: str) -> bool:
        """Whether two of our weights are one in the checkpoint."""
        return self._names[one] == self._names[other]

    def load(self, slots: Iterable[WeightSlot]) -> None:
        """Fills the slots, reading only their slices and converting to their dtype.

        Raises ModelLoadError, naming both shapes, where a weight has not the one the config implies.
        """
        for slot in slots:
            theirs = self._names[slot.name]
            stored = self._files[theirs].get_slice(theirs)
            shape = tuple(stored.get_shape())
            if shape != slot.shape:
                raise ModelLoadError(
                    f"{theirs} has shape {list(shape)}, the config asks for {list(slot.shape)}"
                )
            index: list[slice] = [slice(None)] * len(shape)
            if slot.dim is not None:
                index[slot.dim] = slice(slot.start, slot.start + slot.into.shape[slot.dim])
            slot.into.copy_(stored[tuple(index)])


def _weight_files(folder: Path) -> list[Path]:
    index = read_json(folder, INDEX)
    names = sorted(set(index.get("weight_map", {}).values())) if index else [SINGLE]
    if any(Path(name).name != name for name in names):
        raise ModelLoadError(f"{folder / INDEX} names files outside its folder")
    paths = [folder / name for name in names]
    if absent := [path.name for path in paths if not path.is_file()]:
        pickled = any(folder.glob("pytorch_model*.bin"))
        hint = (
            "; it has pytorch_model.bin only, which is a pickle and not read: convert it with "
            "transformers' `save_pretrained(..., safe_serialization=True)`"
            if pickled
            else ""
        )
        raise ModelLoadError(f"{folder} lacks {_some(absent)}{hint}", field="model")
    return paths


def _some(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (" …" if len(names) > count else "")
