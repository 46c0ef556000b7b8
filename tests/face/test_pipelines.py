"""`pipeline`: the calls and results of transformers 4's, the tokens of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import load_reference, make_checkpoint
from multilingual import multilingual_checkpoint

from tandem import LLM, BeamSearchParams, InvalidRequest, Pipeline, SamplingParams, pipeline
from tandem.generate_arguments import to_params
from tandem.inputs import TokensPrompt
from tandem.workers.requests.parameters.defaults import merged

TASK = {"prefix": "ba be: ", "max_length": 9, "min_length": 5}
TEXTS = ["bi bo bu", "da de di do", "fa", "ga ge gi go gu ka"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("flan"),
        "flan",
        task_specific_params={"summarization": TASK, "translation_en_to_fr": {"prefix": "ma: "}},
    )


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def summarizer(llm: LLM) -> Pipeline:
    return pipeline("summarization", llm)


def reference(folder: Path, pipe: Pipeline, text: str, **arguments: Any) -> str:
    """transformers' answers."""
    model = load_reference(folder)
    ids = torch.tensor([pipe.tokenizer(text)["input_ids"]])
    (out,) = model.generate(input_ids=ids, do_sample=False, use_cache=False, **arguments).tolist()
    return str(pipe.tokenizer.decode(out, skip_special_tokens=True))


def test_results_have_the_shape_of_transformers_4(summarizer: Pipeline, llm: LLM) -> None:
    one = summarizer(TEXTS[0])
    assert [set(record) for record in one] == [{"summary_text"}]
    assert summarizer([TEXTS[0]]) == one
    many = summarizer(TEXTS, batch_size=2)
    assert [set(record) for record in many] == [{"summary_text"}] * len(TEXTS)
    assert many[0] == one[0]
    assert summarizer(iter(TEXTS)) == many
    samples = summarizer(TEXTS, do_sample=True, num_return_sequences=3, seed=1)
    assert [[set(record) for record in group] for group in samples] == [[{"summary_text"}] * 3] * len(TEXTS)
    (translated,) = pipeline("translation_en_to_fr", llm)("bi bo")
    assert set(translated) == {"translation_text"}
    (generated,) = pipeline("text2text-generation", llm)("bi bo")
    assert set(generated) == {"generated_text"}


def test_the_task_is_done_as_the_config_says_and_as_transformers_does_it(
    summarizer: Pipeline, folder: Path
) -> None:
    for text in TEXTS:
        (record,) = summarizer(text)
        expected = reference(folder, summarizer, "ba be: " + text, max_length=9, min_length=5)
        assert record["summary_text"] == expected
        (record,) = summarizer(text, max_new_tokens=12, min_length=8)
        expected = reference(folder, summarizer, "ba be: " + text, max_new_tokens=12, min_length=8)
        assert record["summary_text"] == expected


def test_beams_are_transformers_beams(llm: LLM, folder: Path) -> None:
    pipe = pipeline("text2text-generation", llm)
    search = {"num_beams": 3, "max_length": 12, "early_stopping": True, "length_penalty": 2.0}
    for text in TEXTS:
        assert pipe(text, **search)[0]["generated_text"] == reference(folder, pipe, text, **search)
    assert len(pipe(TEXTS[0], **search, num_return_sequences=3)) == 3


def test_arguments_of_the_pipeline_hold_for_every_call(llm: LLM, summarizer: Pipeline) -> None:
    short = pipeline("summarization", llm, max_length=6, min_length=2)
    assert short(TEXTS[0]) == summarizer(TEXTS[0], max_length=6, min_length=2) != summarizer(TEXTS[0])
    assert short(TEXTS[0], max_length=9, min_length=5) == summarizer(TEXTS[0])


def test_text_generation_goes_on_from_the_prompt(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("gpt2")
    with pipeline("text-generation", str(folder), dtype="float32") as pipe:
        for text in TEXTS[:2]:
            ids = pipe.tokenizer(text)["input_ids"]
            whole = pipe(text, max_length=len(ids) + 6, min_length=len(ids) + 6)
            expected = reference(folder, pipe, text, max_length=len(ids) + 6, min_length=len(ids) + 6)
            (new,) = pipe(text, max_new_tokens=6, min_new_tokens=6, return_full_text=False)
            assert whole == [{"generated_text": text + new["generated_text"]}]
            assert (text + " " + new["generated_text"].strip()) == expected
        many = pipe(TEXTS, max_new_tokens=2)
        assert [len(records) for records in many] == [1] * len(TEXTS), "a list for each"
        with pytest.raises(InvalidRequest, match="it does text-generation"):
            pipeline("summarization", pipe.llm)


@pytest.mark.parametrize("variant", ["t5", "bart", "marian", "gpt2"])
def test_a_call_is_its_three_parts(variant: str, checkpoint: Callable[..., Path]) -> None:
    task = "text-generation" if variant == "gpt2" else "text2text-generation"
    with pipeline(task, str(checkpoint(variant)), dtype="float32", max_new_tokens=8) as pipe:
        for text in TEXTS:
            inputs = pipe.preprocess(text)
            assert inputs["input_ids"] == [pipe.tokenizer(text)["input_ids"]]
            assert inputs["attention_mask"] == [[1] * len(inputs["input_ids"][0])]
            outputs = pipe.forward(inputs, num_beams=3, num_return_sequences=2)
            records = pipe.postprocess(outputs)
            assert records == pipe(text, num_beams=3, num_return_sequences=2)
            name, start = (
                ("generated_sequence", inputs["input_ids"][0]) if variant == "gpt2" else ("output_ids", [])
            )
            assert len(outputs[name][0]) == len(records) == 2
            assert all(one[: len(start)] == start for one in outputs[name][0])
        if variant == "gpt2":
            new = pipe.postprocess(outputs, return_full_text=False)
            assert [TEXTS[-1] + one["generated_text"] for one in new] == [
                one["generated_text"] for one in records
            ]


def test_the_parts_of_a_task(summarizer: Pipeline, tmp_path: Path) -> None:
    text = TEXTS[0]
    inputs = summarizer.preprocess(text)
    assert inputs["input_ids"] == [summarizer.tokenizer("ba be: " + text)["input_ids"]]
    assert summarizer.postprocess(summarizer.forward(inputs)) == summarizer(text)
    assert len(summarizer.forward(inputs, max_length=4)["output_ids"][0][0]) == 4
    with pytest.raises(InvalidRequest) as caught:
        summarizer.preprocess(text, no_such=1)
    assert caught.value.field == "no_such"
    with pipeline(
        "translation", str(multilingual_checkpoint(tmp_path)), dtype="float32", max_length=9
    ) as pipe:
        languages = {"src_lang": "eng_Latn", "tgt_lang": "fra_Latn"}
        outputs = pipe.forward(pipe.preprocess("a b", **languages), **languages)
        assert pipe.postprocess(outputs, **languages) == pipe("a b", **languages)


def test_a_model_that_samples_by_itself_gives_several_sequences(tmp_path: Path) -> None:
    """As gpt2's config says of text-generation."""
    sampling = {"text-generation": {"do_sample": True, "max_length": 12}}
    folder = make_checkpoint(tmp_path, "gpt2", task_specific_params=sampling)
    with pipeline("text-generation", str(folder), dtype="float32") as pipe:
        several = pipe(TEXTS[0], num_return_sequences=5, seed=3)
        assert len({one["generated_text"] for one in several}) > 1
        assert several == pipe(TEXTS[0], do_sample=True, num_return_sequences=5, seed=3)
        assert pipe(TEXTS[0], top_k=1) == pipe(TEXTS[0], do_sample=False)
        with pytest.raises(InvalidRequest, match="equal answers"):
            pipe(TEXTS[0], do_sample=False, num_return_sequences=5)


def test_languages_choose_the_prefix(llm: LLM) -> None:
    named = pipeline("translation_en_to_fr", llm)("bi bo")
    assert pipeline("translation", llm)("bi bo", src_lang="en", tgt_lang="fr") == named
    assert (
        pipeline("text2text-generation", llm)("ma: bi bo")[0]["generated_text"]
        == named[0]["translation_text"]
    )
    with pytest.raises(InvalidRequest, match="not one of this model's languages: fr") as caught:
        pipeline("translation", llm)("bi bo", src_lang="en", tgt_lang="xx")
    assert caught.value.field == "tgt_lang"


def test_a_tokenizer_of_many_languages_marks_both(tmp_path: Path) -> None:
    folder = multilingual_checkpoint(tmp_path)
    with pipeline("translation", str(folder), dtype="float32", max_length=9) as pipe:
        (record,) = pipe("a b", src_lang="eng_Latn", tgt_lang="fra_Latn")
        assert pipe(["a b"], src_lang="deu_Latn", tgt_lang="fra_Latn") != [record]
        assert pipe("a b", src_lang="English", tgt_lang="fr-CA") == [record]
        with pipeline("translation_en_to_fr", pipe.llm, max_length=9) as named:
            assert named("a b") == [record]
        ids: Any = pipe.tokenizer.convert_tokens_to_ids(["eng_Latn", "fra_Latn"])
        prompt = TokensPrompt(prompt_token_ids=[ids[0], *pipe.llm.tokenize("a b")[1:]])
        params = SamplingParams(temperature=0, max_tokens=8, forced_bos_token_id=ids[1])
        (output,) = pipe.llm.generate(prompt, params)
        assert output.outputs[0].token_ids[0] == ids[1]
        assert record["translation_text"] == output.outputs[0].text
        for arguments, field in (
            ({}, "src_lang"),
            ({"src_lang": "eng_Latn", "tgt_lang": "xx"}, "tgt_lang"),
            ({"src_lang": "xx", "tgt_lang": "fra_Latn"}, "src_lang"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                pipe("a b", **arguments)
            assert caught.value.field == field


def test_truncation_cuts_what_is_otherwise_refused(folder: Path) -> None:
    with pipeline(
        "text2text-generation", str(folder), dtype=torch.float32, device=-1, max_encoder_length=4
    ) as pipe:
        with pytest.raises(InvalidRequest) as caught:
            pipe("ba be bi bo bu")
        said = "inputs: has 6 tokens, the limit is 4: shorten it or set truncation=True"
        assert str(caught.value) == said
        assert pipe("ba be bi bo bu", truncation=True) == pipe("ba be bi")


def test_a_text_is_translated_sentence_by_sentence(llm: LLM) -> None:
    translator = pipeline("translation_en_to_fr", llm)
    (one,), (other,) = translator("bi bo."), translator("da de?")
    first, second = one["translation_text"].strip(), other["translation_text"].strip()
    text = " bi bo. da de?\n\nbi bo.\n"
    assert translator(text) == [{"translation_text": f" {first} {second}\n\n{first}\n"}]
    assert translator([text, "bi bo."]) == [*translator(text), one]
    (by_line,) = translator("bi bo. da de?", split="line")
    (whole,) = pipeline("text2text-generation", llm)("ma: bi bo. da de?")
    assert by_line["translation_text"].strip() == whole["generated_text"].strip()
    assert translator("bi bo. da de?", split="none")[0]["translation_text"] == whole["generated_text"]
    assert translator(["", " \n", "bi bo."]) == [{"translation_text": ""}, {"translation_text": " \n"}, one]
    samples = translator(text, num_beams=2, num_return_sequences=2)
    assert [record["translation_text"].count("\n") for record in samples] == [3, 3]
    assert translator(" ", num_beams=2, num_return_sequences=2) == [{"translation_text": " "}] * 2
    long = "bi bo bu " * 1500
    assert translator(long[:1800])[0]["translation_text"]
    with pytest.raises(InvalidRequest, match="the limit is"):
        translator(long, split="none")
    for pipe, arguments in (
        (pipeline("summarization", llm), {"split": "sentence"}),
        (translator, {"split": "word"}),
    ):
        with pytest.raises(InvalidRequest) as caught:
            pipe("bi", **arguments)
        assert caught.value.field == "split"


def test_summaries_are_of_whole_texts(summarizer: Pipeline, folder: Path) -> None:
    text = "bi bo. da de?\nbi bo."
    expected = reference(folder, summarizer, "ba be: " + text, max_length=9, min_length=5)
    assert summarizer(text) == [{"summary_text": expected}]


def test_the_bundled_model_is_the_default() -> None:
    with pipeline("translation_en_to_de") as translator:
        assert translator("I am happy.")[0]["translation_text"].startswith("Ich bin")
        cleaned = translator("I am happy.", clean_up_tokenization_spaces=True)
        assert cleaned == translator("I am happy.")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_tokens": 5}, "max_tokens"),
        ({"num_beam": 2}, "num_beam"),
        ({"max_length": 0}, "max_length"),
        ({"min_new_tokens": True}, "min_new_tokens"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"do_sample": True, "top_p": 2.0}, "top_p"),
        ({"truncation": "sideways"}, "truncation"),
    ],
)
def test_bad_arguments_name_themselves(summarizer: Pipeline, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        summarizer(TEXTS[0], **arguments)
    assert caught.value.field == field


def test_bad_pipelines_name_what_is_wrong(llm: LLM) -> None:
    for task, options, field in (
        ("summarisation", {}, "task"),
        ("text-generation", {}, "task"),
        ("summarization", {"max_num_seqs": 3}, "max_num_seqs"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            pipeline(task, llm, **options)  # type: ignore[arg-type]
        assert caught.value.field == field
    with pytest.raises(InvalidRequest) as caught:
        pipeline("summarization", device_map="auto")
    assert caught.value.field == "device_map"
    with pytest.raises(InvalidRequest) as caught:
        pipeline("summarization", device="tpu")
    assert caught.value.field == "device"


def test_later_layers_go_first_and_kinds_of_length_exclude_each_other() -> None:
    assert merged({"max_new_tokens": 5, "seed": 1}, {"max_length": 9, "seed": None}) == {
        "max_length": 9,
        "seed": 1,
    }


def test_arguments_of_generate_become_parameters() -> None:
    def params(beams: bool = False, /, **arguments: Any) -> Any:
        return to_params(arguments, 1, beams=beams)

    assert to_params({"max_length": 9, "min_length": 3}, 2, beams=False) == SamplingParams(
        max_tokens=7, min_tokens=1
    )
    assert params(max_new_tokens=5, max_length=9) == SamplingParams(max_tokens=5)
    assert params(do_sample=False) == SamplingParams(temperature=0.0)
    assert params(do_sample=True, num_return_sequences=2) == SamplingParams(temperature=1.0, n=2)
    assert params(num_beams=3, num_return_sequences=2, length_penalty=2.0) == BeamSearchParams(
        num_beams=3, num_return_sequences=2, length_penalty=2.0
    )
    assert params(True, max_new_tokens=5) == BeamSearchParams(max_tokens=5), "the model's own way"
    assert params(True, num_beams=1) == SamplingParams(num_beams=1)
    assert params(True, num_beams=1, do_sample=True, num_return_sequences=2) == SamplingParams(
        num_beams=1, temperature=1.0, n=2
    )
    with pytest.warns(UserWarning, match="without do_sample=True: top_k"):
        assert params(top_k=5) == SamplingParams()
    with pytest.warns(UserWarning, match="without num_beams: length_penalty"):
        assert params(length_penalty=2.0) == SamplingParams()
    assert params(num_beams=2, do_sample=True, top_k=5) == BeamSearchParams(
        num_beams=2, temperature=1.0, top_k=5
    )
    assert params(True, do_sample=False) == BeamSearchParams(temperature=0.0)
