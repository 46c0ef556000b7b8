"""`LLM` as its users meet it: the bundled model, every kind of prompt, streams, threads, errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tandem import (
    LLM,
    BeamSearchParams,
    InvalidRequest,
    ModelLoadError,
    SamplingParams,
    zip_enc_dec_prompt_lists,
)
from tandem.inputs import ExplicitEncoderDecoderPrompt, Prompt, TokensPrompt
from tandem.outputs import RequestOutput

FRENCH = "translate English to French: "
GREEDY = SamplingParams(temperature=0, max_tokens=32)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(dtype="float32", max_num_seqs=8, check_invariants=True) as llm:
        yield llm


def text(output: RequestOutput) -> str:
    return output.outputs[0].text


def test_the_bundled_model_translates(llm: LLM) -> None:
    (output,) = llm.generate(FRENCH + "I am tired.", GREEDY)
    assert text(output).startswith("Je suis")
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].token_ids[-1] == 1, "EOS is part of the ids, not of the text"
    assert output.encoder_prompt == FRENCH + "I am tired."
    assert output.prompt is None
    assert output.prompt_token_ids == [0]
    assert output.finished


def test_kinds_of_prompt_mix_and_keep_their_order(llm: LLM) -> None:
    sentence = FRENCH + "Where do you live?"
    ids = llm.tokenize(sentence)
    whole, tokens = llm.generate([sentence, {"prompt_token_ids": ids}], GREEDY)
    assert text(whole) == text(tokens)
    prompts: list[Prompt] = [
        {"prompt": sentence},
        {"encoder_prompt": sentence, "decoder_prompt": None},
        {"encoder_prompt": {"prompt_token_ids": ids}, "decoder_prompt": ""},
        *zip_enc_dec_prompt_lists([sentence], [{"prompt_token_ids": whole.outputs[0].token_ids[:2]}]),
    ]
    outputs = llm.generate(prompts, GREEDY)
    assert [text(output) for output in outputs[:3]] == [text(whole)] * 3
    assert outputs[3].outputs[0].token_ids == whole.outputs[0].token_ids[2:], "goes on from the prompt"


def test_one_sampling_params_for_each_prompt(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 2, 3)]
    outputs = llm.generate([FRENCH + "I see a dog."] * 3, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
    with pytest.raises(InvalidRequest, match="got 3 for 1 prompts") as caught:
        llm.generate("x", params)
    assert caught.value.field == "sampling_params"
    with pytest.raises(InvalidRequest, match=r"must be SamplingParams.* not dict") as caught:
        llm.generate("x", {"temperature": 0})  # type: ignore[arg-type]
    assert caught.value.field == "sampling_params"


def test_task_and_languages_say_what_a_prefix_says(llm: LLM) -> None:
    sentence = "I am tired."
    french, german = llm.generate([FRENCH + sentence, "translate English to German: " + sentence], GREEDY)
    named, other = llm.generate(
        [sentence] * 2, GREEDY, source_language="en-US", target_language=["French", "deu"], use_tqdm=False
    )
    (by_task,) = llm.generate(sentence, GREEDY, task="translation_en_to_fr")
    assert [text(output) for output in (named, other, by_task)] == [text(french), text(german), text(french)]
    assert named.encoder_prompt == sentence
    streamed = llm.stream(sentence, GREEDY, target_language="de")
    assert "".join(delta.text for delta in streamed) == text(german)
    (score,) = llm.score(sentence, text(french), task="translation_en_to_fr")
    (same,) = llm.score(FRENCH + sentence, text(french))
    assert score.scores == same.scores
    refused: list[tuple[dict[str, Any], str]] = [
        ({"task": "summarization"}, "task"),
        ({"task": ["translation_en_to_fr"] * 2}, "task"),
        ({"target_language": "xx"}, "target_language"),
        ({"source_language": "en"}, "target_language"),
        ({"source_language": "de", "target_language": "fr"}, "source_language"),
        ({"target_language": "fr", "task": "translation_en_to_fr"}, "target_language"),
    ]
    for chosen, field in refused:
        with pytest.raises(InvalidRequest, match=r"translation_en_to_fr|de, fr|: en$|task|got 2") as caught:
            llm.generate(sentence, GREEDY, **chosen)
        assert caught.value.field == field


def test_a_stream_adds_up_to_the_answer(llm: LLM) -> None:
    sentence = FRENCH + "Where is the station?"
    pieces = list(llm.stream(sentence, GREEDY))
    (whole,) = llm.generate(sentence, GREEDY)
    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == text(whole)
    assert [i for piece in pieces for i in piece.token_ids] == whole.outputs[0].token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]


def test_a_dropped_stream_frees_its_pages(llm: LLM) -> None:
    stream = llm.stream(FRENCH + "I am tired.", SamplingParams(max_tokens=64, ignore_eos=True))
    next(stream)
    stream.close()
    llm.generate(FRENCH + "Hi.", GREEDY)  # its steps carry the cancellation out
    stats = llm._engine.engine.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)


def test_samples_are_reproducible_and_share_their_encoder_input(llm: LLM) -> None:
    params = SamplingParams(n=4, temperature=1.0, top_p=0.95, seed=7, max_tokens=16)
    before = llm._engine.engine.stats().encoded_tokens
    (first,) = llm.generate(FRENCH + "I am happy today.", params)
    assert llm._engine.engine.stats().encoded_tokens - before == len(first.encoder_prompt_token_ids)
    crowd = llm.generate(
        [FRENCH + "I am happy today.", *[FRENCH + f"I have {n} dogs." for n in range(9)]],
        [params, *[SamplingParams(temperature=1.0, max_tokens=16)] * 9],
    )
    assert [o.token_ids for o in crowd[0].outputs] == [o.token_ids for o in first.outputs]
    assert len({o.text for o in first.outputs}) > 1


def test_stop_strings_and_ids(llm: LLM) -> None:
    (plain,) = llm.generate(FRENCH + "I am tired.", GREEDY)
    (cut,) = llm.generate(FRENCH + "I am tired.", SamplingParams(temperature=0, stop=[" suis"]))
    assert (text(cut), cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("Je", "stop", " suis")
    second = plain.outputs[0].token_ids[1]
    (cut,) = llm.generate(FRENCH + "I am tired.", SamplingParams(temperature=0, stop_token_ids=[second]))
    assert cut.outputs[0].token_ids == plain.outputs[0].token_ids[:2]
    assert cut.outputs[0].stop_reason == second


def test_logprobs(llm: LLM) -> None:
    (output,) = llm.generate(FRENCH + "I am tired.", SamplingParams(temperature=0, logprobs=3))
    sample = output.outputs[0]
    assert sample.logprobs is not None
    assert [entry.token_id for entry in sample.logprobs] == sample.token_ids
    assert all(entry.top[0] == (entry.token_id, entry.logprob) for entry in sample.logprobs), "greedy"
    assert all(len(entry.top) == 3 for entry in sample.logprobs)
    assert sample.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in sample.logprobs))


def test_prompt_logprobs_are_the_scores_of_the_decoder_prompt(llm: LLM) -> None:
    sentence = FRENCH + "I am tired."
    prompt = ExplicitEncoderDecoderPrompt(encoder_prompt=sentence, decoder_prompt="Je suis")
    params = SamplingParams(temperature=1, n=3, seed=1, max_tokens=4, prompt_logprobs=2)
    (output,) = llm.generate(prompt, params)
    assert output.prompt_logprobs is not None
    first, *others = output.prompt_logprobs
    assert first is None
    (score,) = llm.score(sentence, {"prompt_token_ids": output.prompt_token_ids[1:]})
    assert [entry and entry.token_id for entry in others] == score.scores[0].token_ids
    assert [entry and entry.logprob for entry in others] == pytest.approx(score.scores[0].logprobs, abs=1e-4)
    for entry in others:
        assert entry is not None
        assert len(entry.top) == 2
        assert (entry.rank == 1) == (entry.top[0][0] == entry.token_id)
    deltas = list(llm.stream(prompt, params))
    assert [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs] == [output.prompt_logprobs]
    (bare,) = llm.generate(sentence, SamplingParams(max_tokens=2, prompt_logprobs=0))
    assert bare.prompt_logprobs == [None]
    (silent,) = llm.generate(prompt, SamplingParams(max_tokens=2))
    assert silent.prompt_logprobs is None


def test_scores_are_the_logprobs_of_the_answer(llm: LLM) -> None:
    """A greedy answer gets the score it had when it was generated, and a better one than another answer."""
    sentences = [FRENCH + "I am tired.", FRENCH + "Where do you live?"]
    answers = llm.generate(sentences, SamplingParams(temperature=0, max_tokens=32, logprobs=0))
    texts = [text(answer) for answer in answers]
    one, other = llm.score(sentences, [texts, texts[1]])
    assert (one.encoder_prompt, one.prompt_token_ids, len(one.scores)) == (sentences[0], [0], 2)
    for answer, scored in zip(answers, (one.scores[0], other.scores[0]), strict=True):
        said = answer.outputs[0]
        assert said.logprobs is not None
        assert scored.token_ids == said.token_ids
        assert scored.logprobs == pytest.approx([token.logprob for token in said.logprobs], abs=1e-4)
        assert scored.cumulative_logprob == pytest.approx(said.cumulative_logprob, abs=1e-3)
    assert one.scores[0].cumulative_logprob > one.scores[1].cumulative_logprob
    start = TokensPrompt(prompt_token_ids=one.scores[0].token_ids[:2])
    rest = TokensPrompt(prompt_token_ids=one.scores[0].token_ids[2:])
    begun = ExplicitEncoderDecoderPrompt(encoder_prompt=sentences[0], decoder_prompt=start)
    (behind,) = llm.score(begun, rest)
    assert behind.scores[0].logprobs == pytest.approx(one.scores[0].logprobs[2:], abs=1e-4)
    for bad, field in (([], "targets"), (["a", ""], "targets.1")):
        with pytest.raises(InvalidRequest) as caught:
            llm.score(sentences[0], bad)
        assert caught.value.field == field
    with pytest.raises(InvalidRequest, match="got 1 for 2 prompts"):
        llm.score(sentences, ["a"])


def test_threads_share_the_engine(llm: LLM) -> None:
    sentences = [FRENCH + f"I have {n} dogs." for n in range(12)]
    expected = [text(output) for output in llm.generate(sentences, GREEDY)]
    answers: dict[int, str] = {}

    def work(number: int) -> None:
        answers[number] = text(llm.generate(sentences[number], GREEDY)[0])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(sentences))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(len(sentences))] == expected


def test_progress_goes_to_stderr_for_more_than_a_few_prompts(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.generate([FRENCH + "Hi."] * 5, GREEDY)
    shown = capsys.readouterr()
    assert "5/5" in shown.err
    assert shown.out == ""
    llm.generate([FRENCH + "Hi."] * 5, GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("", "prompt"),
        ({"prompt_token_ids": []}, "prompt_token_ids"),
        ({"prompt_token_ids": [4000]}, "prompt_token_ids"),
        ({"prompt_token_ids": [-1]}, "prompt_token_ids"),
        ({"prompt": "x", "multi_modal_data": {"audio": b"RIFF"}}, "multi_modal_data.audio"),
        ({"encoder_prompt": "x", "decoder_prompt": {"prompt_token_ids": [99999]}}, "decoder_prompt"),
        (42, "prompt"),
    ],
)
def test_bad_prompts_name_their_field(llm: LLM, prompt: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate([prompt])  # type: ignore[list-item]
    assert caught.value.field is not None
    assert caught.value.field.startswith(field)


def test_a_default_that_is_written_out_leaves_the_models_beams() -> None:
    written = SamplingParams(n=1, temperature=0, top_p=1.0, top_k=0, seed=3, stop=[], max_tokens=32)
    with LLM(dtype="float32", override_generation_config={"num_beams": 3}) as llm:
        searched, same, greedy = llm.generate(
            [FRENCH + "I am tired."] * 3, [None, written, SamplingParams(num_beams=1, logprobs=0)]
        )
        assert searched.outputs[0].score is not None
        assert searched.outputs == same.outputs
        assert (greedy.outputs[0].score, greedy.outputs[0].logprobs is None) == (None, False)
        with pytest.raises(InvalidRequest, match="n: does not go with beam search"):
            llm.generate(FRENCH + "I am tired.", SamplingParams(n=2))


def test_beams_beside_samples(llm: LLM) -> None:
    """Both kinds of parameters in one list; the best beam is at least as likely as the greedy answer."""
    search = BeamSearchParams(num_beams=4, num_return_sequences=3, length_penalty=0.0, max_tokens=32)
    greedy = SamplingParams(temperature=0, max_tokens=32, logprobs=0)
    found, one = llm.generate([FRENCH + "I am tired."] * 2, [search, greedy])
    scores = [output.score for output in found.outputs]
    assert [output.index for output in found.outputs] == [0, 1, 2]
    assert all(output.finish_reason == "stop" and output.text for output in found.outputs)
    assert len({tuple(output.token_ids) for output in found.outputs}) == 3
    assert None not in scores
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert one.outputs[0].score is None
    assert scores[0] >= one.outputs[0].cumulative_logprob - 1e-4  # type: ignore[operator]
    deltas = list(llm.stream(FRENCH + "I am tired.", search))
    assert [(d.index, d.text) for d in deltas] == [(o.index, o.text) for o in found.outputs]
    assert [d.score for d in deltas] == pytest.approx(scores)


def test_more_beams_than_the_engine_decodes_at_once_are_refused() -> None:
    with (
        LLM(dtype="float32", max_num_seqs=4) as llm,
        pytest.raises(InvalidRequest, match="num_beams: the engine decodes 4"),
    ):
        llm.generate(FRENCH + "Hi.", BeamSearchParams(num_beams=5, max_tokens=4))


def test_nothing_runs_where_one_prompt_is_bad(llm: LLM) -> None:
    before = llm._engine.engine.stats().steps
    with pytest.raises(InvalidRequest):
        llm.generate([FRENCH + "Hi.", ""])
    assert llm._engine.engine.stats().steps == before


def test_a_request_that_can_never_fit_is_refused_and_the_rest_let_go() -> None:
    with LLM(dtype="float32", num_pages=4, page_size=8) as llm:
        with pytest.raises(InvalidRequest, match="the engine has 4"):
            llm.generate(
                [FRENCH + "Hi.", FRENCH + "Hi."], [GREEDY.model_copy(update={"max_tokens": 4}), GREEDY]
            )
        stats = llm._engine.engine.stats()
        assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, 4)


def test_tensor_parallel_children_end_with_close() -> None:
    with LLM(dtype="float32", tensor_parallel_size=2) as llm:
        assert llm._ranks is not None
        (output,) = llm.generate(FRENCH + "I am tired.", GREEDY)
        assert text(output).startswith("Je suis")
    assert [child.returncode for child in llm._ranks._children] == [0]
    with pytest.raises(InvalidRequest, match="closed"):
        llm.generate("x")
    llm.close()


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"model": "./no/such/folder"}, ModelLoadError, "model"),
        ({"dtype": "half"}, InvalidRequest, "dtype"),
        ({"dtype": "int3"}, InvalidRequest, "dtype"),
        ({"max_num_seq": 3}, InvalidRequest, "max_num_seq"),
        ({"max_num_seqs": 0}, InvalidRequest, "max_num_seqs"),
    ],
)
def test_unusable_options_name_themselves(
    options: dict[str, object], error: type[Exception], field: str
) -> None:
    with pytest.raises(error) as caught:
        LLM(**options)  # type: ignore[arg-type]
    assert caught.value.field == field  # type: ignore[attr-defined]


def test_heads_that_do_not_split_are_refused_without_leaving_processes() -> None:
    with pytest.raises(ModelLoadError, match="not divisible") as caught:
        LLM(tensor_parallel_size=3)
    assert caught.value.field == "tensor_parallel_size"


def test_each_prompt_by_itself(llm: LLM) -> None:
    prompts: list[Prompt] = ["translate English to French: I am happy.", "", {"prompt_token_ids": [10**6]}]
    first, empty, unknown = llm.generate_each(prompts, SamplingParams(max_tokens=4))
    assert isinstance(first, RequestOutput)
    assert first.outputs == llm.generate(prompts[0], SamplingParams(max_tokens=4))[0].outputs
    assert [str(error).partition(",")[0] for error in (empty, unknown)] == [
        "prompt: must not be empty",
        "prompt_token_ids: id 1000000 at 0 is not in the vocabulary",
    ]
    with pytest.raises(InvalidRequest, match=r"prompt: must not be empty \(in prompt 2 of 3\)"):
        llm.generate(prompts)


def test_a_text_and_its_sentences(llm: LLM) -> None:
    document = llm.segment("I am tired. And you?\n", source_language="en", target_language="fr")
    assert document.segments == ("I am tired.", "And you?")
    assert llm.segment("I am tired. And you?", "none").segments == ("I am tired. And you?",)


def test_a_model_of_text_transcribes_nothing(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="no speech model") as refused:
        llm.transcribe(([0.0] * 16_000, 16_000))  # type: ignore[arg-type]
    assert refused.value.field == "model"
