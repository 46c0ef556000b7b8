"""Where a model's files are: a bundled model, a local folder, or the hub's cache."""

from __future__ import annotations

import json
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from tandem import quickstart, quickstart_ocr, quickstart_speech
from tandem.errors import ModelLoadError
from tandem.workers.models.families import spec_of
from tandem.workers.models.hub import Repository

QUICKSTART = "quickstart"
BUNDLED: Final = {
    QUICKSTART: quickstart.PATH,
    "quickstart-speech": quickstart_speech.PATH,
    "quickstart-ocr": quickstart_ocr.PATH,
}
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
FONT: Final = "Arial.TTF"  # with which texts are drawn for a model that reads them as pixels

_ADAPTER: Final = "adapter_config.json"
# Weights that are not read, by what is said of them.
_PICKLES: Final = ("pytorch_model*.bin",)
_OTHERS: Final = (
    "*.safetensors", "*model*.bin", "*model*.pt", "*model*.pth", "*.h5", "*.msgpack", "*.ot", "*.onnx",
    "*.gguf", "*.ckpt*",
)  # fmt: skip


def resolve(model: str | Path, *, served: bool = True, weights: bool = True) -> Path:
    """The folder of a model: a key of `BUNDLED` is that one, a local folder is taken as it is, anything else
    is a Hugging Face hub id, `owner/name` or `owner/name@revision`, fetched into the hub's cache.

    served: whether the model is to be served; of another family nothing but its small files is fetched.
    weights: whether they are to be there; False: a hub id's are not fetched, nor missed.

    Raises ModelLoadError, saying what to do, where there is no model.
    """
    if isinstance(model, str) and model in BUNDLED:
        return BUNDLED[model]
    folder = local_path(model)
    if folder.is_dir():
        check_config(folder, str(folder))
        return folder
    if folder.is_absolute() or str(model).startswith(".") or str(model).partition("@")[0].count("/") > 1:
        if folder.exists():
            raise ModelLoadError(f"{folder} is a file: give the folder that it is in", field="model")
        raise ModelLoadError(f"no folder {folder}", field="model")
    return _fetched(str(model), served=served, weights=weights)


def pinned(model: str) -> str:
    """The model at the commit that it has now: what several processes are given, each of which resolves it.
    A folder, and a bundled model, are themselves. Raises ModelLoadError as `resolve`."""
    folder = resolve(model)
    if model in BUNDLED or local_path(model).is_dir():
        return model
    return f"{model.partition('@')[0]}@{folder.name}"  # the cache's folders have their commit's name


def local_path(model: str | Path) -> Path:
    """Where a folder of this name would be. Raises ModelLoadError where that cannot be told."""
    try:
        path = Path(model).expanduser()
        path.is_dir()
    except (OSError, RuntimeError) as error:  # a user or a folder that is not there, a name that is too long
        why = (isinstance(error, OSError) and error.strerror) or error
        raise ModelLoadError(f"{str(model)[:80]!r} cannot be looked up: {why}", field="model") from None
    return path


def _fetched(model: str, *, served: bool, weights: bool) -> Path:
    """The folder of a hub id. Small files come first, so that what cannot be loaded is refused before its
    weights are fetched."""
    repository = Repository(model)
    folder = repository.fetch()
    check_config(folder, model)
    if served:
        spec_of(read_config(folder))
    if all((folder / name).is_file() for name in weight_names(folder)):
        return folder
    there = repository.files()
    wanted = [SINGLE] if SINGLE in there else weight_names(folder)
    if absent := [name for name in wanted if name not in there]:
        raise missing_weights(folder, model, absent, there)
    if weights:
        repository.fetch_files(wanted)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """config.json and, as its `image_processor`, what another file of the folder says of images: their size
    may stand there alone. transformers prefers the newer of the two files, too."""
    config, newer = read_json(folder, "config.json"), read_json(folder, "processor_config.json")
    images = newer.get("image_processor") or read_json(folder, "preprocessor_config.json")
    return {**config, "image_processor": images} if images else config


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the model's folder; {} where the file is not there."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not JSON: {error}", field="model") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}", field="model") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object", field="model")
    return value


def check_config(folder: Path, model: str) -> None:
    """Raises ModelLoadError, saying what the folder of `model` is instead, where it has no config.json."""
    if (folder / "config.json").is_file():
        return
    if (folder / _ADAPTER).is_file():
        raise _adapter(folder, model)
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    hint = f"; there is one in its folder {inner[-1]}" if inner else ""
    raise ModelLoadError(
        f"no config.json in {model}, so it is no checkpoint of transformers{hint}", field="model"
    )


def weight_names(folder: Path) -> list[str]:
    """The names of the files that a model's weights are in, there or not: the single one or, where there is
    none, those of the index. Raises ModelLoadError for a malformed index."""
    index = {} if (folder / SINGLE).is_file() else read_json(folder, INDEX)
    if not index:
        return [SINGLE]
    parts = index.get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(isinstance(name, str) for name in parts.values()):
        raise ModelLoadError(f"{folder / INDEX} has no weight_map of names of files", field="model")
    names = sorted(set(parts.values()))
    if any(Path(name).name != name for name in names):
        raise ModelLoadError(f"{folder / INDEX} names files outside its folder", field="model")
    return names


def has_weights(folder: Path) -> bool:
    """Whether there is a file of weights in any format, of a model that is whole or not."""
    return any(fnmatchcase(path.name, pattern) for path in folder.iterdir() for pattern in _OTHERS)


def weight_files(folder: Path) -> list[Path]:
    """The files that a model's weights are in. Raises ModelLoadError where one is not there."""
    names = weight_names(folder)
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise missing_weights(folder, str(folder), absent, [path.name for path in folder.iterdir()])
    return [folder / name for name in names]


def missing_weights(folder: Path, model: str, absent: list[str], there: Collection[str]) -> ModelLoadError:
    """What to do about weights of `model` that are absent; `there` are the names of all its files."""
    if (folder / _ADAPTER).is_file():
        return _adapter(folder, model)
    text = f"{model} lacks {some(absent)}"
    others = sorted(name for name in there if any(fnmatchcase(name, pattern) for pattern in _OTHERS))
    if absent != [SINGLE]:
        text += f", named by {INDEX}: it is incomplete"
    elif any(fnmatchcase(name, pattern) for name in others for pattern in _PICKLES):
        match read_json(folder, "config.json").get("architectures"):
            case [str(kind), *_]:
                pass
            case _:
                kind = "AutoModelForSeq2SeqLM"
        text += (
            "; it has pytorch_model.bin only, which is a pickle and not read: convert it once with "
            f"transformers, `{kind}.from_pretrained({model!r}).save_pretrained(FOLDER)`, save its tokenizer "
            "there as well, and give that folder"
        )
    elif others:
        text += f"; it has weights of other names or formats, which are not read: {some(others)}"
    return ModelLoadError(text, field="model")


def _adapter(folder: Path, model: str) -> ModelLoadError:
    adapter = read_json(folder, _ADAPTER)
    base, kind = adapter.get("base_model_name_or_path"), adapter.get("peft_type") or "LoRA"
    return ModelLoadError(
        f"{model} is not a model but a {kind} adapter of {base or 'a model that it does not name'}: merge it "
        "into that one with peft's `merge_and_unload()`, save the result and its tokenizer, and give that "
        "folder",
        field="model",
    )


def some(names: list[str], count: int = 5) -> str:
    """The names, or the first of them."""
    return ", ".join(names[:count]) + (" …" if len(names) > count else "")
