"""Words and their times, held to transformers' generate at batch 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_files import wav
from parity import ranks_in_threads
from real_whisper import real_whisper
from spoken import spoken
from timed_whisper import CODES, TimedTranscripts, close, found_words, make_timed
from transcripts import found
from whisper import CLEAR, EOS, RATE, SOT, TRANSCRIBE, sound

from tandem import LLM, InvalidRequest, TranscriptionParams
from tandem.inputs import Media
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import Alignment, Delta, EngineRequest

# Layers and heads of the decoder: some layers with none, and some with several.
HEADS = {
    "base": ((0, 1), (1, 0), (1, 3)),
    "large": ((1, 0), (1, 1)),
    "turbo": ((0, 0), (0, 2)),
    "english": ((0, 0), (0, 1), (1, 2), (1, 3)),
}
TOP_1 = {"top_k": 1}  # what is drawn is the likeliest, in both
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "chinese": {"language": "zh"},
    "conditioned": {"condition_on_prev_tokens": True, "language": "en"},
    "beams": {"num_beams": 3},
    "drawn": {"temperature": (0.4,), "language": "en"},
    "few tokens": {"max_tokens": 5, "language": "en"},
    "one word": {"max_tokens": 2, "language": "en"},
    "prompt": {"prompt": "5!.", "condition_on_prev_tokens": True, "prompt_condition_type": "all-segments"},
}
CASES = [("base", name) for name in ASKED] + [
    ("english", "plain"), ("english", "beams"), ("turbo", "plain"), ("turbo", "chinese"), ("large", "plain"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda geometry: make_timed(tmp_path_factory.mktemp(geometry), geometry, HEADS[geometry]))


@pytest.fixture(scope="module")
def transcripts(model: Callable[[str], Path]) -> Callable[[str], TimedTranscripts]:
    return cache(lambda geometry: TimedTranscripts(model(geometry)))


@pytest.fixture(scope="module")
def ready(model: Callable[[str], Path]) -> Iterator[Callable[[str], LLM]]:
    with ExitStack() as stack:
        options: Any = {"dtype": "float32", "override_generation_config": TOP_1, "check_invariants": True}
        yield cache(lambda geometry: stack.enter_context(LLM(str(model(geometry)), **options)))


def theirs(ours: dict[str, Any]) -> dict[str, Any]:
    names = {"max_tokens": "max_new_tokens"}
    options = {names.get(name, name): value for name, value in ours.items()}
    if isinstance(options.get("temperature"), tuple):
        options |= {"temperature": options["temperature"], **TOP_1}
    if options.get("language") == "zh":
        options["language"] = "<|zh|>"
    return options


@pytest.mark.parametrize(("geometry", "name"), CASES)
def test_as_transformers(
    ready: Callable[[str], LLM], transcripts: Callable[[str], TimedTranscripts], geometry: str, name: str
) -> None:
    ours, first = ASKED[name], 20 * CASES.index((geometry, name))
    samples = [sound(first + at, length) for at, length in enumerate((0.7, 1.0, 3.3, 2.5))]
    llm = ready(geometry)
    before = llm.stats().encoded_tokens
    answers = llm.transcribe([(one, RATE) for one in samples], timestamps="word", **ours)
    stats = llm.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
    windows = {(at, one.seek_s) for at, answer in enumerate(answers) for one in answer.segments}
    positions = 100 if geometry == "turbo" else 50
    assert stats.encoded_tokens - before >= positions * len(windows)
    assert (stats.encoded_tokens - before) % positions == 0
    compared = 0
    for one, answer in zip(samples, answers, strict=True):
        whole = transcripts(geometry)
        options = theirs(ours)
        if "prompt" in options:
            options["prompt"] = whole.tokenizer.encode(" 5!.", add_special_tokens=False)
            assert len(options["prompt"]) == 4
        expected, words = whole.timed(one, answer.language, **options)
        if expected.lead < CLEAR:
            continue
        assert found(answer) == expected.segments
        # Where a text has parts of characters, transformers may lose what follows.
        whole_text = ["\ufffd" not in segment.text for segment in answer.segments]
        ours_too, theirs_too = (list(compress(of, whole_text)) for of in (found_words(answer), words))
        compared += sum(map(len, theirs_too))
        assert close(ours_too, theirs_too, within_s=0.02)
        for segment, is_whole in zip(answer.segments, whole_text, strict=True):
            assert segment.words is not None
            assert not is_whole or "".join(word.word for word in segment.words) == segment.text
            assert all(0 <= word.probability <= 1 for word in segment.words)
    assert compared > 5


def test_in_pieces_preempted_and_with_others(
    model: Callable[[str], Path], ready: Callable[[str], LLM]
) -> None:
    """Readings whose rows come in several steps, start anew, and share steps with rows of any other kind."""
    recordings = [(sound(60 + at, 0.4 + 0.5 * at), RATE) for at in range(7)]
    asked: Any = {
        "timestamps": "word", "language": "en", "temperature": (0.0, 0.6), "logprob_threshold": -0.2,
        "condition_on_prev_tokens": True, "seed": 5,
    }  # fmt: skip
    alone = [ready("base").transcribe(one, **asked) for one in recordings]
    assert sum(len(words) for one in alone for words in found_words(one)) > 10
    with LLM(
        str(model("base")), dtype="float32", page_size=4, num_pages=40, max_num_seqs=6, max_batched_tokens=7,
        override_generation_config=TOP_1, check_invariants=True,
    ) as llm:  # fmt: skip
        beams = llm.transcribe(recordings, **(asked | {"num_beams": 2}))
        together = llm.transcribe(recordings, **asked)
        stats = llm.stats()
        assert stats.preemptions > 0
        assert (stats.running, stats.free_pages) == (0, stats.total_pages)
    for one, other, searched in zip(together, alone, beams, strict=True):
        assert found(one) == found(other)
        assert close(found_words(one), found_words(other), within_s=0.02)
        assert [len(words) > 0 for words in found_words(searched)]


def readings(llm: LLM, heads: Any) -> list[EngineRequest]:
    """Windows with tokens to be read, in both ways."""
    builder, found = llm._transcription_builder, []
    asked = builder.check(TranscriptionParams(timestamps="word", semantics="openai"))
    for number in range(6):
        media = Media("audio", wav(sound(number), RATE))
        transcriber = builder.begin(media, "audio", asked, 3)
        (first,) = transcriber.start()
        how = Alignment(
            heads, compared_from=3 * (number % 2), first=3, stop=8 + number, input_length=50 - 9 * number,
            cropped=number % 2 == 0, filter_width=7,
        )  # fmt: skip
        ids = [(7 * number + 3 * at) % EOS for at in range(7 + number)]
        windows = transcriber._windows
        found.append(windows.alignment(first.encoder, [SOT, CODES["en"], TRANSCRIBE], ids, how))
    return [replace(one, request_id=str(number)) for number, one in enumerate(found)]


def answered(engine: Engine, requests: list[EngineRequest]) -> dict[str, Delta]:
    ends = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        ends.update((delta.request_id, delta) for delta in engine.step() if delta.last)
    return ends


def test_on_two_ranks(model: Callable[[str], Path], ready: Callable[[str], LLM]) -> None:
    """Each has its own heads: of four, one has both and the other none, or each has some. Some readings end
    early, in the middle."""
    options: Any = {"dtype": "float32", "device": "cpu", "check_invariants": True, "max_num_seqs": 4}
    for heads in (((0, 0), (1, 1)), HEADS["base"]):
        requests = readings(ready("base"), heads)
        alone = answered(Engine(EngineConfig(str(model("base")), **options)), requests)
        options |= {"max_batched_tokens": 5, "overlap": True}
        config = EngineConfig(str(model("base")), **options, tensor_parallel_size=2)
        with ranks_in_threads(config) as (engine, _):
            for request in requests:
                engine.submit(replace(request, request_id=f"{request.request_id} cancelled"))
            engine.step()
            for request in requests:
                engine.cancel(f"{request.request_id} cancelled")
            together = answered(engine, requests)
        for request in requests:
            one, other = (ends[request.request_id] for ends in (alone, together))
            assert one.alignment == other.alignment
            assert one.alignment is not None
            assert (how := request.decoding.alignment) is not None
            assert len(one.alignment) == how.stop - how.first
            logprobs = [[token.logprob for token in end.logprobs or ()] for end in (one, other)]
            assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
            assert len(logprobs[0]) == len(request.target_ids)


def test_a_reading_is_no_second_pass_of_the_encoder(ready: Callable[[str], LLM]) -> None:
    """Nor is any other thing that is asked of a window."""
    asked: Any = {
        "prompt": "5!", "temperature": (0.0, 0.2, 0.4), "logprob_threshold": 1.0, "timestamps": "word",
        "condition_on_prev_tokens": True,
    }  # fmt: skip
    llm = ready("base")
    before = llm.stats().encoded_tokens
    answer = llm.transcribe((sound(3, 4.0), RATE), **asked)
    windows = {segment.seek_s for segment in answer.segments}
    assert len(windows) > 3
    assert llm.stats().encoded_tokens - before == 50 * len(windows)


def test_probabilities(ready: Callable[[str], LLM], transcripts: Callable[[str], TimedTranscripts]) -> None:
    """Each word's is the mean of its tokens', among tokens of text, after all that was said before them."""
    samples, whole = sound(7, 1.0), transcripts("base")
    answer = ready("base").transcribe((samples, RATE), timestamps="word", language="en")
    first = [one for one in answer.segments if one.seek_s == 0]
    ids = [token for one in first for token in one.token_ids]
    window = whole.features_and_mask(samples)[0]
    of_text = whole.probabilities(window, [SOT, CODES["en"], TRANSCRIBE], ids)
    words = [word for one in first for word in one.words or []]
    assert len(words) == len(of_text), "words of one token each"
    assert [word.probability for word in words] == pytest.approx(of_text, abs=1e-4)


def test_what_is_not_asked_for_is_not_there(ready: Callable[[str], LLM]) -> None:
    llm = ready("base")
    timed = llm.transcribe((sound(2, 1.8), RATE), timestamps="word")
    plain = llm.transcribe((sound(2, 1.8), RATE))
    assert plain.text == timed.text
    assert found(plain) == found(timed)
    assert {one.words for one in plain.segments} == {None}


@pytest.mark.parametrize(
    ("heads", "why"),
    [
        (None, "no alignment_heads; copy those of the model that it was made from"),
        ((), "no alignment_heads"),
        (((0, 1), (2, 0)), "head 0 of layer 2, its decoder has 2 layers of 4 heads"),
        (((0, 4),), "head 4 of layer 0"),
        (((-1, 0),), "layer -1"),
        (HEADS["base"], "median_filter_width of its config.json is 4"),
    ],
)
def test_a_model_that_cannot(tmp_path: Path, heads: Any, why: str) -> None:
    folder = make_timed(tmp_path, "base", heads, median_filter_width=4 if heads == HEADS["base"] else 7)
    with LLM(str(folder), dtype="float32") as llm:
        with pytest.raises(InvalidRequest, match=why) as refused:
            llm.transcribe((sound(0), RATE), timestamps="word")
        assert refused.value.field == "timestamps"
        assert llm.transcribe((sound(0), RATE)).segments
        if heads is None:  # openai-whisper takes all of the last half of the layers
            answer = llm.transcribe((sound(0), RATE), timestamps="word", semantics="openai")
            assert all(one.words for one in answer.segments)


def test_silence_and_next_to_nothing(ready: Callable[[str], LLM]) -> None:
    """A recording of no whole position, of one sample, of nothing but zeros."""
    for semantics in ("transformers", "openai"):
        for samples in (sound(1, 0.015), np.zeros(1, np.float32), np.zeros(3 * RATE, np.float32)):
            answer = ready("base").transcribe((samples, RATE), timestamps="word", semantics=semantics)
            for segment in answer.segments:
                for word in segment.words or []:
                    assert 0 <= word.start_s <= word.end_s <= 4.0


def test_real_weights() -> None:
    folder, samples, asked = real_whisper("tiny.en"), spoken(10.0), {"num_beams": 2}
    with LLM(str(folder), dtype="float32") as llm:
        answer = llm.transcribe((samples, RATE), timestamps="word", **asked)  # type: ignore[arg-type]
    expected, words = TimedTranscripts(folder).timed(samples, "en", **asked)
    assert expected.lead < CLEAR or found(answer) == expected.segments
    assert close(found_words(answer), words, within_s=0.02)
    assert sum(map(len, words)) > 20
