"""A hub id loads what the same folder loads, or says why not."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import hub
import pytest
import transformers
from hub import Hub
from models import VARIANTS, make_checkpoint
from sentencepiece import SentencePieceTrainer
from transformers import M2M100Tokenizer, MarianTokenizer, PhobertTokenizer
from whisper import make_whisper

from tandem import LLM, SamplingParams
from tandem.cli.models.describe import describe
from tandem.cluster.app import resolve_auto
from tandem.cluster.config import ServeConfig
from tandem.cluster.identity import identity_of
from tandem.errors import ModelLoadError
from tandem.workers.models.hub import OF_NO_USE
from tandem.workers.models.model_folder import pinned, resolve
from tandem.workers.requests.prompts.tokenizer import read_tokenizer
from tandem.workers.requests.request_builder import RequestBuilder

# What the published repositories hold besides, and nothing is loaded from.
NOISE = {
    "pytorch_model.bin": b"pickle", "tf_model.h5": b"", "flax_model.msgpack": b"", "rust_model.ot": b"",
    "onnx/model.onnx": b"", "onnx/decoder_model_merged.onnx_data": b"", "openvino/openvino_model.bin": b"",
    "model.fp16.safetensors": b"", "training_args.bin": b"", "optimizer.pt": b"", "README.md": b"# A model",
    "modeling_own.py": b"exit()", ".gitattributes": b"", "runs/Jan1/events.out.tfevents.1": b"",
    "sample.wav": b"", "generate.sh": b"", "eval.csv": b"",
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Hub]:
    with hub.running(tmp_path / "cache") as running:
        yield running


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- what is fetched


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_is_fetched_whole_and_without_what_is_not_read(
    tiny: Hub, checkpoint: Callable[..., Path], variant: str
) -> None:
    folder = checkpoint(variant)
    tiny.add("tiny/model", folder, **NOISE)
    fetched = resolve("tiny/model")
    assert files(fetched) == files(folder)
    assert tiny.fetched == files(folder).keys()
    prompt = "ba be bi bo bu"
    ours, theirs = (RequestBuilder.load(one, "m").prepare(prompt) for one in (fetched, folder))
    assert ours.sequences[0].encoder == theirs.sequences[0].encoder
    assert ours.sequences[0].prefix_ids == theirs.sequences[0].prefix_ids


@pytest.mark.parametrize("variant", ["umt5", "marian", "gpt2"])
def test_its_first_tokens_are_the_folders(tiny: Hub, checkpoint: Callable[..., Path], variant: str) -> None:
    tiny.add("tiny/model", checkpoint(variant))
    answers = []
    for model in ("tiny/model", str(checkpoint(variant))):
        with LLM(model, dtype="float32", device="cpu") as llm:
            outputs = llm.generate(["ba be bi", "zu ka lo"], SamplingParams(max_tokens=8))
        answers.append([output.outputs[0].token_ids for output in outputs])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


def test_a_speech_model_has_its_feature_extractor(tiny: Hub, tmp_path: Path) -> None:
    folder = make_whisper(tmp_path / "whisper", "base")
    tiny.add("tiny/whisper", folder, **NOISE)
    fetched = resolve("tiny/whisper")
    assert files(fetched) == files(folder)
    assert RequestBuilder.load(fetched, "m").info.revision == RequestBuilder.load(folder, "m").info.revision


def sentencepiece(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat", "der hund", "ein haus und eine katze"]),
            model_writer=file, vocab_size=40, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return path


def marian(folder: Path) -> None:
    pieces = {piece: i for i, piece in enumerate(["</s>", "<unk>", "▁the", "▁cat", *"▁thecat", "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(pieces))
    source, target = sentencepiece(folder / "source.spm"), sentencepiece(folder / "target.spm")
    made = MarianTokenizer(source_spm=str(source), target_spm=str(target), vocab=str(folder / "vocab.json"))
    made.save_pretrained(folder)


def m2m100(folder: Path) -> None:
    pieces = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁the", "▁cat"])}
    (folder / "vocab.json").write_text(json.dumps(pieces))
    spm = sentencepiece(folder / "sentencepiece.bpe.model")
    M2M100Tokenizer(vocab_file=str(folder / "vocab.json"), spm_file=str(spm)).save_pretrained(folder)


def phobert(folder: Path) -> None:
    (folder / "vocab.txt").write_text("the 5\ncat 4\nc@@ 3\nat 2\nth@@ 1\ne 1\n")
    (folder / "bpe.codes").write_text("t h 3\na t</w> 2\nth e</w> 2\n")
    PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes")).save_pretrained(folder)


@pytest.mark.parametrize("make", [marian, m2m100, phobert])
def test_tokenizers_of_several_files(tiny: Hub, tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = make_checkpoint(tmp_path / "model", "marian")
    for path in folder.glob("*token*"):
        path.unlink()
    make(folder)
    tiny.add("tiny/model", folder, **NOISE)
    fetched = resolve("tiny/model")
    assert files(fetched) == files(folder)
    ours, theirs = read_tokenizer(fetched), read_tokenizer(folder)
    assert type(ours) is type(theirs)
    ids = theirs("the cat")["input_ids"]
    assert ours("the cat")["input_ids"] == ids
    assert len(set(ids)) > 2
    for name in ("source.spm", "sentencepiece.bpe.model", "bpe.codes"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelLoadError, match="tokenizer"):
        read_tokenizer(folder)


def test_no_tokenizers_file_is_left_out() -> None:
    """Of no class in transformers."""
    names = set()
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id.startswith("VOCAB_FILES")
                for target in node.targets
            ):
                names |= set(ast.literal_eval(node.value).values())
    names |= {
        "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "chat_template.json", "additional_chat_templates/rag.jinja",
        "decoder_tokenizer/tokenizer.json", "model.safetensors.index.json", "tokenizer.model.v3",
        "sentencepiece.bpe.model", "spiece.model", "source.spm", "bpe.codes", "dict.txt", "vocab-src.json",
        "merges.txt", "normalizer.json",
    }  # fmt: skip
    assert {"vocab-src.json", "spiece.model", "bpe.codes"} <= names
    assert [name for name in names if any(fnmatchcase(name, pattern) for pattern in OF_NO_USE)] == []


def test_shards_are_fetched_by_their_index(tiny: Hub, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "flan", max_shard_size="20KB")
    shards = sorted(path.name for path in folder.glob("model-*"))
    tiny.add("tiny/model", folder, **{**NOISE, "model-00001-of-00009.safetensors": b"stale"})
    assert files(resolve("tiny/model")) == files(folder)
    missing = files(folder)
    del missing[shards[1]]
    tiny.repositories["tiny/model"].commit(missing)
    tiny.calls.clear()
    with pytest.raises(
        ModelLoadError, match=f"tiny/model lacks {shards[1]}, named by model.safetensors.index"
    ):
        resolve("tiny/model")
    assert not any(name.endswith(".safetensors") for name in tiny.fetched)


def test_a_single_file_goes_before_an_index(tiny: Hub, checkpoint: Callable[..., Path]) -> None:
    index = json.dumps({"weight_map": {"shared.weight": "model-00001-of-00001.safetensors"}}).encode()
    more = {"model.safetensors.index.json": index, "model-00001-of-00001.safetensors": b""}
    tiny.add("tiny/model", checkpoint("flan"), **more)
    fetched = resolve("tiny/model")
    assert (fetched / "model.safetensors").is_file()
    assert "model-00001-of-00001.safetensors" not in tiny.fetched


# -- what cannot be


def test_pickles_alone_are_said_so_before_they_are_fetched(tiny: Hub, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "marian")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    tiny.add("tiny/model", folder, **{"tf_model.h5": b""})
    told = []
    for model in ("tiny/model", str(folder)):
        with pytest.raises(ModelLoadError, match="a pickle and not read") as caught:
            LLM(model)
        assert f"`MarianMTModel.from_pretrained('{model}').save_pretrained(FOLDER)`" in str(caught.value)
        told.append(str(caught.value).replace(model, "MODEL"))
    assert told[0] == told[1]
    assert "pytorch_model.bin" not in tiny.fetched


def test_an_adapter_is_said_so(tiny: Hub, tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "google/flan-t5-base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    tiny.add("tiny/lora", tmp_path)
    with pytest.raises(
        ModelLoadError, match=r"tiny/lora is not a model but a LORA adapter of google/flan-t5-base"
    ):
        resolve("tiny/lora")
    assert tiny.fetched == {"adapter_config.json"}


def test_a_family_that_is_not_served_is_refused_before_its_weights(
    tiny: Hub, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("gpt2"), tmp_path / "model", copy_function=shutil.copyfile)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "llama"}))
    tiny.add("tiny/llama", folder)
    with pytest.raises(ModelLoadError, match="'llama' is not served"):
        resolve("tiny/llama")
    assert "model.safetensors" not in tiny.fetched
    assert (resolve("tiny/llama", served=False) / "model.safetensors").is_file(), "a part to compose with"


def test_a_repository_without_config_says_so(tiny: Hub, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{}")
    tiny.add("tiny/data", tmp_path)
    with pytest.raises(ModelLoadError, match=r"no config\.json in tiny/data"):
        resolve("tiny/data")


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("tiny/absent", "'tiny/absent' is neither a folder here nor a repository of the hub"),
        ("absent", "'absent' is neither a folder here nor a repository of the hub"),
        ("tiny/model@v9", "tiny/model has no revision 'v9'"),
        ("tiny/model@", "names no revision after the @"),
        ("tiny/gated", "tiny/gated is gated: accept its terms"),
        ("no such id!", "neither a folder nor a hub id"),
        ("a/b/c", "no folder"),
    ],
)
def test_a_wrong_id_says_what_is_wrong(
    tiny: Hub, checkpoint: Callable[..., Path], model: str, complaint: str
) -> None:
    tiny.add("tiny/model", checkpoint("flan"))
    tiny.add("tiny/gated", checkpoint("flan")).gated = True
    with pytest.raises(ModelLoadError, match=complaint) as caught:
        resolve(model)
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        (403, r"the hub refuses tiny/model \(403\): log in"),
        (500, "could not be had from the hub at http://127"),
        (429, "could not be had from the hub at http://127"),
    ],
)
def test_a_hub_that_refuses_is_said_so(
    tiny: Hub, checkpoint: Callable[..., Path], status: int, complaint: str
) -> None:
    tiny.add("tiny/model", checkpoint("flan"))
    tiny.status = status
    with pytest.raises(ModelLoadError, match=complaint):
        resolve("tiny/model")


# -- revisions, and the cache


def test_a_revision_is_named_after_an_at(tiny: Hub, checkpoint: Callable[..., Path]) -> None:
    made = tiny.add("tiny/model", checkpoint("flan"))
    old = made.revisions["main"]
    made.revisions |= {"v1": old, "refs/pr/1": old}
    new = made.commit({**files(checkpoint("flan")), "generation_config.json": b'{"num_beams": 2}'})
    assert resolve("tiny/model").name == new
    assert {resolve(f"tiny/model@{name}").name for name in ("v1", "refs/pr/1", old)} == {old}
    assert describe("tiny/model@main", (8, 8))["defaults"]["num_beams"]["value"] == 2
    assert describe("tiny/model@v1", (8, 8))["defaults"]["num_beams"]["value"] == 1


def test_all_processes_of_a_cluster_have_one_commit(tiny: Hub, checkpoint: Callable[..., Path]) -> None:
    made = tiny.add("tiny/model", checkpoint("flan"))
    config = resolve_auto(ServeConfig(model="tiny/model", device="cpu"))
    commit = made.revisions["main"]
    assert (config.model, config.model_name) == (f"tiny/model@{commit}", "tiny/model")
    identity = identity_of(config)
    made.commit({**files(checkpoint("umt5"))})
    tiny.calls.clear()
    assert resolve(config.model).name == commit
    assert identity_of(config) == identity
    assert tiny.calls == [], "the commit is known, and what is there is not asked for"
    assert pinned("tiny/model") == f"tiny/model@{made.revisions['main']}"


def test_without_the_hub_the_cache_is_enough(
    tiny: Hub, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    tiny.add("tiny/model", checkpoint("flan"))
    folder = resolve("tiny/model")
    tiny.status = 503
    assert resolve("tiny/model") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("tiny/model") == folder
    with pytest.raises(ModelLoadError, match=r"HF_HUB_OFFLINE is set: `hf download tiny/other` once"):
        resolve("tiny/other")
    with pytest.raises(ModelLoadError, match=r"`hf download tiny/model --revision v2` once"):
        resolve("tiny/model@v2")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match="nor whole in the hub's cache"):
        resolve("tiny/model")


def test_a_download_without_its_weights_is_not_taken_for_whole(
    tiny: Hub, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    tiny.add("tiny/model", checkpoint("flan"))
    (resolve("tiny/model") / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="nor whole in the hub's cache"):
        resolve("tiny/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert files(resolve("tiny/model")) == files(checkpoint("flan"))


@pytest.mark.usefixtures("tiny")
def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ModelLoadError, match=r"could not be had from the hub at http://127\.0\.0\.1:9"
    ) as caught:
        resolve("tiny/model")
    assert "hf download tiny/model" in str(caught.value)
