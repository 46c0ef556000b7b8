"""Where a model's folder is, and the JSON files in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import make_checkpoint

from tandem import quickstart
from tandem.errors import ModelLoadError
from tandem.workers.models.model_folder import read_json, resolve


def test_json_files(tmp_path: Path) -> None:
    assert read_json(tmp_path, "config.json") == {}
    for text, complaint in (("{", "not JSON"), ("[1]", "not a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelLoadError, match=complaint):
            read_json(tmp_path, "config.json")


def test_resolve(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "flan")
    assert resolve(folder) == resolve(str(folder)) == folder
    assert resolve("quickstart") == quickstart.PATH
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        resolve(tmp_path)
    for absent in (tmp_path / "absent", "./absent", "a/b/c"):
        with pytest.raises(ModelLoadError, match="no folder"):
            resolve(absent)
    with pytest.raises(ModelLoadError, match="neither a folder nor a hub id"):
        resolve("no such id!")


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **options: object) -> None:
        assert "*.bin" not in str(options["allow_patterns"])
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelLoadError, match="not a folder here and could not be had from the hub"):
        resolve("google/flan-t5-small")
