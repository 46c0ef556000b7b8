"""Every protocol's validator: what is refused, by which name, and what the defaults are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hearing import HEARING
from hypothesis import given
from hypothesis import strategies as st
from models import make_checkpoint
from tiny_t5 import EOS, PAD, VOCAB, write_model
from tiny_tokenizers import marian
from transformers import AutoTokenizer, MarianConfig

from tandem.errors import InvalidRequest, ModelLoadError, ModelNotFound, RequestTooLarge, TandemError
from tandem.inputs import Media, MultiModalData, Prompt, TextPrompt
from tandem.limits import Limits
from tandem.params import BeamSearchParams, SamplingParams, params_of
from tandem.workers.request import BeamSearch, Decoding, Delta
from tandem.workers.requests.request_builder import ModelInfo, RequestBuilder, sample_seed

LIMITS = Limits(encoder_tokens=12, decoder_tokens=10, timeout_s=60)
GREEDY = SamplingParams(max_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def request_builder(folder: Path) -> RequestBuilder:
    return RequestBuilder.load(folder, "tiny", LIMITS)


def decoding(folder: Path, generation: dict[str, Any] | None, **params: Any) -> Decoding:
    write_model(folder, generation=generation)
    request_builder = RequestBuilder.load(folder, "tiny")
    return request_builder.prepare("the cat", SamplingParams(**params)).sequences[0].decoding


# -- what is accepted


def test_a_text_is_tokenized_with_the_models_special_tokens(request_builder: RequestBuilder) -> None:
    prepared = request_builder.prepare("the cat", GREEDY, request_id="r1", priority=3, timeout_s=5)
    [sample] = prepared.sequences
    assert sample.encoder.token_ids[-1] == EOS
    assert (
        list(sample.encoder.token_ids)
        == prepared.encoder_prompt_token_ids
        == request_builder.tokenize("the cat")
    )
    assert sample.prefix_ids == (PAD,)
    assert (sample.priority, sample.timeout_s) == (3, 5)
    assert (prepared.encoder_prompt, prepared.prompt, prepared.request_id) == ("the cat", None, "r1")


def test_ids_that_are_no_tokens(tmp_path: Path) -> None:
    """Of a padded embedding, with a tokenizer whose decode raises for them."""
    tokenizer = marian()
    tokenizer.save_pretrained(tmp_path)
    size = len(tokenizer)
    MarianConfig(vocab_size=size + 8, decoder_start_token_id=1, pad_token_id=1).save_pretrained(tmp_path)
    builder = RequestBuilder.load(tmp_path, "padded", LIMITS)
    ids = tokenizer("the cat")["input_ids"]
    assert builder.detokenize(ids) == tokenizer.decode(ids)
    with pytest.raises(InvalidRequest, match=f"id {size + 3} at 1 is no token of the tokenizer") as caught:
        builder.detokenize([ids[0], size + 3])
    assert caught.value.field == "token_ids"
    prepared = builder.prepare("the cat", GREEDY)
    answer = builder.output_processor(prepared)
    answer.push(Delta(prepared.sequences[0].request_id, [size + 3, *ids, size + 7], finish_reason="length"))
    [sample] = answer.output().outputs
    assert sample.token_ids == [size + 3, *ids, size + 7]
    assert sample.text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("split", ["paragraph", None, "", 3, ["line"]])
def test_a_split_that_is_none_is_refused(request_builder: RequestBuilder, split: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be one of none, line, sentence, got") as caught:
        request_builder.segment("One. Two.", split)
    assert caught.value.field == "split"


def test_a_decoder_only_model_is_given_one_prompt(checkpoint: Callable[..., Path]) -> None:
    request_builder = RequestBuilder.load(checkpoint("gpt2"), "gpt2", LIMITS)
    assert request_builder.max_prompt_tokens == 9  # and one to be generated
    ids = request_builder.tokenize("ba be bi")
    for prompt in ("ba be bi", {"prompt": "ba be bi"}, {"prompt_token_ids": ids}):
        prepared = request_builder.prepare(prompt, GREEDY)
        [sample] = prepared.sequences
        assert sample.encoder.token_ids == ()
        assert list(sample.prefix_ids) == prepared.prompt_token_ids == prepared.context_ids == ids
        assert (prepared.encoder_prompt, prepared.encoder_prompt_token_ids) == (None, [])
        assert prepared.prompt == (None if "prompt_token_ids" in prompt else "ba be bi")
    with pytest.raises(InvalidRequest, match="'gpt2' is decoder-only: give a single prompt") as caught:
        request_builder.prepare({"encoder_prompt": "ba", "decoder_prompt": "be"}, GREEDY)
    assert caught.value.field == "encoder_prompt"
    with pytest.raises(InvalidRequest, match="has 10 tokens, the limit is 9") as caught:
        request_builder.prepare({"prompt_token_ids": [5] * 10}, GREEDY)
    assert caught.value.field == "prompt_token_ids"
    with pytest.raises(InvalidRequest, match="after the 8 the decoder starts from") as caught:
        request_builder.prepare({"prompt_token_ids": [5] * 8}, GREEDY)
    assert caught.value.field == "max_tokens"


def test_targets_are_tokenized_as_labels(request_builder: RequestBuilder) -> None:
    ids = request_builder.tokenize("the cat")
    prepared = request_builder.prepare_score(
        "the cat", ["the cat", {"prompt_token_ids": [7]}], priority=3, timeout_s=5
    )
    first, second = prepared.sequences
    assert list(first.target_ids) == ids
    assert ids[-1] == EOS
    assert second.target_ids == (7,)
    assert first.encoder == second.encoder
    assert (first.prefix_ids, first.generated_ids, first.priority, first.timeout_s) == ((PAD,), (), 3, 5)
    assert first.decoding.max_tokens == len(ids)
    assert first.request_id != second.request_id


def test_a_decoder_only_models_target_goes_on_from_its_prompt(checkpoint: Callable[..., Path]) -> None:
    request_builder = RequestBuilder.load(checkpoint("gpt2"), "gpt2", LIMITS)
    prepared = request_builder.prepare_score("ba be", ["bi bo"])
    [target] = prepared.sequences
    assert list(target.prefix_ids) == prepared.prompt_token_ids == request_builder.tokenize("ba be")
    assert list(target.target_ids) == request_builder.tokenize("bi bo")[:-1], "no special tokens"
    assert target.encoder.token_ids == ()


@pytest.mark.parametrize(
    ("targets", "field", "message"),
    [
        ([], "targets", "1 to 256 targets, got 0"),
        (["a"] * 257, "targets", "1 to 256 targets, got 257"),
        (["a", ""], "targets.1", "must not be empty"),
        (["a", 3], "targets.1", "must be a str"),
        (["\ud83d"], "targets.0", "lone surrogate"),
        (["a" * 10_000], "targets.0", "has 10000 characters"),
        ([{"prompt_token_ids": []}], "targets.0.prompt_token_ids", "has no tokens"),
        ([{"prompt_token_ids": [VOCAB]}], "targets.0.prompt_token_ids", "is not in the vocabulary"),
        ([{"prompt_token_ids": [5] * 9}], "targets.0.prompt_token_ids", None),
        ([{"prompt_token_ids": [5] * 10}], "targets.0.prompt_token_ids",
         "has 10 tokens, after the 1 the decoder starts from the limit is 9"),
    ],
)  # fmt: skip
def test_bad_targets_are_refused_by_name(
    request_builder: RequestBuilder, targets: list[Any], field: str, message: str | None
) -> None:
    if message is None:
        request_builder.prepare_score("the cat", targets)
        return
    with pytest.raises(InvalidRequest, match=message) as caught:
        request_builder.prepare_score("the cat", targets)
    assert caught.value.field == field


def test_ids_are_of_the_sides_own_vocabulary(checkpoint: Callable[..., Path]) -> None:
    """The encoder's has 128 words, the decoder's 117."""
    request_builder = RequestBuilder.load(checkpoint("marian-two-vocabularies"), "marian", LIMITS)
    prompt: Prompt = {"encoder_prompt": {"prompt_token_ids": [127]}, "decoder_prompt": None}
    request_builder.prepare(prompt, GREEDY)
    prompt["decoder_prompt"] = {"prompt_token_ids": [117]}
    with pytest.raises(InvalidRequest, match="id 117 at 0 is not in the vocabulary, 0 to 116"):
        request_builder.prepare(prompt, GREEDY)


def test_the_decoders_start_may_be_in_either_config(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "bert2bert")
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "decoder_start_token_id"}))
    with pytest.raises(ModelLoadError) as caught:
        ModelInfo.read(folder, "model")
    assert caught.value.field == "decoder_start_token_id"
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 7}))
    assert ModelInfo.read(folder, "model").decoder_start_id == 7


def test_every_kind_of_prompt_means_the_same(request_builder: RequestBuilder) -> None:
    ids = request_builder.tokenize("the cat")
    kinds: list[Prompt] = [
        "the cat",
        {"prompt": "the cat"},
        {"prompt_token_ids": ids},
        {"prompt_token_ids": ids, "prompt": "shown only"},
        {"encoder_prompt": "the cat", "decoder_prompt": None},
        {"encoder_prompt": {"prompt_token_ids": ids}, "decoder_prompt": ""},
    ]
    encoders = {request_builder.prepare(kind, GREEDY).sequences[0].encoder for kind in kinds}
    assert len(encoders) == 1
    assert [request_builder.prepare(kind, GREEDY).encoder_prompt for kind in kinds] == [
        "the cat", "the cat", None, "shown only", "the cat", None,
    ]  # fmt: skip


def test_a_decoder_prompt_has_no_special_tokens_and_follows_the_start_token(
    request_builder: RequestBuilder,
) -> None:
    text = request_builder.prepare({"encoder_prompt": "a", "decoder_prompt": "le"}, GREEDY)
    ids = text.context_ids
    assert EOS not in ids
    assert text.prompt_token_ids == [PAD, *ids]
    assert text.prompt == "le"
    for given_ids in (ids, [PAD, *ids]):
        prompt: Prompt = {"encoder_prompt": "a", "decoder_prompt": {"prompt_token_ids": given_ids}}
        assert request_builder.prepare(prompt, GREEDY).prompt_token_ids == [PAD, *ids]


def test_samples_share_their_encoder_input_and_differ_in_id_and_seed(request_builder: RequestBuilder) -> None:
    samples = request_builder.prepare("the cat", SamplingParams(n=4, seed=7, max_tokens=4)).sequences
    assert len({sample.request_id for sample in samples}) == 4
    assert len({id(sample.encoder) for sample in samples}) == 1
    assert [sample.decoding.seed for sample in samples] == [sample_seed(7, index) for index in range(4)]
    assert samples[0].decoding.seed == 7


def test_two_requests_of_one_id_do_not_meet_in_an_engine(request_builder: RequestBuilder) -> None:
    one, two = (
        request_builder.prepare("a", GREEDY, request_id="same").sequences[0].request_id for _ in range(2)
    )
    assert one != two


@given(seed=st.integers(0, 2**63 - 1), index=st.integers(0, 63))
def test_sample_seeds_are_63_bit(seed: int, index: int) -> None:
    assert 0 <= sample_seed(seed, index) < 2**63


def test_sample_seeds_never_change() -> None:
    """Clients keep seeds in order to get the same samples again."""
    assert [sample_seed(7, index) for index in range(3)] == [7, 3513160307412860409, 5468086509792412601]


def test_without_a_seed_each_request_has_a_fresh_one(request_builder: RequestBuilder) -> None:
    assert len({request_builder.prepare("a", GREEDY).sequences[0].decoding.seed for _ in range(8)}) == 8


def test_encoder_keys_depend_on_the_model_and_the_ids(
    tmp_path: Path, request_builder: RequestBuilder
) -> None:
    def key(request_builder: RequestBuilder, text: str) -> str:
        return request_builder.prepare(text, GREEDY).sequences[0].encoder.key

    other = RequestBuilder.load(write_model(tmp_path, d_ff=64), "tiny")
    assert key(request_builder, "the cat") == key(request_builder, "the cat")
    assert len({key(request_builder, "the cat"), key(request_builder, "the mat"), key(other, "the cat")}) == 3


# -- media


@pytest.fixture
def hearing(request_builder: RequestBuilder, folder: Path) -> RequestBuilder:
    """For a model that takes audio, at three positions each, and text after it."""
    info = replace(request_builder.info, front=HEARING.front)
    limits = replace(LIMITS, media_items=2, media_bytes=9)
    return RequestBuilder(info, AutoTokenizer.from_pretrained(folder), limits, processor=HEARING)


def test_media_go_with_the_encoder_input(hearing: RequestBuilder) -> None:
    prompts: list[Prompt] = [
        {"prompt": "", "multi_modal_data": {"audio": b"RIFF"}},
        {"prompt": "", "multi_modal_data": {"audio": b"RIFX"}},
        {"prompt": "", "multi_modal_data": {"audio": [b"RI", b"FF"]}},
        {"prompt": "the cat", "multi_modal_data": {"audio": b"RIFF"}},
        {"prompt": "the cat"},
    ]
    inputs = [hearing.prepare(prompt, GREEDY).sequences[0].encoder for prompt in prompts]
    assert [len(one.media) for one in inputs] == [1, 1, 2, 1, 0]
    assert inputs[0].media == (Media("audio", b"RIFF"),)
    here = [HEARING.front.placeholder_id] * 3
    assert [list(one.token_ids) for one in inputs[:3]] == [here, here, here * 2]
    assert [*here, *inputs[4].token_ids] == list(inputs[3].token_ids)
    # Nobody is shown the placeholders.
    assert hearing.prepare(prompts[3], GREEDY).encoder_prompt_token_ids == list(inputs[4].token_ids)
    assert len({one.key for one in inputs}) == len(inputs)
    again = hearing.prepare({"encoder_prompt": prompts[0], "decoder_prompt": "le"}, GREEDY)  # type: ignore[typeddict-item]
    assert again.sequences[0].encoder == inputs[0]


@pytest.mark.parametrize(
    ("data", "error", "field", "message"),
    [
        ({"image": b"PNG"}, InvalidRequest, "image", "'tiny' takes text and audio"),
        ({"audio": [b"1"] * 3}, InvalidRequest, "audio", "at most 2 items, got 3"),
        ({"audio": [b"1", b""]}, InvalidRequest, "audio.1", "has no bytes"),
        ({"audio": [b"12345", b"12345"]}, RequestTooLarge, "audio", "has 10 bytes, the limit is 9"),
    ],
)
def test_bad_media_are_refused_by_name(
    hearing: RequestBuilder, data: MultiModalData, error: type[TandemError], field: str, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        hearing.prepare({"prompt": "", "multi_modal_data": data}, GREEDY)
    assert type(caught.value) is error
    assert caught.value.field == f"multi_modal_data.{field}"


def test_a_model_of_text_refuses_media(request_builder: RequestBuilder) -> None:
    prompt: TextPrompt = {"prompt": "the cat", "multi_modal_data": {"audio": b"RIFF"}}
    with pytest.raises(InvalidRequest, match="'tiny' takes text only") as caught:
        request_builder.prepare(prompt, GREEDY)
    assert caught.value.field == "multi_modal_data.audio"
    with pytest.raises(InvalidRequest, match="only the encoder reads media") as caught:
        request_builder.prepare({"encoder_prompt": "the cat", "decoder_prompt": prompt}, GREEDY)
    assert caught.value.field == "decoder_prompt.multi_modal_data"


# -- defaults


def test_without_any_defaults_decoding_is_greedy(tmp_path: Path) -> None:
    assert decoding(tmp_path, None, seed=3) == Decoding(
        max_tokens=256,
        min_tokens=0,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=3,
        stop_ids=frozenset({EOS}),
        eos_ids=frozenset({EOS}),
        logprobs=None,
    )


def test_the_request_comes_before_the_models_own_defaults(tmp_path: Path) -> None:
    own = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.1,
           "repetition_penalty": 1.2, "max_new_tokens": 32, "min_new_tokens": 3,
           "eos_token_id": [1, 5]}  # fmt: skip
    got = decoding(tmp_path, own)
    assert (got.temperature, got.top_k, got.top_p, got.min_p) == (0.7, 50, 0.9, 0.1)
    assert (got.repetition_penalty, got.max_tokens, got.min_tokens) == (1.2, 32, 3)
    assert got.stop_ids == got.eos_ids == {1, 5}
    got = decoding(
        tmp_path, own, temperature=0, top_k=-1, top_p=1.0, min_p=0.0, repetition_penalty=1.0,
        max_tokens=7, min_tokens=0, ignore_eos=True, stop_token_ids=[9], logprobs=2,
    )  # fmt: skip
    assert (got.temperature, got.top_k, got.top_p, got.min_p) == (0, 0, 1, 0)
    assert (got.repetition_penalty, got.max_tokens, got.min_tokens) == (1, 7, 0)
    assert (got.stop_ids, got.eos_ids, got.logprobs) == ({9}, {1, 5}, 2)


def test_the_models_processors_hold_unless_the_request_has_its_own(tmp_path: Path) -> None:
    """As bart-large-cnn, opus-mt and whisper set them."""
    own = {"no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 4, "typical_p": 0.5,
           "bad_words_ids": [[PAD], [5, 6]], "forced_bos_token_id": 7, "forced_eos_token_id": EOS,
           "suppress_tokens": [8, 9], "begin_suppress_tokens": [10]}  # fmt: skip
    got = decoding(tmp_path, own, seed=0)
    assert (got.no_repeat_ngram_size, got.encoder_no_repeat_ngram_size, got.typical_p) == (3, 4, 0.5)
    assert (got.bad_words, got.forced_bos_id, got.forced_eos_ids) == (((PAD,), (5, 6)), 7, (EOS,))
    assert (got.suppress_ids, got.begin_suppress_ids) == ((8, 9), (10,))
    got = decoding(
        tmp_path, own, no_repeat_ngram_size=0, encoder_no_repeat_ngram_size=2, typical_p=1.0,
        bad_words_ids=[], forced_bos_token_id=11, forced_eos_token_id=12, suppress_tokens=[],
        begin_suppress_tokens=[13, 14], presence_penalty=0.5, frequency_penalty=-1, logit_bias={"15": 2},
    )  # fmt: skip
    assert (got.no_repeat_ngram_size, got.encoder_no_repeat_ngram_size, got.typical_p) == (0, 2, 1)
    assert (got.bad_words, got.forced_bos_id, got.forced_eos_ids) == ((), 11, (12,))
    assert (got.suppress_ids, got.begin_suppress_ids) == ((), (13, 14))
    assert (got.presence_penalty, got.frequency_penalty, got.logit_bias) == (0.5, -1, ((15, 2),))


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> RequestBuilder:
    """Of a model whose own way is beam search."""
    own = {"num_beams": 5, "length_penalty": 0.6, "early_stopping": True, "max_new_tokens": 16}
    return RequestBuilder.load(write_model(tmp_path_factory.mktemp("searching"), generation=own), "tiny")


def beams(folder: Path, generation: dict[str, Any] | None, **params: Any) -> BeamSearch | None:
    write_model(folder, generation=generation)
    prepared = RequestBuilder.load(folder, "tiny").prepare("the cat", BeamSearchParams(**params))
    [request] = prepared.sequences
    assert (request.decoding.temperature, request.decoding.logprobs) == (0, None)
    return request.decoding.beams


def test_beam_search_has_the_models_own_defaults(tmp_path: Path) -> None:
    own = {"num_beams": 6, "length_penalty": 2.0, "early_stopping": True, "renormalize_logits": True}
    assert beams(tmp_path, None) == BeamSearch(4, 1, 1.0, early_stopping=False)
    assert beams(tmp_path, own) == BeamSearch(6, 1, 2.0, early_stopping=True, renormalize=True)
    asked = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": -1.0, "early_stopping": "never"}
    assert beams(tmp_path, own, **asked) == BeamSearch(3, 2, -1.0, early_stopping="never", renormalize=True)
    assert beams(tmp_path, own, num_beams=1) is None


def test_a_tasks_defaults_come_before_the_models_and_behind_the_servers(tmp_path: Path) -> None:
    tasks = {
        "summarization": {"prefix": "the ", "max_length": 9, "num_beams": 3, "no_repeat_ngram_size": 2},
        "translation_en_to_fr": {"min_length": 3},
    }
    generation = {"max_new_tokens": 30, "min_new_tokens": 2, "no_repeat_ngram_size": 4}
    write_model(tmp_path, generation=generation, task_specific_params=tasks)
    request_builder = RequestBuilder.load(tmp_path, "tiny", overrides={"no_repeat_ngram_size": 5})
    prepared = request_builder.prepare("cat", task="summarization")
    [sample] = prepared.sequences
    assert (prepared.encoder_prompt, prepared.encoder_prompt_token_ids) == (
        "cat",
        request_builder.tokenize("the cat"),
    )
    how = sample.decoding
    assert how.beams is not None
    assert (how.beams.num_beams, how.max_tokens, how.min_tokens, how.no_repeat_ngram_size) == (3, 8, 2, 5)
    for asked, beams in (({"max_tokens": 20}, how.beams), ({"max_tokens": 20, "num_beams": 1}, None)):
        [sample] = request_builder.prepare("cat", SamplingParams(**asked), task="summarization").sequences
        assert (sample.decoding.beams, sample.decoding.max_tokens) == (beams, 20)
    [sample] = request_builder.prepare({"prompt_token_ids": [7, EOS]}, task="summarization").sequences
    assert (sample.encoder.token_ids, sample.decoding.max_tokens) == ((7, EOS), 8)
    [sample] = request_builder.prepare("cat", source_language="en", target_language="fr").sequences
    assert (sample.decoding.max_tokens, sample.decoding.min_tokens, sample.decoding.beams) == (30, 2, None)
    with pytest.raises(InvalidRequest, match="it has summarization, translation_en_to_fr") as caught:
        request_builder.prepare("cat", task="x" * 1000)
    assert caught.value.field == "task"
    assert len(str(caught.value)) < 200


def test_the_servers_own_defaults_come_between_request_and_model(tmp_path: Path) -> None:
    write_model(tmp_path, generation={"num_beams": 6, "no_repeat_ngram_size": 3, "max_new_tokens": 9})
    overrides = {"num_beams": 1, "no_repeat_ngram_size": 2, "do_sample": True, "temperature": 0.5}
    request_builder = RequestBuilder.load(tmp_path, "tiny", overrides=overrides)
    got = request_builder.prepare("a").sequences[0].decoding
    assert (got.beams, got.no_repeat_ngram_size, got.temperature, got.max_tokens) == (None, 2, 0.5, 9)
    asked = SamplingParams(temperature=0, no_repeat_ngram_size=0)
    got = request_builder.prepare("a", asked).sequences[0].decoding
    assert (got.no_repeat_ngram_size, got.temperature) == (0, 0)
    with pytest.raises(InvalidRequest, match=r"override_generation_config\.beams: unknown"):
        RequestBuilder.load(tmp_path, "tiny", overrides={"beams": 2})


def test_without_parameters_the_models_own_way_of_decoding_holds(tmp_path: Path) -> None:
    def default(generation: dict[str, Any] | None) -> Decoding:
        write_model(tmp_path, generation=generation)
        return RequestBuilder.load(tmp_path, "tiny").prepare("the cat").sequences[0].decoding

    assert default(None).beams is None
    assert default({"num_beams": 5, "length_penalty": 0.6}).beams == BeamSearch(
        5, 1, 0.6, early_stopping=False
    )
    sampled = default({"num_beams": 5, "do_sample": True})
    assert (sampled.beams, sampled.temperature) == (BeamSearch(5, 1, 1.0, early_stopping=False), 1)


def test_beams_are_drawn_where_they_have_a_temperature(folder: Path) -> None:
    request_builder = RequestBuilder.load(folder, "tiny", overrides={"top_p": 0.9})
    [request] = request_builder.prepare(
        "a", BeamSearchParams(num_beams=3, temperature=0.5, top_k=7, seed=9)
    ).sequences
    how = request.decoding
    assert how.beams is not None
    assert (how.temperature, how.top_k, how.top_p, how.seed) == (0.5, 7, 0.9, 9)
    [request] = request_builder.prepare("a", BeamSearchParams(num_beams=3)).sequences
    assert request.decoding.temperature == 0


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 33}, "num_beams"),
        ({"num_beams": 3, "num_return_sequences": 4}, "num_return_sequences"),
        ({"num_return_sequences": 5}, "num_return_sequences"),
        ({"num_beams": 9}, "num_beams"),
        ({"early_stopping": "maybe"}, "early_stopping"),
        ({"length_penalty": math.nan}, "length_penalty"),
        ({"temperature": -0.5}, "temperature"),
        ({"n": 2}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"num_beam_groups": 2}, "num_beam_groups"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"beams": 3}, "beams"),
    ],
)
def test_bad_beam_search_is_refused_by_name(folder: Path, params: Any, field: str) -> None:
    request_builder = RequestBuilder.load(folder, "tiny", Limits(num_beams=8))
    with pytest.raises(InvalidRequest) as caught:
        request_builder.prepare("a", BeamSearchParams(**params))
    assert (caught.value.field or "").split(".")[0] == field


def test_bad_words_are_tokenized_and_join_the_models_own(tmp_path: Path) -> None:
    cat = RequestBuilder.load(write_model(tmp_path), "tiny").tokenize("cat")[:-1]
    got = decoding(tmp_path, {"bad_words_ids": [[PAD]]}, bad_words=["cat", "le"])
    assert got.bad_words[:2] == ((PAD,), tuple(cat))
    # EOS alone cannot be forbidden.
    assert decoding(tmp_path, None, bad_words_ids=[[EOS], [EOS, 4]]).bad_words == ((EOS, 4),)


def test_a_temperature_without_do_sample_is_not_used(tmp_path: Path) -> None:
    assert decoding(tmp_path, {"temperature": 0.7}).temperature == 0
    assert decoding(tmp_path, {"do_sample": True}).temperature == 1


def test_lengths_that_count_the_start_token_are_reduced_by_it(tmp_path: Path) -> None:
    got = decoding(tmp_path, {"max_length": 20, "min_length": 5})
    assert (got.max_tokens, got.min_tokens) == (19, 4)


def test_defaults_are_clamped_where_a_request_is_refused(request_builder: RequestBuilder) -> None:
    prompt: Prompt = {"encoder_prompt": "a", "decoder_prompt": {"prompt_token_ids": [5, 6, 7]}}
    assert request_builder.prepare(prompt, SamplingParams()).sequences[0].decoding.max_tokens == 6
    with pytest.raises(InvalidRequest, match=r"max_tokens: 7 tokens after the 4 .* limit of 10"):
        request_builder.prepare(prompt, SamplingParams(max_tokens=7))


def test_the_models_stop_texts_hold_unless_the_request_has_its_own(tmp_path: Path) -> None:
    write_model(tmp_path, generation={"stop_strings": "le"})
    request_builder = RequestBuilder.load(tmp_path, "tiny")

    def stop(**params: Any) -> list[str]:
        return list(request_builder.prepare("a", SamplingParams(**params)).stop)

    assert (stop(), stop(stop=[]), stop(stop=["chat"])) == (["le"], ["le"], ["chat"])


# What asks for nothing, as clients write it out.
WRITTEN_OUT: dict[str, Any] = {
    "n": 1, "num_return_sequences": 1, "temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
    "typical_p": 1.0, "seed": 7, "stop": [], "logprobs": None, "prompt_logprobs": None, "bad_words": [],
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": False, "skip_special_tokens": True,
    "stop_token_ids": [], "logit_bias": {}, "max_tokens": 16, "min_tokens": 0, "repetition_penalty": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", [*WRITTEN_OUT, "all of them"])
def test_what_asks_for_nothing_leaves_the_models_beams(searching: RequestBuilder, name: str) -> None:
    given = {name: WRITTEN_OUT[name]} if name in WRITTEN_OUT else WRITTEN_OUT
    own = BeamSearch(5, 1, 0.6, early_stopping=True)
    [request] = searching.prepare("the cat", params_of(given)).sequences
    assert (request.decoding.beams, request.decoding.temperature) == (own, 0)
    if "num_return_sequences" not in given:
        [request] = searching.prepare("the cat", SamplingParams(**given)).sequences
        assert request.decoding.beams == own


def test_no_stop_text_may_be_written_out_in_every_way(
    searching: RequestBuilder, request_builder: RequestBuilder
) -> None:
    for stop in (None, [], ""):
        for params in (SamplingParams(stop=stop), BeamSearchParams(stop=stop), params_of({"stop": stop})):
            for builder in (searching, request_builder):
                assert builder.prepare("the cat", params).stop == ()


def test_what_asks_for_nothing_makes_no_search_of_a_greedy_answer(folder: Path) -> None:
    request_builder = RequestBuilder.load(folder, "tiny")
    for more in ({}, {"num_beams": 1}, {"length_penalty": 1.0, "early_stopping": False}):
        [request] = request_builder.prepare("the cat", params_of(WRITTEN_OUT | more)).sequences
        assert request.decoding.beams is None
    [request] = request_builder.prepare("the cat", params_of({"length_penalty": 0.5})).sequences
    assert request.decoding.beams == BeamSearch(4, 1, 0.5, early_stopping=False)


@given(
    chosen=st.sets(st.sampled_from([name for name in WRITTEN_OUT if name != "temperature"])),
    temperature=st.sampled_from([None, 0.0, 0.7]),
    num_beams=st.sampled_from([None, 1]),
)
def test_only_a_temperature_or_one_beam_leaves_the_models_beams(
    searching: RequestBuilder, chosen: set[str], temperature: float | None, num_beams: int | None
) -> None:
    given = {name: WRITTEN_OUT[name] for name in chosen} | {
        "temperature": temperature,
        "num_beams": num_beams,
    }
    for said in (given, {name: value for name, value in given.items() if value is not None}):
        [request] = searching.prepare("a", params_of(said)).sequences
        assert (request.decoding.beams is None) == bool(temperature or num_beams == 1)
        assert request.decoding.temperature == (temperature or 0)


def test_what_a_request_says_of_beams_holds_for_the_models(searching: RequestBuilder) -> None:
    for params in (
        params_of({"length_penalty": 1.0, "early_stopping": False}),
        BeamSearchParams(length_penalty=1.0, early_stopping=False),
    ):
        [request] = searching.prepare("a", params).sequences
        assert request.decoding.beams == BeamSearch(5, 1, 1.0, early_stopping=False)
    [request] = searching.prepare("a", params_of({"top_p": 0.5, "top_k": 3, "min_tokens": 2})).sequences
    assert request.decoding.beams == BeamSearch(5, 1, 0.6, early_stopping=True)
    assert (request.decoding.min_tokens, request.decoding.max_tokens) == (2, 16)


@pytest.mark.parametrize("params", [{"n": 2}, {"stop": ["a"]}, {"logprobs": 0}, {"prompt_logprobs": 1}])
def test_what_does_not_go_with_the_models_beams_is_refused_by_name(
    searching: RequestBuilder, params: dict[str, Any]
) -> None:
    [name] = params
    with pytest.raises(
        InvalidRequest, match=r"own way is beam search, which num_beams=1 or .* leaves"
    ) as caught:
        searching.prepare("a", SamplingParams(**params))
    assert caught.value.field == name
    for way in ({"num_beams": 1}, {"temperature": 0.7}):
        [request, *_] = searching.prepare("a", SamplingParams(**params, **way)).sequences
        assert request.decoding.beams is None
    with pytest.raises(InvalidRequest, match="does not go with beam search") as caught:
        searching.prepare("a", params_of({**params, "num_beams": 3}))
    assert caught.value.field == name


def test_more_beams_than_one_are_not_sampling_params() -> None:
    for wrong in (2, 0, True):
        with pytest.raises(InvalidRequest) as caught:
            SamplingParams(num_beams=wrong)
        assert caught.value.field == "num_beams"
    with pytest.raises(InvalidRequest, match="must not exceed num_beams, got 2 > 1"):
        params_of({"num_beams": 1, "num_return_sequences": 2})


def test_a_model_that_draws_its_beams_is_told_not_to_by_a_temperature_of_0(tmp_path: Path) -> None:
    write_model(tmp_path, generation={"num_beams": 3, "do_sample": True, "temperature": 0.5})
    request_builder = RequestBuilder.load(tmp_path, "tiny")
    for params, drawn in ((SamplingParams(temperature=0), 0.0), (SamplingParams(top_p=0.9), 0.5)):
        [request] = request_builder.prepare("a", params).sequences
        assert request.decoding.beams is not None
        assert request.decoding.temperature == drawn


# -- what is refused


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("", "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt_token_ids": []}, "prompt_token_ids"),
        ({"prompt_token_ids": [VOCAB]}, "prompt_token_ids"),
        ({"prompt_token_ids": [-1]}, "prompt_token_ids"),
        ({"prompt_token_ids": [True]}, "prompt.prompt_token_ids"),
        ({"prompt_token_ids": [5] * 13}, "prompt_token_ids"),
        ({"prompt_token_ids": [5], "prompt": 3}, "prompt"),
        ({"prompt_token_ids": [5], "prompt": "\udc80"}, "prompt"),
        ("half a \ud83d character", "prompt"),
        ("a b c d e f g a b c d e f g", "prompt"),
        (None, "prompt"),
        ({"encoder_prompt": "", "decoder_prompt": None}, "encoder_prompt"),
        ({"encoder_prompt": {"prompt_token_ids": []}, "decoder_prompt": None},
         "encoder_prompt.prompt_token_ids"),
        ({"encoder_prompt": "a", "decoder_prompt": {"prompt_token_ids": []}},
         "decoder_prompt.prompt_token_ids"),
        ({"encoder_prompt": "a", "decoder_prompt": {"prompt_token_ids": [VOCAB]}},
         "decoder_prompt.prompt_token_ids"),
        ({"encoder_prompt": "a", "decoder_prompt": {"prompt_token_ids": [5] * 10}},
         "decoder_prompt.prompt_token_ids"),
        ({"encoder_prompt": "a", "decoder_prompt": "a b c d e f g a b c d"}, "decoder_prompt"),
        ({"encoder_prompt": "a", "decoder_prompt": "\udc80"}, "decoder_prompt"),
    ],
)  # fmt: skip
def test_a_bad_prompt_is_refused_by_name(request_builder: RequestBuilder, prompt: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_builder.prepare(prompt, GREEDY)
    assert caught.value.field == field


def test_over_long_text_is_refused_with_both_numbers(request_builder: RequestBuilder) -> None:
    with pytest.raises(InvalidRequest, match="has 27 tokens, the limit is 12"):
        request_builder.prepare("a b c d e f g a b c d e f g", GREEDY)


def test_absurdly_long_text_is_refused_unread(
    request_builder: RequestBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_builder._tokenizer, "_backends", None)
    monkeypatch.setattr(request_builder._tokenizer, "_tokenizer", None)  # touching either would fail
    with pytest.raises(InvalidRequest, match="100000 characters"):
        request_builder.prepare("x" * 100_000, GREEDY)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "new\nline"}, "request_id"),
        ({"request_id": "é"}, "request_id"),
        ({"priority": 11}, "priority"),
        ({"priority": -11}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": 61}, "timeout_s"),
        ({"timeout_s": math.nan}, "timeout_s"),
        ({"timeout_s": math.inf}, "timeout_s"),
    ],
)
def test_a_bad_option_is_refused_by_name(request_builder: RequestBuilder, options: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_builder.prepare("a", GREEDY, **options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"stop_token_ids": [VOCAB]}, "stop_token_ids"),
        ({"min_tokens": 300}, "min_tokens"),
        ({"n": 3}, "n"),
        ({"stop": ["a", "b"]}, "stop"),
        ({"logprobs": 5}, "logprobs"),
        ({"max_tokens": 10}, "max_tokens"),
        ({"bad_words": ["cat", "mat", "sat"]}, "bad_words"),
        ({"bad_words": ["a b c d e f g"]}, "bad_words"),
        ({"bad_words": ["\udc80"]}, "bad_words.0"),
        ({"bad_words_ids": [[5, VOCAB]]}, "bad_words_ids"),
        ({"logit_bias": {str(VOCAB): 1}}, "logit_bias"),
        ({"logit_bias": {5: 1, 6: 1}}, "logit_bias"),
        ({"forced_bos_token_id": VOCAB}, "forced_bos_token_id"),
        ({"forced_eos_token_id": VOCAB}, "forced_eos_token_id"),
        ({"suppress_tokens": [VOCAB]}, "suppress_tokens"),
        ({"begin_suppress_tokens": [2, 3, 4]}, "begin_suppress_tokens"),
    ],
)
def test_parameters_are_checked_against_the_model_and_the_server(
    folder: Path, params: Any, field: str
) -> None:
    limits = Limits(
        n=2, stop_strings=1, logprobs=4, decoder_tokens=10, bad_words=2, bad_word_tokens=4, logit_bias=1,
        suppress_tokens=2,
    )  # fmt: skip
    with pytest.raises(InvalidRequest) as caught:
        RequestBuilder.load(folder, "tiny", limits).prepare("a", SamplingParams(**params))
    assert caught.value.field == field


def test_an_answer_too_large_to_send_is_refused_before_it_is_generated(folder: Path) -> None:
    request_builder = RequestBuilder.load(folder, "tiny", Limits(answer_values=60, decoder_tokens=20))
    assert request_builder.prepare("a", SamplingParams(n=3, max_tokens=5, logprobs=3))
    assert request_builder.prepare("a", SamplingParams(n=4, max_tokens=15))
    for large in (
        SamplingParams(n=3, max_tokens=5, logprobs=4),
        SamplingParams(n=5, max_tokens=15),
        BeamSearchParams(num_beams=5, num_return_sequences=5, max_tokens=15),
    ):
        with pytest.raises(InvalidRequest, match="the limit is 60") as caught:
            request_builder.prepare("a", large)
        assert caught.value.field == "max_tokens"


def test_another_model_is_not_found(request_builder: RequestBuilder) -> None:
    request_builder.prepare("a", GREEDY, model="tiny")
    with pytest.raises(ModelNotFound) as caught:
        request_builder.prepare("a", GREEDY, model="huge")
    assert caught.value.field == "model"


def test_an_infinite_limit_means_no_deadline(folder: Path) -> None:
    request_builder = RequestBuilder.load(folder, "tiny", Limits(timeout_s=math.inf))
    assert request_builder.prepare("a", GREEDY).sequences[0].timeout_s is None


def test_a_model_of_limited_positions_has_the_smaller_limit(
    folder: Path, request_builder: RequestBuilder
) -> None:
    """T5's positions are relative, and its `n_positions` is no limit; BART's are learned."""
    assert (request_builder.info.encoder_positions, request_builder.info.decoder_positions) == (None, None)
    info = replace(request_builder.info, encoder_positions=8, decoder_positions=6)
    limited = RequestBuilder(info, AutoTokenizer.from_pretrained(folder), LIMITS)
    assert (limited.max_encoder_tokens, limited.max_decoder_tokens) == (8, 6)


def test_a_folder_without_a_tokenizer_fails_the_load(tmp_path: Path) -> None:
    write_model(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelLoadError, match="tokenizer"):
        RequestBuilder.load(tmp_path, "tiny")


@given(prompt=st.recursive(
    st.none() | st.integers() | st.text(max_size=20) | st.booleans() | st.floats(),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["prompt", "prompt_token_ids", "encoder_prompt", "decoder_prompt", "x"]), inner
    ),
    max_leaves=8,
))  # fmt: skip
def test_any_prompt_is_prepared_or_refused(request_builder: RequestBuilder, prompt: Any) -> None:
    try:
        prepared = request_builder.prepare(prompt, GREEDY)
    except InvalidRequest as error:
        named = error.field
    else:
        named = "nothing"
        [sample] = prepared.sequences
        assert 0 < len(sample.encoder.token_ids) <= LIMITS.encoder_tokens
        assert len(sample.prefix_ids) + sample.decoding.max_tokens <= LIMITS.decoder_tokens
    assert named is not None
