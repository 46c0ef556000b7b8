"""`pipeline("automatic-speech-recognition")`: transformers' own, called the same, has the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from audio_files import encoded, wav
from timed_whisper import make_timed
from transcripts import Transcripts
from transformers import AutoTokenizer, WhisperFeatureExtractor
from transformers.models.whisper.tokenization_whisper import WhisperTokenizer, _decode_asr
from whisper import CLEAR, EOS, NO_TIMESTAMPS, RATE, SOT, make_whisper, sound

from tandem import LLM, InvalidRequest, SpeechPipeline, pipeline

TASK: Any = "automatic-speech-recognition"
WINDOW = 50  # positions of the encoder, and times; transformers takes 1,500 for granted
BEFORE = SOT + 7
FIRST_TIME = NO_TIMESTAMPS + 1
GREEDY = {"num_beams": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    return cache(lambda kind, times: make_whisper(tmp_path_factory.mktemp(kind), kind, times=times))


@pytest.fixture(scope="module")
def theirs(folder: Callable[[str, bool], Path]) -> Callable[[str, bool], Any]:
    @cache
    def make(kind: str, times: bool) -> Any:
        path = folder(kind, times)
        tokenizer = AutoTokenizer.from_pretrained(path)
        # A tiny checkpoint's tokenizer has words of its own, and not what WhisperTokenizer adds.
        tokenizer._decode_asr = partial(_decode_asr, tokenizer, segment_size=WINDOW)
        tokenizer._strip_prompt = partial(WhisperTokenizer._strip_prompt, tokenizer)
        extractor = WhisperFeatureExtractor.from_pretrained(path)
        return transformers.pipeline(
            TASK, model=str(path), tokenizer=tokenizer, feature_extractor=extractor, dtype=torch.float32
        )

    return make


@pytest.fixture(scope="module")
def ours(folder: Callable[[str, bool], Path]) -> Iterator[Callable[[str, bool], SpeechPipeline]]:
    made: list[SpeechPipeline] = []

    @cache
    def make(kind: str, times: bool) -> SpeechPipeline:
        made.append(pipeline(TASK, str(folder(kind, times)), dtype="float32", max_num_seqs=32))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def speech(ours: Callable[[str, bool], SpeechPipeline]) -> SpeechPipeline:
    return ours("base", True)


Both = Callable[[str, bool], Any]

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("base", {}),  # five beams
    ("base", {"generate_kwargs": GREEDY}),
    ("base", {"generate_kwargs": {"language": "fr", "task": "translate", "num_beams": 2}}),
    ("base", {"generate_kwargs": GREEDY, "return_language": True}),
    ("base", {"generate_kwargs": {"prompt_ids": [BEFORE, 1, 2, 3], **GREEDY}}),
    ("base", {"generate_kwargs": {"max_new_tokens": 5, "temperature": 0.0}}),
    ("english", {"generate_kwargs": GREEDY, "return_language": True}),
]  # fmt: skip


def of_torch(call: dict[str, Any]) -> dict[str, Any]:
    kwargs = dict(call.get("generate_kwargs", {}))
    if "prompt_ids" in kwargs:
        kwargs["prompt_ids"] = torch.tensor(kwargs["prompt_ids"])
    return call | {"generate_kwargs": kwargs}


@pytest.mark.parametrize(("kind", "call"), CALLS)
@pytest.mark.parametrize("times", [None, True])
def test_a_window(theirs: Both, ours: Both, kind: str, call: dict[str, Any], times: bool | None) -> None:
    """Those of transformers' results that make sense: a random model may leave times out."""
    samples = [sound(seed) for seed in range(8)]
    call = call | {"return_timestamps": times}
    expected = [theirs(kind, bool(times))(one.copy(), **of_torch(call)) for one in samples]
    found = ours(kind, bool(times))(samples, **call)
    sound_ones = [number for number, one in enumerate(expected) if not times or _in_order(one)]
    assert len(sound_ones) >= 3
    for number in sound_ones:
        assert found[number] == expected[number]


def _in_order(result: dict[str, Any]) -> bool:
    """Every chunk has text, and begins when the one before has ended."""
    bounds = [time for chunk in result["chunks"] for time in chunk["timestamp"]]
    given = [*bounds[:-1], *[time for time in bounds[-1:] if time is not None]]
    return None not in given and given == sorted(given) and all(chunk["text"] for chunk in result["chunks"])


def test_many_windows(theirs: Both, speech: SpeechPipeline, folder: Any) -> None:
    """The text is the pipeline's of transformers. Its times are wrong after a window that says no end; those
    of `generate` are what is compared."""
    transcripts, compared = Transcripts(folder("base", True)), 0
    for seed in range(20, 32):
        one = sound(seed, 2.6)
        expected = theirs("base", True)(one.copy(), return_timestamps=True, generate_kwargs=GREEDY)
        found = speech(one, return_timestamps=True, **GREEDY)
        assert found["text"].split() or not expected["text"]
        made = transcripts.generate(one, return_timestamps=True, num_beams=1)
        if made.lead < CLEAR:
            continue
        assert found["text"].replace(" ", "") == expected["text"].replace(" ", "")
        times = {chunk["timestamp"] for chunk in found["chunks"]}
        for _, end, ids in made.segments:
            said = [token - FIRST_TIME for token in ids]
            last = said[-2] if len(said) > 2 and said[-2] >= 0 else said[-1]
            if said[0] >= 0 and last >= 0 and any(token < EOS for token in ids):
                # `generate` lets a window without a pair of times begin where the window does.
                assert (round(end - 0.02 * (last - said[0]), 2), round(end, 2)) in times
                compared += 1
    assert compared > 10


def test_words(tmp_path: Path) -> None:
    folder = make_timed(tmp_path, "base", ((0, 1), (1, 0), (1, 3)))
    theirs = transformers.pipeline(TASK, model=str(folder), dtype=torch.float32)
    call = {"return_timestamps": "word", "language": "fr", **GREEDY}
    near = []
    with pipeline(TASK, str(folder), dtype="float32") as ours:
        for seed in range(10):
            expected, found = theirs(sound(seed), **call), ours(sound(seed), **call)
            assert found["text"] == expected["text"]
            for one, other in zip(found["chunks"], expected["chunks"], strict=True):
                assert one["text"] == other["text"]
                near.append(one["timestamp"] == pytest.approx(other["timestamp"], abs=0.0201))
        # transformers' puts the language before the tokens, but not before their times, and fails.
        named = ours(sound(2), return_language=True, **call)["chunks"]
    assert {one["language"] for one in named} == {"french"}
    assert len(near) > 15
    # Attention of a random model is nearly even: rounding may decide where a word is.
    assert sum(near) >= 0.8 * len(near)


def test_every_kind_of_input(speech: SpeechPipeline, tmp_path: Path) -> None:
    samples = sound(3)
    path = tmp_path / "a.wav"
    path.write_bytes(wav(samples, RATE))
    expected = speech(samples)
    assert expected["text"]
    same = [
        str(path), path, path.read_bytes(), torch.tensor(samples), np.stack([samples, samples]),
        samples[None], samples.astype(np.float64), {"path": str(path)},
        {"raw": samples, "sampling_rate": RATE},
        {"array": samples, "sampling_rate": RATE, "path": "elsewhere"},
    ]  # fmt: skip
    for one in same:
        assert speech(one) == expected
    given = {"array": samples, "sampling_rate": RATE, "speaker": 7}
    assert speech(given) == expected | {"speaker": [7]}
    assert set(given) == {"array", "sampling_rate", "speaker"}, "the caller's own"
    assert speech(encoded(np.repeat(samples, 2), 2 * RATE, "flac", "flac"))["text"], "resampled"


def test_lists_and_generators(speech: SpeechPipeline) -> None:
    samples = [sound(seed, 0.3 + 0.7 * (seed % 4)) for seed in range(9)]
    expected = [speech(one, **GREEDY) for one in samples]
    assert speech(samples, batch_size=4, **GREEDY) == expected
    assert speech((), **GREEDY) == []
    taken = []

    def read() -> Iterator[Any]:
        for number, one in enumerate(samples * 20):
            taken.append(number)
            yield one

    results = speech(read(), **GREEDY)
    assert next(results) == expected[0]
    assert len(taken) < 150, "not all of them before the first result"
    assert [next(results) for _ in samples[1:]] == expected[1:]
    results.close()
    stats = speech.llm.stats()
    assert (stats.running, stats.free_pages) == (0, stats.total_pages)


def test_what_a_call_says_goes_before_the_pipelines_own(speech: SpeechPipeline) -> None:
    one = sound(1)
    own = pipeline(TASK, speech.llm, return_timestamps=True, generate_kwargs={"language": "de", **GREEDY})
    assert own(one) == speech(one, return_timestamps=True, generate_kwargs={"language": "de", **GREEDY})
    assert own(one, language="fr", return_language=True)["chunks"][0]["language"] == "french"
    with own:
        pass
    assert speech(one), "the LLM stays the caller's"


def test_without_times_a_recording_may_still_be_long(speech: SpeechPipeline) -> None:
    assert speech(sound(5, 3.0), **GREEDY)["text"]


def test_nothing_is_said(speech: SpeechPipeline) -> None:
    silent = speech(
        sound(0), return_timestamps=True, logprob_threshold=0.0, no_speech_threshold=0.0, **GREEDY
    )
    assert silent == {"text": "", "chunks": []}


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ({"chunk_length_s": 30}, "chunk_length_s"),
        ({"stride_length_s": (4, 2)}, "stride_length_s"),
        ({"generate_kwargs": {"top_k": 4}}, "top_k"),
        ({"generate_kwargs": {"do_sample": True}}, "do_sample"),
        ({"generate_kwargs": {"max_new_tokens": 0}}, "max_new_tokens"),
        ({"generate_kwargs": {"language": "xx"}}, "language"),
        ({"generate_kwargs": {"prompt_ids": [1, 2]}}, "prompt_ids"),
        ({"generate_kwargs": {"prompt_ids": [BEFORE, 1, SOT]}}, "prompt_ids"),
        ({"generate_kwargs": 3}, "generate_kwargs"),
        ({"return_timestamps": "char"}, "return_timestamps"),
        ({"num_beam": 2}, "num_beam"),
    ],
)
def test_arguments_are_refused_by_name(speech: SpeechPipeline, call: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        speech(sound(0), **call)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        (3, "inputs"),
        ("https://example.com/a.wav", "inputs"),
        (b"no audio", "inputs"),
        ([sound(0), "nowhere.wav"], "inputs.1"),
        (np.zeros((3, 99), np.float32), "inputs"),
        (np.zeros(99, np.int16), "inputs"),
        ({"array": sound(0)}, "inputs.sampling_rate"),
        ({"speaker": 1}, "inputs"),
        ({"array": sound(0), "sampling_rate": RATE, "stride": (0, 0)}, "inputs.stride"),
    ],
)
def test_inputs_are_refused_by_name(speech: SpeechPipeline, inputs: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        speech(inputs)
    assert refused.value.field == field


def test_other_models_hear_nothing() -> None:
    with LLM(dtype="float32") as llm, pytest.raises(InvalidRequest, match="no speech model"):
        pipeline(TASK, llm)


def test_chunk_length_0_is_transformers_default(speech: SpeechPipeline) -> None:
    assert speech(sound(2), chunk_length_s=0, **GREEDY) == speech(sound(2), **GREEDY)
