"""A model's own settings are those that transformers takes, from the files that it takes them from."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import EOS, PAD, VOCAB, load_reference
from tiny_t5 import write_model
from transformers import GenerationConfig

from tandem import LLM, quickstart
from tandem.errors import InvalidRequest
from tandem.params import BeamSearchParams
from tandem.workers.models.model_folder import read_json
from tandem.workers.requests.model_info import ModelInfo
from tandem.workers.requests.parameters.defaults import GenerationDefaults
from tandem.workers.requests.parameters.generation_settings import (
    _OF_TOKENS,
    DECODING,
    NOT_APPLIED,
    READERS,
    generation_config,
    own_settings,
    sound,
)

# Of every setting, values that it may have.
VALUES: dict[str, list[Any]] = {
    "eos_token_id": [EOS, [EOS, 5]],
    "bos_token_id": [3],
    "decoder_start_token_id": [PAD, 4],
    "do_sample": [True, False],
    "temperature": [0.7, 1],
    "top_k": [0, 20],
    "top_p": [0.9, 1],
    "min_p": [0.1],
    "typical_p": [0.5, 1.0],
    "repetition_penalty": [1.5, 1.0],
    "no_repeat_ngram_size": [0, 2],
    "encoder_no_repeat_ngram_size": [0, 3],
    "bad_words_ids": [[[5], [6, 7]]],
    "forced_bos_token_id": [7],
    "forced_eos_token_id": [EOS, [EOS, 9]],
    "suppress_tokens": [[8, 9], []],
    "begin_suppress_tokens": [[10]],
    "num_beams": [1, 3],
    "length_penalty": [2.0, -0.5],
    "early_stopping": [True, False, "never"],
    "renormalize_logits": [True, False],
    "max_new_tokens": [9],
    "max_length": [12],
    "min_new_tokens": [0, 3],
    "min_length": [0, 5],
    "stop_strings": ["ba", ["be", "bi"]],
}
# What has no effect on a token, and is no wish either.
MARKS = {"pad_token_id", "transformers_version", "_from_model_config"}


def theirs(folder: Path) -> GenerationConfig:
    """What transformers' `from_pretrained` gives a model."""
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:
        return GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True
        )


def test_every_setting_of_transformers_is_applied_or_warned_of() -> None:
    known = READERS.keys() | NOT_APPLIED.keys() | MARKS
    assert GenerationConfig().to_dict().keys() <= known
    assert known - GenerationConfig().to_dict().keys() == {"forced_decoder_ids"}
    assert not READERS.keys() & NOT_APPLIED.keys()
    assert VALUES.keys() == READERS.keys()


def test_neutral_is_what_transformers_takes_by_itself() -> None:
    defaults = GenerationConfig._get_default_generation_params()
    for name, neutral in NOT_APPLIED.items():
        if neutral is not None and name in defaults:
            assert neutral == defaults[name], name
    built_in = GenerationDefaults()
    for name in defaults.keys() & DECODING.keys() - {"max_length", "top_k", "temperature"}:
        if hasattr(built_in, name):
            assert getattr(built_in, name) == (defaults[name] or getattr(built_in, name)), name


_SETTINGS = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from([None, *values]) for name, values in VALUES.items()}
)


@settings(max_examples=60)
@given(
    outer=_SETTINGS,
    inner=_SETTINGS,
    where=st.sampled_from(["decoder", "generator", "text_config"]),
    generation=st.none() | _SETTINGS,
)
def test_the_files_count_as_in_transformers(
    tmp_path_factory: pytest.TempPathFactory, outer: Any, inner: Any, where: str, generation: Any
) -> None:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", **outer, where: inner}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    found = own_settings(read_json(folder, "config.json"), generation_config(folder))
    expected = theirs(folder).to_dict()
    assert {name: found.get(name) for name in READERS} == {name: expected[name] for name in READERS}
    assert sound(found)[1] == {}


def test_bos_may_be_forced_as_in_old_files(tmp_path: Path) -> None:
    config = {"model_type": "bart", "force_bos_token_to_be_generated": True, "bos_token_id": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert theirs(tmp_path).forced_bos_token_id == own_settings(config, None)["forced_bos_token_id"] == 3


LEFT_OVER = {
    "num_beams": 3, "min_length": 9, "forced_bos_token_id": 7, "no_repeat_ngram_size": 1, "max_length": 14,
    "length_penalty": 3.0, "repetition_penalty": 4.0, "early_stopping": True, "suppress_tokens": [20, 21, 22],
}  # fmt: skip
IDS = {"decoder_start_token_id": PAD, "eos_token_id": EOS, "pad_token_id": PAD}


@pytest.mark.parametrize(
    ("variant", "config", "generation"),
    [
        ("bart", LEFT_OVER, IDS),
        ("bart", LEFT_OVER, IDS | dict.fromkeys(LEFT_OVER)),
        ("bart", LEFT_OVER, None),
        ("bert2bert", LEFT_OVER, None),
        ("bert2bert", {"decoder": LEFT_OVER}, None),
        ("bart", dict.fromkeys(LEFT_OVER), IDS | LEFT_OVER),
        ("bart", LEFT_OVER, IDS | {"num_beams": 2, "min_new_tokens": 0, "min_length": 9}),
        ("bart", {}, IDS | {"min_new_tokens": 4, "min_length": 12, "max_new_tokens": 10, "max_length": 3}),
        ("bart", {}, {"bos_token_id": 6, "eos_token_id": EOS, "pad_token_id": PAD}),
        ("bart", {}, {**IDS, "eos_token_id": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "none" if value is None else f"{len(value)}",
)
def test_tokens_are_those_of_generate(
    checkpoint: Callable[..., Path], tmp_path: Path, variant: str, config: Any, generation: Any
) -> None:
    folder = shutil.copytree(checkpoint(variant), tmp_path / "model", copy_function=shutil.copyfile)
    values = read_json(folder, "config.json")
    nested = {"decoder": values["decoder"] | config["decoder"]} if "decoder" in config else {}
    (folder / "config.json").write_text(json.dumps({**values, **config, **nested}))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    model = load_reference(folder)
    own = model.generation_config
    # Where nothing says how much to generate, transformers stops after 20 tokens, and Tandem at its limit.
    most = {} if own.max_length or own.max_new_tokens else {"max_new_tokens": 20}
    with LLM(str(folder), dtype="float32", device="cpu", max_decoder_length=21) as llm:
        for prompt in ([10, 44, 90, 13, EOS], [70, 5, 6, EOS]):
            (output,) = llm.generate({"prompt_token_ids": prompt}, use_tqdm=False)
            expected = model.generate(torch.tensor([prompt]), use_cache=False, **most)[0].tolist()
            assert output.prompt_token_ids == expected[:1]
            ids = list(output.outputs[0].token_ids)
            assert ids == expected[1 : 1 + len(ids)]
            assert set(expected[1 + len(ids) :]) <= {PAD}


def test_a_class_of_configs_says_nothing(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """BartConfig's forced_eos_token_id is 2, which transformers does not apply where no file says so."""
    folder = shutil.copytree(checkpoint("bart"), tmp_path / "model", copy_function=shutil.copyfile)
    values = read_json(folder, "config.json")
    values.pop("forced_eos_token_id", None)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "generation_config.json").unlink()
    assert load_reference(folder).generation_config.forced_eos_token_id is None
    assert ModelInfo.read(folder, "bart").defaults.forced_eos_ids == ()


# -- what is not applied


ASKING: dict[str, Any] = {
    "penalty_alpha": 0.6, "dola_layers": "high", "num_beam_groups": 2, "diversity_penalty": 0.5,
    "constraints": [1], "force_words_ids": [[5]], "forced_decoder_ids": [[1, 5]], "num_return_sequences": 2,
    "max_time": 3.0, "top_h": 0.4, "epsilon_cutoff": 1e-4, "eta_cutoff": 1e-4, "guidance_scale": 2.0,
    "encoder_repetition_penalty": 1.5, "exponential_decay_length_penalty": [5, 1.2], "token_healing": True,
    "sequence_bias": [[[5], 1.0]], "watermarking_config": {"bias": 2.0}, "remove_invalid_values": True,
    "use_cache": False, "cache_implementation": "static", "cache_config": {"nbits": 4}, "max_cache_len": 99,
    "low_memory": True, "prefill_chunk_size": 64, "compile_config": {}, "disable_compile": True,
    "continuous_batching_config": {}, "use_mtp": True, "speculation_type": "dflash",
    "prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 2, "is_assistant": True,
    "num_assistant_tokens": 5, "num_assistant_tokens_schedule": "heuristic", "assistant_early_exit": 4,
    "assistant_confidence_threshold": 0.1, "assistant_lookbehind": 3, "assistant_ensemble_weight": 0.5,
    "target_lookbehind": 3, "output_attentions": True, "output_hidden_states": True, "output_scores": True,
    "output_logits": True, "return_dict_in_generate": True,
}  # fmt: skip


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.name.startswith("tandem")]
    caplog.clear()
    return found


def test_all_that_is_not_applied_is_named_in_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert ASKING.keys() == NOT_APPLIED.keys()
    ModelInfo.read(write_model(tmp_path, generation=ASKING), "tiny")
    (told,) = warnings(caplog)
    assert all(f"'{name}': " in told for name in ASKING)
    for neutral in (dict(NOT_APPLIED), dict.fromkeys(NOT_APPLIED)):
        ModelInfo.read(write_model(tmp_path, generation=neutral), "tiny")
        assert warnings(caplog) == []
    tasks = {"summarization": {"penalty_alpha": 0.6, "num_beams": 4}}
    ModelInfo.read(write_model(tmp_path, generation={}, task_specific_params=tasks), "tiny")
    (told,) = warnings(caplog)
    assert "{'summarization.penalty_alpha': 0.6}" in told


def copied(folder: Path, generation: dict[str, Any], **config: Any) -> Path:
    """The bundled model with other settings."""
    shutil.copytree(quickstart.PATH, folder, copy_function=shutil.copyfile)
    for name, values in (("generation_config.json", generation), ("config.json", config)):
        (folder / name).write_text(json.dumps(read_json(folder, name) | values))
    return folder


def test_texts_that_end_an_answer_cut_beams(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A task's, which are a model's own, and a request's."""
    tasks = {"fr": {"num_beams": 2, "prefix": "translate English to French: "}}
    beams = BeamSearchParams(num_beams=2, num_return_sequences=2)
    texts: list[list[str]] = []
    for stop in (None, ["fat"]):
        folder = copied(tmp_path / f"{stop}", {"stop_strings": stop}, task_specific_params=tasks)
        with LLM(str(folder), device="cpu") as llm:
            (own,) = llm.generate("I am tired.", task="fr", use_tqdm=False)
            (asked,) = llm.generate(f"{tasks['fr']['prefix']}I am tired.", beams, use_tqdm=False)
        assert own.outputs[0].stop_reason == (stop and stop[0])
        texts.append([sample.text for output in (own, asked) for sample in output.outputs])
    assert texts[1] == [text.partition("fat")[0] for text in texts[0]]
    assert "fat" in texts[0][0]
    assert warnings(caplog) == []


BAD: dict[str, list[Any]] = {
    "eos_token_id": ["</s>", -1, VOCAB, [EOS, 0.5], {}],
    "bos_token_id": ["<s>", [1, 2]],
    "decoder_start_token_id": ["<s>", VOCAB, True],
    "do_sample": ["yes", 1],
    "temperature": [-1, "hot", True, math.nan, math.inf, 10**400],
    "top_k": [-1, 2.5, "few", math.inf, 10**400, 2**63, 1e300],
    "top_p": [0, 3, "most"],
    "min_p": [-0.1, 2],
    "typical_p": [0, 1.5],
    "repetition_penalty": [0, -1, [], 1e-320],
    "no_repeat_ngram_size": [-1, "two", 2**40],
    "encoder_no_repeat_ngram_size": [-1, 0.5, 33],
    "bad_words_ids": [[3], [[]], [[VOCAB]], "word"],
    "forced_bos_token_id": [VOCAB, [1, 2], -1, "en"],
    "forced_eos_token_id": ["end", [VOCAB]],
    "suppress_tokens": [[-1], "all", [VOCAB]],
    "begin_suppress_tokens": [[0.5], {}],
    "num_beams": [0, -2, "many", 1.5, 1000],
    "length_penalty": ["long", math.inf, -1e308],
    "early_stopping": ["maybe", 2, 0],
    "renormalize_logits": ["yes"],
    "max_new_tokens": [0, -1, "long"],
    "max_length": [0, "long", math.inf, math.nan],
    "min_new_tokens": [-1],
    "min_length": [-1, "short"],
    "stop_strings": [3, [""], "", {}],
}


@pytest.mark.parametrize("name", READERS)
def test_a_malformed_value_is_named_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    good = ModelInfo.read(write_model(tmp_path, generation={}), "tiny")
    for value in BAD[name]:
        info = ModelInfo.read(write_model(tmp_path, generation={name: value}), "tiny")
        assert (info.defaults, info.eos_ids, info.decoder_start_id) == (
            good.defaults, good.eos_ids, good.decoder_start_id
        )  # fmt: skip
        (told,) = warnings(caplog)
        assert f"malformed: {{'{name}': " in told
        if name in DECODING:
            with pytest.raises(InvalidRequest) as caught:
                ModelInfo.read(tmp_path, "tiny", {name: value})
            assert caught.value.field == f"override_generation_config.{name}"
            warnings(caplog)
    tasks: Any = {"t": {name: BAD[name][0]}, "no object": 3}
    info = ModelInfo.read(write_model(tmp_path, generation={}, task_specific_params=tasks), "tiny")
    assert (info.tasks.keys(), info.tasks["t"].defaults) == ({"t"}, good.defaults)
    (told,) = warnings(caplog)
    assert f"malformed: {{'t.{name}': " in told
    ModelInfo.read(write_model(tmp_path, generation={}, task_specific_params=[1]), "tiny")


@settings(max_examples=30)
@given(value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from([10**400, -(10**400), 2**63, 2**31, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
))  # fmt: skip
def test_any_value_is_read_or_named(value: Any) -> None:
    good, bad = sound(dict.fromkeys(READERS, value), VOCAB)
    assert good.keys() | bad.keys() == (set() if value is None else set(READERS))
    assert not good.keys() & bad.keys()
    GenerationDefaults.of(good)


def test_what_is_read_can_be_asked_for(tmp_path: Path) -> None:
    """Every setting at its greatest, and a request that says nothing."""
    good = {name: next((one for one in (10**400, 2**31 - 1, 100, 32, 1) if not sound({name: one})[1]), None)
            for name, read in READERS.items() if read.__name__ != "_flag"}  # fmt: skip
    assert (good["max_length"], good["top_k"], good["temperature"]) == (10**400, 2**31 - 1, 100)
    del good["eos_token_id"], good["decoder_start_token_id"]
    greatest = {name: value for name, value in good.items() if name not in _OF_TOKENS and value is not None}
    folder = copied(tmp_path / "model", {**greatest, "do_sample": True})
    with LLM(str(folder), device="cpu", max_decoder_length=4) as llm:
        assert len(llm.generate("the cat", use_tqdm=False)[0].outputs) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "\ufeff{}", "[" * 100_000, "\udce9"])
def test_a_file_that_is_no_json_object_counts_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    folder = write_model(tmp_path, num_beams=3)
    (folder / "generation_config.json").write_text(content, errors="surrogateescape")
    with suppress(TypeError, RecursionError):  # transformers' own, for a list and for a deep one
        assert theirs(folder).num_beams == 3
    assert ModelInfo.read(folder, "tiny").defaults.num_beams == 3
    (told,) = warnings(caplog)
    assert "generation_config.json is not " in told
    assert told.endswith(": config.json counts alone")
