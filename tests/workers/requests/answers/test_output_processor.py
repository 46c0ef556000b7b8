"""Deltas become the answer: text, stop strings, log-probabilities, several samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import make_checkpoint
from tiny_t5 import EOS, write_model
from tiny_tokenizers import blenderbot_small

from tandem.errors import Unavailable
from tandem.outputs import TextDelta, TokenLogprobs
from tandem.params import BeamSearchParams, SamplingParams
from tandem.workers.request import Delta, Hypothesis
from tandem.workers.requests.request_builder import OutputProcessor, PreparedRequest, RequestBuilder

SENTENCE = "le chat est sur le tapis"


@pytest.fixture(scope="module")
def request_builder(tmp_path_factory: pytest.TempPathFactory) -> RequestBuilder:
    return RequestBuilder.load(write_model(tmp_path_factory.mktemp("model")), "tiny")


def begin(
    request_builder: RequestBuilder, prompt: Any = "the cat", **params: Any
) -> tuple[PreparedRequest, OutputProcessor]:
    prepared = request_builder.prepare(prompt, SamplingParams(**params))
    return prepared, request_builder.output_processor(prepared)


def ids_of(request_builder: RequestBuilder, text: str = SENTENCE) -> list[int]:
    return request_builder.tokenize(text)[:-1]


def feed(output_processor: OutputProcessor, request_id: str, ids: list[int], **last: Any) -> list[TextDelta]:
    deltas = [Delta(request_id, [token_id]) for token_id in ids]
    deltas.append(Delta(request_id, [], **last) if last else Delta(request_id, [EOS], finish_reason="stop"))
    return [out for delta in deltas for out in output_processor.push(delta)]


def test_the_deltas_make_up_the_output(request_builder: RequestBuilder) -> None:
    prepared, output_processor = begin(request_builder)
    assert not output_processor.finished
    deltas = feed(output_processor, prepared.sequences[0].request_id, ids_of(request_builder))
    output = output_processor.output()
    [sample] = output.outputs
    assert sample.text == "".join(delta.text for delta in deltas) == SENTENCE
    assert (
        sample.token_ids
        == [i for delta in deltas for i in delta.token_ids]
        == [*ids_of(request_builder), EOS]
    )
    assert (sample.finish_reason, sample.stop_reason) == ("stop", None)
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert output.finished
    assert output_processor.finished
    assert (output.encoder_prompt, output.prompt, output.prompt_token_ids) == ("the cat", None, [0])


def test_a_stop_string_ends_the_sample_at_the_token_that_completed_it(
    request_builder: RequestBuilder,
) -> None:
    ids = ids_of(request_builder)
    prepared, output_processor = begin(request_builder, stop=[" est s"], logprobs=0)
    request_id = prepared.sequences[0].request_id
    logprobs = [TokenLogprobs(i, -0.5, []) for i in ids]
    [delta] = output_processor.push(Delta(request_id, ids, logprobs))
    assert delta is not None
    assert output_processor.stopped(0)
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("le chat", "stop", " est s")
    tokenizer = request_builder.vocabulary.decode
    assert " est s" in tokenizer(delta.token_ids)
    assert " est s" not in tokenizer(delta.token_ids[:-1])
    [sample] = output_processor.output().outputs
    assert len(sample.token_ids) == len(sample.logprobs or [])
    assert sample.cumulative_logprob == -0.5 * len(sample.token_ids)
    # The engine has not heard of it yet.
    assert output_processor.push(Delta(request_id, [5])) == []
    assert output_processor.push(Delta(request_id, [], finish_reason="length")) == []
    assert output_processor.output().outputs[0].finish_reason == "stop"


@given(cut=st.integers(0, len(SENTENCE)), length=st.integers(1, 6), chunk=st.integers(1, 8))
def test_stop_strings_do_not_depend_on_the_deltas(
    request_builder: RequestBuilder, cut: int, length: int, chunk: int
) -> None:
    stop = SENTENCE[cut : cut + length] or "not there"
    ids = ids_of(request_builder)
    prepared, output_processor = begin(request_builder, stop=stop)
    request_id = prepared.sequences[0].request_id
    for start in range(0, len(ids), chunk):
        output_processor.push(Delta(request_id, ids[start : start + chunk]))
    output_processor.push(Delta(request_id, [], finish_reason="length"))
    [sample] = output_processor.output().outputs
    assert sample.text == SENTENCE.split(stop)[0]
    assert sample.finish_reason == ("stop" if stop in SENTENCE else "length")


def test_held_back_text_comes_out_at_the_end(request_builder: RequestBuilder) -> None:
    prepared, output_processor = begin(request_builder, stop=["tapis vert"])
    *_, last = feed(
        output_processor, prepared.sequences[0].request_id, ids_of(request_builder), finish_reason="length"
    )
    assert last.text.endswith("tapis")
    assert not output_processor.stopped(0)
    assert output_processor.output().outputs[0].text == SENTENCE


def test_stop_strings_wait_for_min_tokens(request_builder: RequestBuilder) -> None:
    ids = ids_of(request_builder)
    prepared, output_processor = begin(request_builder, stop=["le"], min_tokens=4)
    feed(output_processor, prepared.sequences[0].request_id, ids)
    assert output_processor.output().outputs[0].text == SENTENCE[: SENTENCE.rindex("le")]


def test_stop_ids_and_other_reasons_are_passed_on(request_builder: RequestBuilder) -> None:
    for last in ({"finish_reason": "stop", "stop_reason": 9}, {"finish_reason": "deadline"}):
        prepared, output_processor = begin(request_builder)
        feed(output_processor, prepared.sequences[0].request_id, [5], **last)
        [sample] = output_processor.output().outputs
        assert (sample.finish_reason, sample.stop_reason) == (last["finish_reason"], last.get("stop_reason"))


def test_samples_are_told_apart(request_builder: RequestBuilder) -> None:
    prepared, output_processor = begin(request_builder, n=2)
    one, two = (sample.request_id for sample in prepared.sequences)
    feed(output_processor, two, ids_of(request_builder, "le tapis"))
    assert not output_processor.finished
    feed(output_processor, one, ids_of(request_builder, "le chat"))
    assert output_processor.finished
    assert [(s.index, s.text) for s in output_processor.output().outputs] == [(0, "le chat"), (1, "le tapis")]


def test_text_goes_on_from_the_decoder_prompt(request_builder: RequestBuilder) -> None:
    prepared, output_processor = begin(
        request_builder, {"encoder_prompt": "the cat", "decoder_prompt": "le chat"}
    )
    feed(output_processor, prepared.sequences[0].request_id, ids_of(request_builder, "est sur le tapis"))
    assert output_processor.output().outputs[0].text == " est sur le tapis"


def test_special_tokens_are_shown_where_asked_for(request_builder: RequestBuilder) -> None:
    prepared, output_processor = begin(request_builder, skip_special_tokens=False)
    feed(output_processor, prepared.sequences[0].request_id, ids_of(request_builder))
    assert output_processor.output().outputs[0].text == SENTENCE + "</s>"


def test_an_error_is_raised(request_builder: RequestBuilder) -> None:
    prepared, output_processor = begin(request_builder)
    with pytest.raises(Unavailable):
        output_processor.push(Delta(prepared.sequences[0].request_id, [], error=Unavailable("gone")))


def test_a_delta_that_says_nothing_is_nothing(request_builder: RequestBuilder) -> None:
    prepared, output_processor = begin(request_builder)
    assert output_processor.push(Delta(prepared.sequences[0].request_id, [])) == []


def test_beams_end_with_an_answer_each(request_builder: RequestBuilder) -> None:
    prepared = request_builder.prepare("the cat", BeamSearchParams(num_beams=4, num_return_sequences=2))
    output_processor = request_builder.output_processor(prepared)
    [request] = prepared.sequences
    ids = ids_of(request_builder)
    found = [Hypothesis([*ids, EOS], -0.5, "stop", None), Hypothesis(ids[:3], -0.75, "length", None)]
    deltas = output_processor.push(Delta(request.request_id, [], finish_reason="stop", hypotheses=found))
    assert [(d.index, d.token_ids, d.score, d.finish_reason) for d in deltas] == [
        (0, [*ids, EOS], -0.5, "stop"),
        (1, ids[:3], -0.75, "length"),
    ]
    assert output_processor.finished
    outputs = output_processor.output().outputs
    assert outputs[0].text == SENTENCE
    assert [output.score for output in outputs] == [-0.5, -0.75]
    assert SENTENCE.startswith(outputs[1].text)


def test_beams_that_are_cancelled_end_all_their_answers(request_builder: RequestBuilder) -> None:
    prepared = request_builder.prepare("the cat", BeamSearchParams(num_beams=3, num_return_sequences=3))
    output_processor = request_builder.output_processor(prepared)
    deltas = output_processor.push(Delta(prepared.sequences[0].request_id, [], finish_reason="cancelled"))
    assert [(d.index, d.token_ids, d.score, d.finish_reason) for d in deltas] == [
        (index, [], None, "cancelled") for index in range(3)
    ]
    assert output_processor.finished


def test_pieces_whose_text_the_next_changes(tmp_path: Path) -> None:
    """Blenderbot-small's: whole and streamed text are its decode, and stop strings are found across marks."""
    folder = make_checkpoint(tmp_path, "blenderbot-small")
    (folder / "tokenizer.json").unlink()
    tokenizer = blenderbot_small()
    tokenizer.save_pretrained(folder)
    builder = RequestBuilder.load(folder, "blenderbot")
    ids = tokenizer.convert_tokens_to_ids(["ye@@", "z@@", "db", "uc", "a@@"])
    prepared, output_processor = begin(builder, {"prompt_token_ids": [5]})
    deltas = feed(output_processor, prepared.sequences[0].request_id, ids)
    [sample] = output_processor.output().outputs
    assert sample.text == "".join(delta.text for delta in deltas) == tokenizer.decode(ids) == "yezdb uc a@@"

    prepared, output_processor = begin(builder, {"prompt_token_ids": [5]}, stop=["zdb u"])
    feed(output_processor, prepared.sequences[0].request_id, ids)
    [sample] = output_processor.output().outputs
    assert (sample.text, sample.token_ids, sample.stop_reason) == ("ye", ids[:4], "zdb u")
