"""Models of images and of speech on a GPU that is a fake: what a CPU answers, and no wait while requests are
served."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton")

import florence
import mllama
import t5gemma2
import vision
from fake_cuda import FakeCuda
from timed_whisper import make_timed
from whisper import RATE, sound

from tandem import LLM, BeamSearchParams, SamplingParams
from tandem.workers.request import EngineStats

TOKENS = 6
# In pages of few positions, with fewer slots than requests.
SMALL: dict[str, Any] = {
    "dtype": "float32", "max_num_seqs": 3, "page_size": 8, "num_pages": 200, "max_decoder_length": 40,
}  # fmt: skip


class Images(NamedTuple):
    make: Callable[[Path], Path]
    prompts: Callable[[], list[Any]]


def _pictures(pair: str) -> Images:
    def prompts() -> list[Any]:
        return [vision.prompt(vision.picture(seed, vision.SIZES[seed])) for seed in range(3)]

    return Images(lambda folder: vision.make_vision(folder, pair), prompts)


MODELS = {
    # Texts alone, and images of one, two and four tiles.
    "mllama": Images(
        mllama.make_mllama,
        lambda: [mllama.case(seed, images).asked for seed, images in ((0, 2), (1, 0), (2, 1), (3, 2))],
    ),
    "florence": Images(
        florence.make_florence,
        lambda: [florence.prompt(*one) for one in (("<OD>", 1), ("a cat", None), ("<CAPTION>", 1), ("", 3))],
    ),
    "t5gemma2": Images(
        t5gemma2.make_t5gemma2, lambda: [one.asked for one in t5gemma2.cases()[:4]]
    ),
    "trocr": _pictures("trocr"),
    "donut": _pictures("donut"),
}  # fmt: skip


def answers(
    folder: Path, ask: Callable[[LLM], Any], cuda: FakeCuda | None, **options: Any
) -> tuple[Any, EngineStats]:
    """What a model answers: on a CPU, or while it is served on the fake."""
    device = "cpu" if cuda is None else "cuda"
    with LLM(str(folder), device=device, **SMALL | options) as llm:
        with nullcontext() if cuda is None else cuda.serving():
            found = ask(llm)
        return found, llm.stats()


@pytest.mark.parametrize("name", MODELS)
def test_images(name: str, tmp_path: Path) -> None:
    """Several at once, the same ones again with beams, and drawn tokens."""
    model = MODELS[name]
    folder, prompts = model.make(tmp_path / "model"), model.prompts()
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS)

    def ask(llm: LLM) -> Any:
        made = llm.generate(prompts, greedy, use_tqdm=False)
        made += llm.generate(prompts[:1], BeamSearchParams(num_beams=2, max_tokens=3), use_tqdm=False)
        drawn = SamplingParams(
            temperature=0.7, top_k=4, top_p=0.95, min_p=0.01, typical_p=0.99, repetition_penalty=1.2,
            frequency_penalty=0.1, presence_penalty=0.1, no_repeat_ngram_size=2, bad_words_ids=[[5], [6, 7]],
            logit_bias={9: 1.0}, suppress_tokens=[8], min_tokens=2, seed=3, max_tokens=3, logprobs=2,
            prompt_logprobs=None if name == "mllama" else 1,
        )  # fmt: skip
        made += llm.generate(prompts[:2], drawn, use_tqdm=False)
        return [one.outputs[0].token_ids for one in made]

    expected, _ = answers(folder, ask, None)
    with FakeCuda() as cuda:
        found, stats = answers(folder, ask, cuda)
        assert found == expected
        assert stats.media_encoded > 0
        assert stats.compilations == 0
        assert cuda.graphs


def test_recordings_with_times(tmp_path: Path) -> None:
    """Of several windows, of a language that the model says; with beams, tried again at other temperatures,
    and each word's times."""
    folder = make_timed(tmp_path / "model", "base", ((0, 1), (1, 0), (1, 3)))
    recordings = [(sound(seed, seconds), RATE) for seed, seconds in ((0, 0.7), (1, 1.6))]
    ways: list[dict[str, Any]] = [
        {"timestamps": "word"},
        {"num_beams": 2},
        {"temperature": (0.0, 0.6), "logprob_threshold": -0.2, "compression_ratio_threshold": 0.7,
         "no_speech_threshold": 0.9, "condition_on_prev_tokens": True, "language": "en"},
    ]  # fmt: skip

    def ask(llm: LLM) -> Any:
        made = [one for way in ways for one in llm.transcribe(recordings, **way)]
        return [
            (one.language, part.token_ids, part.start_s, part.end_s, part.temperature,
             [(word.word, word.start_s, word.end_s) for word in part.words or ()])
            for one in made
            for part in one.segments
        ]  # fmt: skip

    options: dict[str, Any] = {"override_generation_config": {"top_k": 1}, "max_decoder_length": 64}
    expected, _ = answers(folder, ask, None, **options)
    assert {part[4] for part in expected} == {0.0, 0.6}
    assert any(part[5] for part in expected)
    with FakeCuda() as cuda:
        found, stats = answers(folder, ask, cuda, **options)
        assert found == expected
        assert stats.compilations == 0
