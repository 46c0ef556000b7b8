"""A translation's languages, as transformers' tokenizers put them around a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from models import load_reference, make_checkpoint
from transformers import (
    AutoTokenizer,
    M2M100Tokenizer,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
)

from tandem.errors import InvalidRequest
from tandem.inputs import TaskOptions
from tandem.params import SamplingParams
from tandem.workers.requests.detokenizer import Detokenizer
from tandem.workers.requests.request_builder import RequestBuilder

GREEDY = SamplingParams(max_tokens=4)
LINES = ["the cat sat on the mat", "le chat est sur le tapis", "a b c d e f g", "die Katze sitzt dort"]


def sentencepiece_model(folder: Path, name: str = "source", size: int = 30, extra: str = "") -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*LINES, *[extra] * 50]),
        model_prefix=str(folder / name),
        vocab_size=size,
        minloglevel=2,
    )
    return folder / f"{name}.model"


def pieces(model: Path, **special: int) -> dict[str, int]:
    loaded = sentencepiece.SentencePieceProcessor(model_file=str(model))
    names = [name for name in map(loaded.id_to_piece, range(len(loaded))) if name not in special]
    return special | {name: len(special) + i for i, name in enumerate(names)}


def make(kind: str, folder: Path) -> Any:
    """The tokenizer, put beside a checkpoint of its family."""
    if kind == "m2m-100":
        spm = sentencepiece_model(folder)
        vocabulary = pieces(spm, **{"<s>": 3, "<pad>": 0, "</s>": 1, "<unk>": 2})
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        made = M2M100Tokenizer(str(folder / "vocab.json"), str(spm), src_lang="en", tgt_lang="fr")
    else:
        made = {"mbart": MBartTokenizer, "mbart-50": MBart50Tokenizer, "nllb": NllbTokenizer}[kind]()
    start = {"mbart": None}.get(kind, made.eos_token_id)
    make_checkpoint(
        folder / "model",
        {"mbart-50": "mbart"}.get(kind, kind),
        vocab_size=len(made) + 102,  # M2M100 does not count its languages
        pad_token_id=made.pad_token_id,
        eos_token_id=made.eos_token_id,
        decoder_start_token_id=start,
    )
    (folder / "model" / "tokenizer.json").unlink()
    made.save_pretrained(folder / "model")
    return AutoTokenizer.from_pretrained(folder / "model")


def same_text(request_builder: RequestBuilder, tokenizer: Any) -> None:
    ids = tokenizer("the cat sat on a mat").input_ids
    detokenizer = Detokenizer(request_builder.vocabulary)
    text = "".join(detokenizer.push([token_id]) for token_id in ids) + detokenizer.flush()
    assert text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("kind", "source", "target", "starts"),
    [
        ("mbart", "fr_XX", "de_DE", True),
        ("mbart-50", "fr_XX", "de_DE", False),
        ("nllb", "fra_Latn", "deu_Latn", False),
        ("m2m-100", "fr", "de", False),
    ],
)
def test_languages(kind: str, source: str, target: str, starts: bool, tmp_path: Path) -> None:
    tokenizer = make(kind, tmp_path)
    request_builder = RequestBuilder.load(tmp_path / "model", kind)
    target_id = tokenizer.convert_tokens_to_ids(f"__{target}__" if kind == "m2m-100" else target)
    own = request_builder.prepare("the cat", GREEDY).sequences[0]
    assert list(own.encoder.token_ids) == tokenizer("the cat").input_ids
    assert own.decoding.forced_bos_id is None

    same_text(request_builder, tokenizer)

    tokenizer.src_lang = source
    expected = tokenizer("the cat").input_ids
    for asked in {source, source.partition("_")[0]} if kind != "nllb" else {source, "fra"}:
        [sample] = request_builder.prepare(
            "the cat", GREEDY, source_language=asked, target_language=target
        ).sequences
        assert list(sample.encoder.token_ids) == expected != list(own.encoder.token_ids)
        if starts:
            assert (sample.prefix_ids, sample.decoding.forced_bos_id) == ((target_id,), None)
        else:
            assert sample.prefix_ids == (tokenizer.eos_token_id,)
            assert sample.decoding.forced_bos_id == target_id

    for field in ("source_language", "target_language"):
        with pytest.raises(InvalidRequest, match=r"'xx' is not one of \d+ languages: .*, ") as caught:
            request_builder.prepare("the cat", GREEDY, **{field: "xx"})
        assert caught.value.field == field
    with pytest.raises(InvalidRequest, match="a prompt that is text") as caught:
        request_builder.prepare({"prompt_token_ids": [5]}, GREEDY, source_language=source)
    assert caught.value.field == "source_language"
    with pytest.raises(InvalidRequest, match="a decoder prompt that is text") as caught:
        request_builder.prepare(
            {"encoder_prompt": "a", "decoder_prompt": {"prompt_token_ids": [5]}},
            GREEDY,
            target_language=target,
        )
    assert caught.value.field == "target_language"
    if not starts:
        with pytest.raises(InvalidRequest, match="does not go with target_language") as caught:
            request_builder.prepare("the cat", SamplingParams(forced_bos_token_id=5), target_language=target)
        assert caught.value.field == "forced_bos_token_id"


@pytest.mark.parametrize("kind", ["mbart", "mbart-50", "nllb", "m2m-100"])
def test_targets_are_tokenized_as_labels_in_their_language(kind: str, tmp_path: Path) -> None:
    """And transformers' decoder inputs for these labels are what stands before and among them."""
    tokenizer = make(kind, tmp_path)
    request_builder = RequestBuilder.load(tmp_path / "model", kind)
    model = load_reference(tmp_path / "model")
    source, target = {"nllb": ("fra_Latn", "deu_Latn"), "m2m-100": ("fr", "de")}.get(kind, ("fr_XX", "de_DE"))
    chosen = TaskOptions(source_language=source, target_language=target)
    tokenizer.src_lang, tokenizer.tgt_lang = source, target
    labels = tokenizer(text_target="le chat est").input_ids
    inputs = [model.config.decoder_start_token_id, *labels[:-1]]
    if kind.startswith("mbart"):
        inputs = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([labels]))[0].tolist()
    prepared = request_builder.prepare_score("the cat", ["le chat est"], **chosen)
    [scored] = prepared.sequences
    assert list(scored.encoder.token_ids) == tokenizer("the cat").input_ids
    assert list(scored.target_ids) == labels
    assert [*scored.prefix_ids, *labels[:-1]] == inputs
    # A target behind a decoder prompt goes on from it.
    prompt = {"encoder_prompt": "the cat", "decoder_prompt": "le chat"}
    [behind] = request_builder.prepare_score(prompt, ["est"], **chosen).sequences
    assert [*behind.prefix_ids, *behind.target_ids[:-1]] == inputs
    [sample] = request_builder.prepare(prompt, GREEDY, **chosen).sequences
    assert sample.prefix_ids == behind.prefix_ids
    with pytest.raises(InvalidRequest, match="is needed for a target that is text") as caught:
        request_builder.prepare_score("the cat", ["le chat"], source_language=source)
    assert caught.value.field == "target_language"


def test_a_model_of_one_pair(tmp_path: Path) -> None:
    """Marian's tokenizer: two SentencePiece models, and no languages to choose from."""
    spm = sentencepiece_model(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(pieces(spm, **{"<pad>": 0, "</s>": 1, "<unk>": 2})))
    made = MarianTokenizer(
        str(spm),
        str(sentencepiece_model(tmp_path, "target", 26, "chat")),
        str(tmp_path / "vocab.json"),
        source_lang="en",
        target_lang="fr",
    )
    folder = make_checkpoint(tmp_path / "model", "marian")
    (folder / "tokenizer.json").unlink()
    made.save_pretrained(folder)
    request_builder = RequestBuilder.load(folder, "marian")
    assert request_builder.tasks.pairs == [("en", "fr", None)]
    ids = made("the cat").input_ids
    assert request_builder.tokenize("the cat") == ids
    assert ids[-1] == made.eos_token_id
    same_text(request_builder, made)
    expected = made(text_target="le chat").input_ids
    prepared = request_builder.prepare_score(
        {"encoder_prompt": "the cat", "decoder_prompt": "le chat"}, ["le chat"]
    )
    assert list(prepared.sequences[0].target_ids) == expected != request_builder.tokenize("le chat")
    assert prepared.prompt_token_ids[1:] == expected[:-1]
    for chosen in ({"target_language": "fr"}, {"source_language": "en"}):
        assert request_builder.prepare("the cat", GREEDY, **chosen).encoder_prompt_token_ids == ids
    for field in ("source_language", "target_language"):
        with pytest.raises(InvalidRequest, match="'xx' is not one of this model's languages: ") as caught:
            request_builder.prepare("the cat", GREEDY, **{field: "xx"})
        assert caught.value.field == field
