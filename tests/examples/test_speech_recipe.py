"""The recipe of the quickstart speech model: what it says and when, and that it trains what transformers and
Tandem load."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from transformers import WhisperProcessor

RECIPE = Path(__file__).parents[2] / "examples" / "quickstart_speech"
MODULES = (
    "acoustics", "clips", "data", "espeak", "evaluate", "phrases", "scoring", "synthesize", "targets",
    "tokenizer", "train",
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The recipe's scripts as modules; other recipes have modules of the same names."""
    pytest.importorskip("espeakng_loader")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPE))
        before = {name: sys.modules.pop(name, None) for name in MODULES}
        names = ("evaluate", "phrases", "synthesize", "targets", "tokenizer")
        found = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        yield found
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sentences.tsv"
    nouns = ("dogs", "cats", "houses", "trees", "cars", "books", "tables", "rivers", "doors", "birds")
    verbs = (
        "see",
        "like",
        "want",
        "need",
        "have",
        "draw",
        "paint",
        "know",
        "hear",
        "miss",
        "find",
        "keep",
        "love",
    )
    people = ("I", "You", "We", "They", "Tom and I", "My sons", "People", "The men", "Both", "All of us")
    lines = [f"{who} {verb} {noun}.\tx" for who in people for verb in verbs for noun in nouns]
    path.write_text("\n".join([*lines, "I have 3 dogs.\tx"]) + "\n", encoding="utf-8")
    return path


def run(script: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(RECIPE / script), *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_numbers_as_they_are_said(recipe: Any) -> None:
    phrases = recipe.phrases
    assert [phrases.cardinal(number) for number in (0, 13, 20, 45, 100, 719, 4000, 12_345)] == [
        "zero", "thirteen", "twenty", "forty-five", "one hundred", "seven hundred nineteen", "four thousand",
        "twelve thousand three hundred forty-five",
    ]  # fmt: skip
    said = [f"{n}{phrases.suffix(n)} {phrases.ordinal(n)}" for n in (1, 2, 3, 8, 11, 12, 13, 20, 22, 31, 112)]
    assert said == [
        "1st first", "2nd second", "3rd third", "8th eighth", "11th eleventh", "12th twelfth",
        "13th thirteenth", "20th twentieth", "22nd twenty-second", "31st thirty-first",
        "112th one hundred twelfth",
    ]  # fmt: skip
    assert [phrases.year(number) for number in (1100, 1905, 1998, 2000, 2007, 2026)] == [
        "eleven hundred", "nineteen oh five", "nineteen ninety-eight", "two thousand", "two thousand seven",
        "twenty twenty-six",
    ]  # fmt: skip


def test_no_text_is_in_two_parts(recipe: Any, data: Path) -> None:
    rng = random.Random(0)
    written: dict[str, set[str]] = {}
    for part in ("train", "test"):
        source = recipe.phrases.Source([data], part)
        assert "I have 3 dogs." not in source.sentences, "whether it is said as it is written is not known"
        drawn = [source.draw(rng, kind) for kind in recipe.phrases.KINDS for _ in range(150)]
        written[part] = {phrase.written for phrase in drawn} | set(source.sentences)
    assert len(written["test"]) > 20
    assert not written["train"] & written["test"]


def test_phrases_are_written_as_text_is(recipe: Any, data: Path) -> None:
    rng = random.Random(1)
    source = recipe.phrases.Source([data], "train")
    for phrase in (source.draw(rng) for _ in range(500)):
        assert phrase.written[0].isupper() or phrase.written[0] in "0123456789$", phrase
        assert phrase.written[-1] in ".?!", phrase
        assert "  " not in phrase.written, phrase
        assert not any(character.isdigit() for spoken, _ in phrase.pieces for character in spoken), phrase


def test_times_are_when_the_words_are_said(recipe: Any) -> None:
    """A pause between two words is silent in the samples, too, and of no word."""
    synthesize = recipe.synthesize
    voice = synthesize.Voice("en-us", "f2", speed=150, tract=1.1)
    phrase = recipe.phrases.Phrase("times", [("Listen:", "Listen:"), ("seven forty-five", "7:45.")])
    speech, segment = synthesize.spoken(phrase, voice)
    first, second = segment.pieces
    assert (first.written, second.written) == ("Listen:", "7:45.")
    assert 0 <= first.start_s < first.end_s < second.start_s - 0.05
    assert second.start_s < second.end_s <= len(speech.samples) / synthesize.RATE

    def loudness(start_s: float, end_s: float) -> float:
        return float(np.abs(speech.samples[int(start_s * 16_000) : int(end_s * 16_000)]).mean())

    pause = loudness(first.end_s + 0.03, second.start_s - 0.03)
    assert pause < 0.1 * min(loudness(first.start_s, first.end_s), loudness(second.start_s, second.end_s))


def test_targets_are_in_whispers_forms(recipe: Any, data: Path) -> None:
    synthesize, targets = recipe.synthesize, recipe.targets
    source, rng = recipe.phrases.Source([data], "train"), random.Random(4)
    tokenizer = recipe.tokenizer.train_tokenizer(recipe.phrases.texts(source, rng, 200))
    ids = recipe.tokenizer.ids_of(tokenizer)
    extractor = synthesize.feature_extractor()
    clips = [synthesize.clip_of(synthesize.record(source, [""], rng), extractor) for _ in range(60)]
    batch = targets.Maker(tokenizer, ids).batch(clips, source.sentences, rng, whole=False)
    assert batch.mel.shape[2] == max(len(clip.mel) for clip in clips)
    forms = set()
    for clip, row, labels in zip(clips, batch.ids.tolist(), batch.labels.tolist(), strict=True):
        begin = row.index(ids.start)
        assert set(labels[:begin]) <= {targets.IGNORED}, "what was said before is not to be said"
        speaks = bool(clip.segments) or clip.cut_s is not None
        assert labels[begin] == (ids.english if speaks else ids.no_speech)
        timed = ids.no_times not in row[begin:]
        said = [label for label in labels[begin + 1 :] if label != targets.IGNORED]
        assert said[-1] == ids.end
        assert (
            tokenizer.decode([one for one in said if one < ids.end]).split()
            == " ".join(segment.text for segment in clip.segments).split()
        )
        times = [label for label in said if label >= ids.first_time]
        assert times == sorted(times)
        expected = 2 * len(clip.segments) + (clip.cut_s is not None) if speaks else 1
        assert len(times) == (expected if timed else 0)
        forms.add((timed, begin > 0, speaks, clip.cut_s is not None))
    for kinds in zip(*forms, strict=True):
        assert set(kinds) == {False, True}


def test_word_errors() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from scoring import *\n"
        "errors = WordErrors()\n"
        "errors.add(\"It's 7:45 p.m., Tom!\", 'its 7:45 PM Tom')\n"
        "errors.add('', 'you')\n"
        "assert (errors.errors, errors.words) == (4, 5), errors\n"
        "assert distance('a b c d'.split(), 'a c d e'.split()) == 2\n"
    )
    subprocess.run([sys.executable, "-c", code, str(RECIPE)], check=True)


def test_trains_resumes_and_is_served_alike(recipe: Any, data: Path, tmp_path: Path) -> None:  # noqa: ARG001
    clips, out = tmp_path / "clips", tmp_path / "out"
    files = ("--data", str(data))
    run(
        "synthesize.py", *files, "--out", str(clips), "--clips", "24", "--clips-a-file", "12",
        "--dev-clips", "2", "--processes", "1",
    )  # fmt: skip
    made = sorted(path.name for path in clips.glob("*.json"))
    assert made == ["dev-00000.json", "train-00000.json", "train-00001.json"]
    train = (*files, "--clips", str(clips), "--out", str(out), "--batch-frames", "1500", "--threads", "1")
    run("train.py", *train, "--steps", "2")
    model = out / "model"
    with safe_open(model / "model.safetensors", "pt") as file:
        assert str(file.get_tensor("model.decoder.embed_tokens.weight").dtype) == "torch.float16"
    processor = WhisperProcessor.from_pretrained(model)
    assert processor.feature_extractor.nb_max_frames == 600
    assert "resumed after" in run("train.py", *train, "--steps", "4")

    scores = json.loads(run("evaluate.py", *files, "--model", str(model), "--clips", "1"))
    assert scores["tandem"] == scores["transformers"]
