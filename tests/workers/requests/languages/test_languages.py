"""A translation's languages, as transformers' tokenizers put them around a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from models import load_reference, make_checkpoint
from tiny_t5 import write_model
from tokenizers import Tokenizer
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
from tandem.workers.requests.answers.detokenizer import Detokenizer
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.requests.tasks import Pair

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
    for asked in (source, "fr", "FRA", "fr-CA", "French"):
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
        with pytest.raises(
            InvalidRequest, match=r"'xx' is not one of this model's languages: .*, "
        ) as caught:
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


@pytest.mark.parametrize(
    ("kind", "token"),
    [("mbart", "gn_PY"), ("mbart-50", "tyv_XX"), ("nllb", "tyv_Cyrl"), ("m2m-100", "__tyv__")],
)
@pytest.mark.parametrize("special", [True, False])
def test_languages_that_a_fine_tuning_added(kind: str, token: str, special: bool, tmp_path: Path) -> None:
    """They are put around a text as transformers puts the languages that it knows."""
    tokenizer = make(kind, tmp_path)
    before = RequestBuilder.load(tmp_path / "model", kind)
    if kind == "m2m-100":  # as its checkpoints say; else the new token had the first language's id
        tokenizer.add_tokens([f"__{own}__" for own in tokenizer.lang_code_to_id], special_tokens=True)
    tokenizer.add_tokens([token], special_tokens=special)
    tokenizer.save_pretrained(tmp_path / "model")
    request_builder = RequestBuilder.load(tmp_path / "model", kind)
    added = tokenizer.convert_tokens_to_ids(token)
    code = token.strip("_")
    assert request_builder.tasks.languages.keys() - before.tasks.languages.keys() == {code}
    if kind != "m2m-100":  # whose tokenizer finds an added language's token nowhere
        tokenizer.src_lang = token
        expected = tokenizer("the cat").input_ids
    else:
        tokenizer.src_lang = "en"
        known = tokenizer.convert_tokens_to_ids("__en__")
        expected = [added if i == known else i for i in tokenizer("the cat").input_ids]
    for asked in (token, code, code.upper(), code.partition("_")[0]):
        [sample] = request_builder.prepare(
            "the cat", GREEDY, source_language=asked, target_language=asked
        ).sequences
        assert list(sample.encoder.token_ids) == expected
        assert added in (sample.decoding.forced_bos_id, sample.prefix_ids[0])
    [scored] = request_builder.prepare_score("the cat", ["le chat"], target_language=code).sequences
    assert added in (*scored.target_ids, *scored.prefix_ids)


def test_the_task_of_two_languages_holds_for_all_their_names(tmp_path: Path) -> None:
    tokenizer = make("mbart", tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["task_specific_params"] = {"translation_en_to_ro": {"min_length": 3}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    tasks = RequestBuilder.load(tmp_path / "model", "mbart").tasks
    for source, target in (("en", "ro"), ("en_XX", "ro_RO"), ("English", "mo")):
        resolved = tasks.resolve(source_language=source, target_language=target)
        assert (resolved.task, resolved.defaults.min_length) == ("translation_en_to_ro", 3)
        assert resolved.target is not None
        assert resolved.target.token_id == tokenizer.convert_tokens_to_ids("ro_RO")
    assert tasks.resolve(source_language="en", target_language="de").task is None


def marian(folder: Path, source: str, target: str, tokens: list[str]) -> Any:
    """Marian's tokenizer with targets in its vocabulary, put beside a checkpoint."""
    spm = sentencepiece_model(folder)
    special = ["<pad>", "</s>", "<unk>", *tokens]
    (folder / "vocab.json").write_text(json.dumps(pieces(spm, **{name: i for i, name in enumerate(special)})))
    target_spm = sentencepiece_model(folder, "target", 26, "chat")
    made = MarianTokenizer(
        str(spm), str(target_spm), str(folder / "vocab.json"), source_lang=source, target_lang=target
    )
    checkpoint = make_checkpoint(folder / "model", "marian")
    (checkpoint / "tokenizer.json").unlink()
    made.save_pretrained(checkpoint)
    return made


def test_targets_in_a_vocabulary(tmp_path: Path) -> None:
    """OPUS-MT's models of several targets: transformers' tokenizer reads the token at a text's beginning."""
    codes = ["fra", "por", "pt_br", "cmn_Hans", "cmn_Hant"]
    made = marian(tmp_path, "en", "ROMANCE", [f">>{code}<<" for code in codes])
    request_builder = RequestBuilder.load(tmp_path / "model", "marian")
    assert request_builder.tasks.translations == {"en": codes}
    names = {
        "fr": "fra", "French": "fra", ">>fra<<": "fra", "FRA": "fra", "fr-CA": "fra", "pt": "por",
        "pt-BR": "pt_br",
        "zh": "cmn_Hans", "zh-TW": "cmn_Hant", ">>cmn_Hans<<": "cmn_Hans",
    }  # fmt: skip
    for asked, code in names.items():
        expected = made(f">>{code}<< the cat").input_ids
        assert expected[0] == made.convert_tokens_to_ids(f">>{code}<<")
        for source in (None, "en", "English"):
            [sample] = request_builder.prepare(
                "the cat", GREEDY, source_language=source, target_language=asked
            ).sequences
            assert list(sample.encoder.token_ids) == expected
    # A text that has a token keeps it, with and without a target.
    expected = made(">>por<< the cat").input_ids
    for options in ({}, {"target_language": "fr"}):
        prepared = request_builder.prepare(">>por<< the cat", GREEDY, **options)
        assert prepared.encoder_prompt_token_ids == expected
    assert request_builder.prepare("the cat", GREEDY).encoder_prompt_token_ids == made("the cat").input_ids
    for field, asked, message in (
        (
            "target_language",
            "de",
            "'de' is not one of this model's languages: cmn_Hans, cmn_Hant, fra, por, pt_br",
        ),
        ("target_language", "ROMANCE", "is not one of"),
        ("source_language", "fr", "'fr' is not one of this model's languages: en"),
    ):
        with pytest.raises(InvalidRequest, match=message) as caught:
            request_builder.prepare("the cat", GREEDY, **{field: asked})
        assert caught.value.field == field
    with pytest.raises(InvalidRequest, match="is needed: one of cmn_Hans") as caught:
        request_builder.prepare("the cat", GREEDY, source_language="en")
    assert caught.value.field == "target_language"


def test_a_source_that_is_a_group(tmp_path: Path) -> None:
    made = marian(tmp_path, "ROMANCE", "en", [])
    request_builder = RequestBuilder.load(tmp_path / "model", "marian")
    assert request_builder.tasks.pairs == [Pair("ROMANCE", "en")]
    for source in ("fr", "Italian", "ROMANCE", "por_Latn"):
        prepared = request_builder.prepare(
            "le chat", GREEDY, source_language=source, target_language="English"
        )
        assert prepared.encoder_prompt_token_ids == made("le chat").input_ids
    with pytest.raises(InvalidRequest, match="'xx' is not one of") as caught:
        request_builder.prepare("le chat", GREEDY, source_language="xx")
    assert caught.value.field == "source_language"


def test_one_token_in_a_vocabulary_is_no_choice(tmp_path: Path) -> None:
    made = marian(tmp_path, "en", "fr", [">>fra<<"])
    request_builder = RequestBuilder.load(tmp_path / "model", "marian")
    prepared = request_builder.prepare("the cat", GREEDY, target_language="fr")
    assert prepared.encoder_prompt_token_ids == made("the cat").input_ids


def test_madlads_targets(tmp_path: Path) -> None:
    """T5's tokenizer with "<2fr>" in its vocabulary, which a text begins with."""
    folder = write_model(tmp_path / "model", task_specific_params={})
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    codes = ["fr", "de", "zh_Hant", "ms_Arab_BN", "nan_Latn_TW"]
    tokenizer.add_special_tokens([*(f"<2{code}>" for code in codes), "<2translate>"])
    tokenizer.save(str(path))
    request_builder = RequestBuilder.load(folder, "madlad")
    assert request_builder.tasks.translations == {"mul": codes}
    for asked, code in (
        ("French", "fr"),
        ("deu_Latn", "de"),
        ("zh-TW", "zh_Hant"),
        ("<2fr>", "fr"),
        ("nan", "nan_Latn_TW"),
        ("ms-Arab", "ms_Arab_BN"),
    ):
        prepared = request_builder.prepare("the cat", GREEDY, source_language="en", target_language=asked)
        expected = AutoTokenizer.from_pretrained(folder)(f"<2{code}> the cat").input_ids
        assert prepared.encoder_prompt_token_ids == expected
    prepared = request_builder.prepare("<2de> the cat", GREEDY, target_language="fr")
    assert prepared.encoder_prompt_token_ids == request_builder.tokenize("<2de> the cat")


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
    assert request_builder.tasks.pairs == [Pair("en", "fr")]
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
    for chosen in ({"target_language": "fr"}, {"source_language": "en"}, {"target_language": "French"}):
        assert request_builder.prepare("the cat", GREEDY, **chosen).encoder_prompt_token_ids == ids
    for field in ("source_language", "target_language"):
        with pytest.raises(InvalidRequest, match="'xx' is not one of this model's languages: ") as caught:
            request_builder.prepare("the cat", GREEDY, **{field: "xx"})
        assert caught.value.field == field
