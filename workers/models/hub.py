"""A repository of the Hugging Face hub: what of it is fetched into the hub's cache, and why that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, Final

from tandem.errors import ModelLoadError

# What no model is loaded from. All else of a repository is fetched, so that no tokenizer lacks a file.
OF_NO_USE: Final = (
    # Weights: safetensors are fetched by name. Other formats are not read, pickles least of all.
    "*.safetensors", "*.bin", "*.pt", "*.pt2", "*.pth", "*.ckpt*", "*.pkl", "*.pickle", "*.joblib", "*.dill",
    "*.npy", "*.npz", "*.h5", "*.hdf5", "*.keras", "*.msgpack", "*.ot", "*.gguf", "*.ggml", "*.onnx*",
    "*.ort", "*.pb", "*.tflite", "*.mlmodel", "*.mlpackage/*", "*.nemo", "*.mar", "*.engine", "*.plan",
    "*.data-*",
    # Code is not run, so it is not there.
    "*.py", "*.pyc", "*.ipynb", "*.sh", "*.so", "*.dll", "*.exe", "*.js",
    # Archives, data, pictures, recordings, logs, and pages for people.
    "*.tar*", "*.tgz", "*.zip", "*.gz", "*.bz2", "*.xz", "*.zst", "*.7z", "*.rar",
    "*.parquet", "*.arrow", "*.csv", "*.tsv", "*.jsonl", "*tfevents*", "*.log",
    "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg", "*.wav", "*.mp3", "*.flac", "*.ogg", "*.mp4",
    "*.webm", "*.md", "*.pdf", "*.html", ".git*",
)  # fmt: skip


class Repository:
    """One commit of a repository. Where the hub cannot be reached, the cache's copy is enough if it is whole.

    All methods raise ModelLoadError, saying what to do.
    """

    def __init__(self, model: str) -> None:
        """model: `owner/name` or `owner/name@revision`, which is a branch, a tag or a commit."""
        from huggingface_hub import HfApi

        self._model = model
        self._name, at, self._revision = model.partition("@")
        if at and not self._revision:
            raise ModelLoadError(f"{model!r} names no revision after the @", field="model")
        self._api = HfApi()
        with self._explained():
            self._commit = self._api.resolve_revision(self._name, revision=self._revision or None)

    def fetch(self) -> Path:
        """Fetches all but the weights and what is of no use. Returns the folder, whose name is the commit."""
        return self._snapshot(ignore_patterns=list(OF_NO_USE))

    def fetch_files(self, names: list[str]) -> None:
        """Fetches the files of these names into the same folder."""
        self._snapshot(allow_patterns=[escape(name) for name in names])

    def files(self) -> list[str]:
        """The names of all files. Asks the hub."""
        with self._explained():
            return self._api.list_repo_files(self._name, revision=self._commit.resolved)

    def _snapshot(self, **patterns: Any) -> Path:
        from huggingface_hub import snapshot_download

        with self._explained():
            return Path(snapshot_download(self._name, revision=self._commit, **patterns))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Any error within as ModelLoadError: the hub's, the network's, the disk's, or what comes of what a
        proxy answers in the hub's place."""
        try:
            yield
        except Exception as error:
            raise ModelLoadError(self._explanation(error), field="model") from error

    def _explanation(self, error: Exception) -> str:
        """What has happened, and what to do."""
        from huggingface_hub import constants, errors

        log_in = "log in (`hf auth login`, or HF_TOKEN) as one who may read it"
        download = f"`hf download {self._name}{f' --revision {self._revision}' if self._revision else ''}`"
        match error:
            case errors.HFValidationError():
                return f"{self._model!r} is neither a folder nor a hub id: {error}"
            case errors.GatedRepoError():
                return f"{self._name} is gated: accept its terms on its page at the hub, then {log_in}"
            case errors.RevisionNotFoundError():
                return f"{self._name} has no revision {self._revision!r}"
            case errors.RepositoryNotFoundError():
                return (
                    f"{self._name!r} is neither a folder here nor a repository of the hub; if it is a "
                    f"private one, {log_in}"
                )
            case errors.HfHubHTTPError(response=response) if response.status_code in (401, 403):
                return f"the hub refuses {self._name} ({response.status_code}): {log_in}"
        if constants.is_offline_mode():
            return (
                f"{self._model!r} is not a folder here, nor whole in the hub's cache, "
                f"{constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set: {download} once without it, or give a "
                "folder"
            )
        return (
            f"{self._model!r} is not a folder here and could not be had from the hub at {constants.ENDPOINT} "
            f"({type(error).__name__}: {' '.join(str(error).split()):.200}): try again, or {download} where "
            "there is a network and give the folder"
        )
