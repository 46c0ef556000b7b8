"""The bundled speech model: as transformers has it, and as good as its card says."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, WhisperForConditionalGeneration, WhisperProcessor

from tandem import LLM
from tandem.quickstart_speech import CLIP, PATH

RATE = 16_000
TEXT = "Please switch off the basement printer."
SIZE_LIMIT = 12 * 2**20
Samples = np.ndarray[Any, np.dtype[np.float32]]
SENTENCES = [
    "My brother became an engineer.", "I should have studied more.", "Tom may need help.",
    "When will you be back?", "He lived to be ninety.", "You can't quit now.", "What a beautiful house!",
    "Do you understand her?", "I left something in the room.", "Thanks for the information.",
    "Call my wife.", "Turn off the alarm.", "Switch on the lamp.", "The train leaves at 2:15.",
    "Dinner is at 7:13 p.m.", "Until January 18th.", "See you on October 15th.", "What is 28 times 33?",
    "Room 394.", "The party is on August 21st.",
]  # fmt: skip
# As it is said, where it is not written so.
SAID = {
    "The train leaves at 2:15.": "The train leaves at two fifteen.",
    "Dinner is at 7:13 p.m.": "Dinner is at seven thirteen p m.",
    "Until January 18th.": "Until January eighteenth.",
    "See you on October 15th.": "See you on October fifteenth.",
    "What is 28 times 33?": "What is twenty-eight times thirty-three?",
    "Room 394.": "Room three hundred ninety-four.",
    "The party is on August 21st.": "The party is on August twenty-first.",
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("quickstart-speech", dtype="float32") as made:
        yield made


@pytest.fixture(scope="module")
def clip() -> Samples:
    with av.open(io.BytesIO(CLIP.read_bytes())) as file:
        frames = [frame.to_ndarray()[0] for frame in file.decode(audio=0)]
    return (np.concatenate(frames) / 2**15).astype(np.float32)


def test_its_files_are_as_small_as_its_card_says() -> None:
    assert sum(path.stat().st_size for path in PATH.iterdir() if path.is_file()) <= SIZE_LIMIT
    assert CLIP.stat().st_size <= 100_000


def test_the_clip(llm: LLM) -> None:
    answer = llm.transcribe(CLIP)
    assert (answer.text, answer.language) == (TEXT, "en")
    [segment] = answer.segments
    assert 0 <= segment.start_s < 0.5
    assert answer.duration_s - 1.0 < segment.end_s <= answer.duration_s + 0.1
    assert segment.no_speech_prob < 0.05


def test_times_and_tokens_are_transformers(llm: LLM, clip: Samples) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(PATH)
    rng = np.random.default_rng(0)
    hiss = rng.standard_normal(len(clip)).astype(np.float32)
    for samples in (clip, 0.1 * clip, clip + 0.01 * hiss, clip[:RATE], np.tile(clip, 2)[: 6 * RATE]):
        features = processor(samples, sampling_rate=RATE, return_tensors="pt").input_features
        made: Any = model.generate(
            features, return_timestamps=True, return_segments=True, language="en", task="transcribe"
        )
        expected = [
            (float(one["start"]), float(one["end"]), one["tokens"].tolist()) for one in made["segments"][0]
        ]
        answer = llm.transcribe((samples, RATE), language="en")
        found = [(one.start_s, one.end_s, one.token_ids) for one in answer.segments]
        assert [ids for *_, ids in found] == [ids for *_, ids in expected]
        assert np.allclose([one[:2] for one in found], [one[:2] for one in expected], atol=1e-4)


def test_its_tokenizer_is_whispers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(PATH)
    assert type(tokenizer).__name__ == "WhisperTokenizer"
    marks = [
        "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>",
        "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>", "<|6.00|>",
    ]  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids(marks)
    assert ids[:10] == list(range(ids[0], ids[0] + 10))
    assert ids[10] - ids[9] == 300
    assert tokenizer.all_special_ids[-1] == ids[8], "transformers takes what comes after for times"
    text = " Set a timer for 25 minutes, at 7:45 p.m.!"
    made = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(made) == text
    offsets = tokenizer.decode([*ids[1:3], ids[4], ids[9], *made, ids[9] + 117], output_offsets=True)
    assert offsets["offsets"] == [{"text": text, "timestamp": (0.0, 2.34)}]


@pytest.mark.parametrize("seconds", [0.5, 3.0, 6.0, 14.0])
@pytest.mark.parametrize("loudness", [0.0, 1e-4, 0.01, 0.1])
def test_nobody_speaks(llm: LLM, seconds: float, loudness: float) -> None:
    rng = np.random.default_rng(int(10 * seconds))
    samples = (loudness * rng.standard_normal(int(seconds * RATE))).astype(np.float32)
    for timestamps in (None, "segment"):
        assert llm.transcribe((samples, RATE), timestamps=timestamps).text == ""  # type: ignore[call-overload]


def test_a_long_recording_is_transformers(llm: LLM, clip: Samples) -> None:
    """Five times the clip, with pauses, over several windows."""
    samples = np.concatenate([clip, np.zeros(int(0.8 * RATE), np.float32)] * 5)
    model = WhisperForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    inputs = WhisperProcessor.from_pretrained(PATH)(
        samples, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest",
        return_attention_mask=True,
    )  # fmt: skip
    made: Any = model.generate(**inputs, return_timestamps=True, return_segments=True, language="en")
    answer = llm.transcribe((samples, RATE), language="en")
    expected = [one["tokens"].tolist() for one in made["segments"][0]]
    assert [one.token_ids for one in answer.segments] == expected
    assert len({one.seek_s for one in answer.segments}) > 2


def test_speakers_that_the_training_has_not_heard(llm: LLM) -> None:
    """Texts of the held-out part."""
    pytest.importorskip("espeakng_loader")
    recipe = str(Path(__file__).parents[2] / "examples" / "quickstart_speech")
    sys.path.insert(0, recipe)
    try:
        from espeak import Voice, say
        from scoring import WordErrors
        from synthesize import HELD_OUT
    finally:
        sys.path.remove(recipe)
    errors = WordErrors()
    audio: list[Any] = []
    for number, text in enumerate(SENTENCES):
        voice = Voice(("en-us", "en")[number % 2], HELD_OUT[number % len(HELD_OUT)], speed=150)
        audio.append((say(SAID.get(text, text), voice).samples, RATE))
    for text, answer in zip(SENTENCES, llm.transcribe(audio, use_tqdm=False), strict=True):
        errors.add(text, answer.text)
    assert errors.rate < 80, errors
