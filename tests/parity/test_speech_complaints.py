"""What users of other servers of Whisper complain of, as promises: see docs/transcription.md."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from audio_files import wav
from transcripts import found
from whisper import RATE, make_whisper, sound

from tandem import LLM, SamplingParams, Transcription, TranscriptionParams
from tandem.inputs import Media
from tandem.transcription import TranscriptionOptions
from tandem.workers.transcription.local import Begin, transcribe_all

WINDOW = 50  # encoder positions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"), "base", times=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="float32", check_invariants=True) as llm:
        yield llm


def begins(llm: LLM, samples: Any, seed: int = 1, **asked: Any) -> Begin:
    builder, media = llm._transcription_builder, Media("audio", wav(samples, RATE))
    return partial(builder.begin, media, "audio", builder.check(TranscriptionParams(**asked)), seed)


def together(llm: LLM, *each: Begin) -> list[Transcription]:
    """Recordings that are asked for differently, with an engine at once."""
    answers = {}
    with closing(transcribe_all(llm._engine, each, len(each))) as steps:
        for number, transcriber in steps:
            if transcriber.done:
                answers[number] = transcriber.transcription()
    return [answers[number] for number in range(len(each))]


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_every_batch_size_and_order_gives_the_same_words(llm: LLM, folder: Path, most: int) -> None:
    recordings = [(sound(20 + at, 0.5 + 0.4 * at), RATE) for at in range(8)]
    asked: TranscriptionOptions = {"temperature": (0.0, 0.8), "logprob_threshold": -0.25, "seed": 2}
    alone = [llm.transcribe(one, **asked) for one in recordings]
    assert {one.temperature for answer in alone for one in answer.segments} == {0.0, 0.8}
    order = list(range(len(recordings)))
    random.Random(most).shuffle(order)
    with LLM(str(folder), dtype="float32", max_num_seqs=most) as other:
        answers = other.transcribe([recordings[at] for at in order], **asked)
    for at, answer in zip(order, answers, strict=True):
        assert (answer.text, found(answer)) == (alone[at].text, found(alone[at]))


def test_a_loop_ends_by_fallback_without_delaying_others(llm: LLM) -> None:
    """One recording is refused at every temperature; the other is ready before it, in as many steps from its
    own beginning as it takes alone."""
    good = begins(llm, sound(31, 5.5))
    temperatures = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    bad = begins(llm, sound(30, 5.5), temperature=temperatures, logprob_threshold=5.0)
    before = llm.stats().steps
    (alone,) = together(llm, good)
    took = llm.stats().steps - before
    ready, windows, begun = [], {}, {}
    with closing(transcribe_all(llm._engine, [bad, good], 2)) as steps:
        for number, transcriber in steps:
            windows[number] = transcriber.counts
            begun.setdefault(number, llm.stats().steps)
            if transcriber.done:
                ready.append(number)
                if number == 1:
                    assert llm.stats().steps - begun[1] <= took + 10
                    assert found(transcriber.transcription()) == found(alone)
    assert ready == [1, 0]
    assert windows[0].refused == len(temperatures) * windows[0].windows
    assert windows[1].refused == 0


def test_fallback_is_bounded(llm: LLM) -> None:
    """By the number of temperatures: in tokens, in steps, and with one pass of the encoder."""
    most, temperatures = 7, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    before = llm.stats()
    answer = llm.transcribe(
        (sound(33, 3.5), RATE),
        temperature=temperatures,
        logprob_threshold=5.0,
        max_tokens=most,
        language="en",
    )
    after = llm.stats()
    windows = len({one.seek_s for one in answer.segments})
    assert windows > 2
    assert answer.generated_tokens <= windows * len(temperatures) * most
    assert after.steps - before.steps <= windows * len(temperatures) * (most + 3)
    assert after.encoded_tokens - before.encoded_tokens == windows * WINDOW


def test_beams_encode_once(llm: LLM) -> None:
    """And take as many steps a window as its longest hypothesis, not as all of them together."""
    asked: TranscriptionOptions = {"max_tokens": 9, "language": "en"}
    before = llm.stats()
    answer = llm.transcribe((sound(34, 4.5), RATE), num_beams=5, **asked)
    after = llm.stats()
    windows = len({one.seek_s for one in answer.segments})
    assert windows > 2
    assert after.encoded_tokens - before.encoded_tokens == windows * WINDOW
    assert after.steps - before.steps <= windows * (9 + 3)


def test_prompts_of_different_lengths_share_a_batch(llm: LLM) -> None:
    """Nothing is padded: each as alone, next to windows that begin with histories of their own."""
    words = ["ba", "be", "bi", "bo", "bu", "da", "de", "di", "do", "du"]
    each = []
    for number, count in enumerate((0, 1, 2, 5, 10)):
        asked: dict[str, Any] = {
            "prompt": " ".join(words[:count]),
            "condition_on_prev_tokens": number % 2 == 0,
        }
        each.append(begins(llm, sound(50 + number, 1.5 + 0.5 * number), **asked))
    alone = [together(llm, one)[0] for one in each]
    assert [found(one) for one in together(llm, *each)] == [found(one) for one in alone]


def test_texts_are_refused_politely_by_a_speech_model(llm: LLM) -> None:
    """And what is under way goes on."""
    before = llm.transcribe((sound(1, 2.0), RATE))
    with pytest.raises(Exception, match="audio") as refused:
        llm.generate("translate English to French: Good morning.", SamplingParams(max_tokens=4))
    assert getattr(refused.value, "field", None)
    assert llm.transcribe((sound(1, 2.0), RATE)) == before


def test_memory_is_flat(folder: Path) -> None:
    """Over 1,000 recordings, in which some have samples, beams or more than a window."""
    recordings = [(sound(seed, 0.2), RATE) for seed in range(46)]
    recordings += [(sound(seed, 1.2), RATE) for seed in range(4)]
    asked: list[TranscriptionOptions] = [
        {}, {"num_beams": 2}, {"temperature": (0.0, 0.5), "logprob_threshold": -0.2, "best_of": 2},
    ]  # fmt: skip
    with LLM(str(folder), dtype="float32") as llm:

        def answer(rounds: int) -> float:
            for number in range(rounds):
                llm.transcribe(recordings, use_tqdm=False, max_tokens=4, **asked[number % len(asked)])
            gc.collect()
            with Path("/proc/self/statm").open() as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

        before = answer(6)  # what is compiled, cached and pooled is there by then
        after = answer(14)
        stats = llm.stats()
    # A window's features have 31 KiB, its hidden states 6.
    assert after - before < 4, "MiB"
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
