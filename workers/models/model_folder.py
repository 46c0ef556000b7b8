"""Where a model's files are: the bundled model, a local folder, or the hub's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tandem import quickstart
from tandem.errors import ModelLoadError

# What is fetched from a hub: never pickles, never code.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
QUICKSTART = "quickstart"


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
