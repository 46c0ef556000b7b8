"""Where a model's folder is, and the JSON files in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import make_checkpoint

from tandem import quickstart, quickstart_ocr, quickstart_speech
from tandem.errors import ModelLoadError
from tandem.workers.models.model_folder import pinned, read_json, resolve, weight_files
from tandem.workers.requests.prompts.tokenizer import read_tokenizers


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
    assert resolve("quickstart-speech") == quickstart_speech.PATH
    assert resolve("quickstart-ocr") == quickstart_ocr.PATH
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        resolve(tmp_path)
    for absent in (tmp_path / "absent", "./absent", "a/b/c"):
        with pytest.raises(ModelLoadError, match="no folder"):
            resolve(absent)
    with pytest.raises(ModelLoadError, match="neither a folder nor a hub id"):
        resolve("no such id!")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("~no_such_user/x", "'~no_such_user/x' cannot be looked up: "),
        ("./" + "x" * 5000, "cannot be looked up: File name too long|no folder"),
        ("x" * 5000, "cannot be looked up: File name too long|neither a folder nor a hub id"),
        ("a\0b", "neither a folder nor a hub id"),
    ],
)
def test_names_that_no_folder_has(model: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        resolve(model)
    assert caught.value.field == "model"
    with pytest.raises(ModelLoadError, match=message) as caught:
        read_tokenizers(quickstart.PATH, model)
    assert caught.value.field == "tokenizer"


@pytest.mark.parametrize(
    ("architectures", "named"),
    [(["MyT5"], "MyT5"), ("T5", "AutoModelForSeq2SeqLM"), (3, "AutoModelForSeq2SeqLM"),
     ([3], "AutoModelForSeq2SeqLM"), ([], "AutoModelForSeq2SeqLM"), (None, "AutoModelForSeq2SeqLM")],
)  # fmt: skip
def test_a_pickle_is_converted_by_the_class_that_made_it(
    tmp_path: Path, architectures: object, named: str
) -> None:
    config = {"model_type": "t5", "architectures": architectures}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelLoadError, match=rf"`{named}\.from_pretrained"):
        weight_files(resolve(tmp_path))


def test_an_adapter_says_of_which_model_it_is(tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "google/flan-t5-base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    expected = "not a model but a LORA adapter of google/flan-t5-base: merge it"
    with pytest.raises(ModelLoadError, match=expected):
        resolve(tmp_path)
    # With the base's config.json, as some save it, but not with its weights.
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=expected):
        weight_files(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="adapter of a model that it does not name"):
        weight_files(tmp_path)
    # What was merged into the folder of the adapter is a model.
    (tmp_path / "model.safetensors").touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_a_folder_of_checkpoints_says_which_it_has(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint-50", "flan")
    with pytest.raises(ModelLoadError, match="there is one in its folder checkpoint-50"):
        resolve(tmp_path)


def test_a_folder_is_pinned_to_itself(tmp_path: Path) -> None:
    folder = str(make_checkpoint(tmp_path, "flan"))
    models = [folder, "quickstart", "quickstart-speech", "quickstart-ocr"]
    assert [pinned(model) for model in models] == models
