"""A folder that is no whole model: what is wrong and what to do, in three lines, before Ray starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from models import make_checkpoint
from typer.testing import CliRunner

from tandem.cli import app


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_head(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def config(change: dict[str, object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return edit


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def without_a_tokenizer(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            path.unlink()


BROKEN: list[tuple[Callable[[Path], object], str, str]] = [
    (without("config.json"), "no config.json in", "no checkpoint of transformers"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON", ""),
    (without("model.safetensors"), "lacks model.safetensors", ""),
    (cut, "model.safetensors cannot be read", "download it again"),
    (cut_in_the_head, "model.safetensors cannot be read", "download it again"),
    (config({"model_type": "llama"}), "'llama' is not served", "served are"),
    (config({"model_type": "bart", "d_model": 32}), "config.json", ""),
    (config({"num_layers": 1}), "weights that the model does not", "save both with one `save_pretrained`"),
    (config({"num_layers": 9}), "lacks", "save both with one `save_pretrained`"),
    (without_a_tokenizer, "tokenizer", "save_pretrained"),
]


@pytest.mark.parametrize("command", ["serve", "generate"])
@pytest.mark.parametrize(("damage", "what", "remedy"), BROKEN)
def test_what_is_wrong_and_what_to_do(
    command: str, damage: Callable[[Path], object], what: str, remedy: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "model", "flan")
    if not any(path.name.startswith("tokenizer") for path in folder.iterdir()):
        from tandem.workers.models.model_folder import resolve

        for path in resolve("quickstart").glob("*token*"):
            (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    given = ["serve", str(folder)] if command == "serve" else ["generate", "--model", str(folder), "hi"]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "500"})
    assert result.exit_code == 1, result.output
    assert not ray.is_initialized()
    said = [line for line in result.stderr.splitlines() if not line.startswith("Starting")]
    assert len(said) <= 2, result.stderr
    assert "ModelLoadError" in result.stderr
    assert what in result.stderr, result.stderr
    assert remedy in result.stderr, result.stderr


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    result = CliRunner().invoke(app, ["serve", str(file)], env={"COLUMNS": "500"})
    assert result.exit_code == 1
    assert "is a file: give the folder that it is in" in result.stderr
