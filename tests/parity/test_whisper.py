"""Whisper's short form, held to `WhisperForConditionalGeneration.generate` at batch 1, token for token."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audio_files import encoded, wav
from real_whisper import real_whisper
from whisper import (
    CLEAR,
    EOS,
    GEOMETRIES,
    LANGUAGES,
    NO_TIMESTAMPS,
    RATE,
    TOKENS,
    TRANSCRIBE,
    Reference,
    audio,
    cases,
    make_whisper,
    said,
    sound,
    text_ids,
    theirs,
)

from tandem import LLM, BeamSearchParams, InvalidRequest, SamplingParams
from tandem.inputs import Media
from tandem.workers.requests.media.audio import AudioProcessor

GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)
TASKS: list[dict[str, str]] = [
    {},
    {"source_language": "fr"},
    {"source_language": "german", "task": "translate"},
    {"task": "translate"},
]


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda geometry: make_whisper(tmp_path_factory.mktemp(geometry), geometry))


SOUND = audio(sound(0))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_language_and_task_in_one_batch(whisper: Callable[[str], Path], geometry: str) -> None:
    folder = whisper(geometry)
    reference = Reference(folder)
    prompts, options, expected = [], [], []
    for number, asked in enumerate(TASKS if reference.multilingual else TASKS[:1]):
        for samples, ids in cases(reference, asked, 4, first=50 * number):
            prompts.append({"prompt": "", "multi_modal_data": {"audio": (samples, RATE)}})
            options.append(asked)
            expected.append(ids)
    opened = [said(reference, asked) for asked in options]
    params = [GREEDY] * len(prompts)
    with LLM(str(folder), dtype="float32", max_num_seqs=8) as llm:
        outputs = llm.generate(
            prompts,
            params,
            source_language=[asked.get("source_language") for asked in options],
            task=[asked.get("task") for asked in options],
            use_tqdm=False,
        )
        assert [text_ids(o.outputs[0].token_ids, n) for o, n in zip(outputs, opened, strict=True)] == expected
        # Alone, as in the batch.
        again = llm.generate(prompts[0], params[0], **options[0])
        assert again[0].outputs[0].token_ids == outputs[0].outputs[0].token_ids
        stats = llm.stats()
        assert (stats.running, stats.free_pages) == (0, stats.total_pages)


def test_the_detected_language_is_the_first_token(whisper: Callable[[str], Path]) -> None:
    reference = Reference(whisper("base"))
    samples = [sound(seed) for seed in range(6)]
    with LLM(str(whisper("base")), dtype="float32") as llm:
        outputs = llm.generate([audio(one) for one in samples], GREEDY, use_tqdm=False)
    for output, one in zip(outputs, samples, strict=True):
        detected = int(reference.model.detect_language(reference.features(one))[0])
        assert output.outputs[0].token_ids[:3] == [detected, TRANSCRIBE, NO_TIMESTAMPS]
    assert len({output.outputs[0].token_ids[0] for output in outputs}) > 1


@pytest.mark.parametrize("asked", [{"source_language": "en"}, {}], ids=["said", "detected"])
def test_beams(whisper: Callable[[str], Path], asked: dict[str, str]) -> None:
    reference = Reference(whisper("base"))
    samples = [sound(seed) for seed in range(12)]
    opened = said(reference, asked)
    expected = [
        reference.generate(one, max_new_tokens=12, num_beams=3, length_penalty=1.4, **theirs(asked))
        for one in samples
    ]
    with LLM(str(whisper("base")), dtype="float32") as llm:
        params = BeamSearchParams(num_beams=3, length_penalty=1.4, max_tokens=12)
        outputs = llm.generate([audio(one) for one in samples], params, use_tqdm=False, **asked)
    assert [text_ids(output.outputs[0].token_ids, opened) for output in outputs] == expected


def test_tensor_parallel(whisper: Callable[[str], Path]) -> None:
    reference = Reference(whisper("base"))
    found = cases(reference, {"source_language": "en"}, 5)
    with LLM(str(whisper("base")), dtype="float32", tensor_parallel_size=2) as llm:
        outputs = llm.generate(
            [audio(samples) for samples, _ in found], GREEDY, source_language="en", use_tqdm=False
        )
    assert [text_ids(output.outputs[0].token_ids, 0) for output in outputs] == [ids for _, ids in found]


@pytest.mark.parametrize("async_encode", [False, True])
def test_preempted_and_overlapped(whisper: Callable[[str], Path], async_encode: bool) -> None:
    """Too few pages for all: encoder inputs are encoded again, from the features that are kept."""
    reference = Reference(whisper("large"))
    found = cases(reference, {"source_language": "en"}, 8)
    with LLM(
        str(whisper("large")), dtype="float32", page_size=4, num_pages=64, max_num_seqs=8,
        async_encode=async_encode, check_invariants=True,
    ) as llm:  # fmt: skip
        outputs = llm.generate(
            [audio(samples) for samples, _ in found], GREEDY, source_language="en", use_tqdm=False
        )
        assert llm.stats().preemptions > 0
    assert [text_ids(output.outputs[0].token_ids, 0) for output in outputs] == [ids for _, ids in found]


def test_a_file_its_path_its_samples_and_another_rate(whisper: Callable[[str], Path], tmp_path: Path) -> None:
    reference = Reference(whisper("base"))
    (samples, ids), *_ = cases(reference, {"source_language": "en"}, 1)
    path = tmp_path / "sound.wav"
    path.write_bytes(wav(samples, RATE))
    same = [(samples, RATE), (samples.astype(np.float64), RATE), path.read_bytes(), path, str(path)]
    with LLM(str(whisper("base")), dtype="float32") as llm:
        outputs = llm.generate([audio(one) for one in same], GREEDY, source_language="en", use_tqdm=False)
        assert [text_ids(output.outputs[0].token_ids, 0) for output in outputs] == [ids] * len(same)
        # Decoded, mixed and resampled: an answer, though not to the last bit the same input.
        file = encoded(sound(1), RATE, "flac", "flac", stereo=True)
        (other,) = llm.generate(audio(file), GREEDY, source_language="en")
        assert other.outputs[0].token_ids


def test_what_the_decoder_starts_from_may_be_said(whisper: Callable[[str], Path]) -> None:
    """A start token alone is completed, a longer prompt is taken as it is."""
    whole = "<|startoftranscript|> <|fr|> <|transcribe|> <|notimestamps|>"
    with LLM(str(whisper("base")), dtype="float32") as llm:
        implicit, explicit, plain, said = llm.generate(
            [
                {"prompt": "<|startoftranscript|>", "multi_modal_data": {"audio": (sound(3), RATE)}},
                {"encoder_prompt": audio((sound(3), RATE)), "decoder_prompt": "<|startoftranscript|>"},
                audio((sound(3), RATE)),
                {"encoder_prompt": audio((sound(3), RATE)), "decoder_prompt": whole},
            ],
            GREEDY,
            use_tqdm=False,
        )
        (french,) = llm.generate(audio((sound(3), RATE)), GREEDY, source_language="fr")
    assert implicit.outputs[0].token_ids == explicit.outputs[0].token_ids == plain.outputs[0].token_ids
    assert said.outputs[0].token_ids == french.outputs[0].token_ids
    assert french.prompt_token_ids[1:] == [LANGUAGES["fr"], TRANSCRIBE, NO_TIMESTAMPS]


REFUSED: list[tuple[Any, dict[str, str], str, str]] = [
    ("hello", {}, "multi_modal_data.audio", "reads audio"),
    ({"prompt": "", "multi_modal_data": {"audio": b"RIFF"}}, {}, "multi_modal_data.audio", "decoded"),
    ({"prompt": "", "multi_modal_data": {"video": b"x"}}, {}, "multi_modal_data.video", "audio"),
    ({"prompt": "", "multi_modal_data": {"image": b"x"}}, {}, "multi_modal_data.image", "takes audio"),
    ({"prompt": "", "multi_modal_data": {"audio": "/no/such.wav"}}, {}, "multi_modal_data.audio", "file"),
    (SOUND | {"prompt": "<|startoftranscript|> <|fr|>"}, {"task": "translate"}, "task", "decoder prompt"),
    (SOUND, {"source_language": "xx"}, "source_language", "en"),
    (SOUND, {"target_language": "en"}, "target_language", "translate"),
    (audio(np.zeros(40_000)), {}, "multi_modal_data.audio", "2.5 s, the limit is 1 s"),
    (audio([(sound(0), RATE)] * 2), {}, "multi_modal_data.audio", "2 take 100 encoder positions"),
    (
        {"encoder_prompt": SOUND | {"prompt": "hello"}, "decoder_prompt": None},
        {},
        "encoder_prompt",
        "no text",
    ),
]


@pytest.mark.parametrize(("prompt", "options", "field", "why"), REFUSED)
def test_what_cannot_be_is_refused_by_name(
    whisper: Callable[[str], Path], prompt: Any, options: dict[str, str], field: str, why: str
) -> None:
    with LLM(str(whisper("base")), dtype="float32") as llm:
        with pytest.raises(InvalidRequest, match=why) as refused:
            llm.generate(prompt, GREEDY, **options)
        assert refused.value.field == field
        assert llm.generate(audio((sound(0), RATE)), GREEDY)  # it goes on


@pytest.mark.parametrize("size", ["tiny.en", "base"])
def test_real_weights(size: str) -> None:
    folder = real_whisper(size)
    reference = Reference(folder)
    asked = {"source_language": "en"} if size == "base" else {}
    samples = [sound(seed, seconds) for seed, seconds in enumerate((1.0, 4.0, 12.0, 30.0))]
    with LLM(str(folder), dtype="float32") as llm:
        outputs = llm.generate([audio((one, RATE)) for one in samples], GREEDY, use_tqdm=False, **asked)
    for one, output in zip(samples, outputs, strict=True):
        ids = reference.generate(one, max_new_tokens=TOKENS, **theirs(asked))
        eos = reference.model.generation_config.eos_token_id
        ours = [token for token in output.outputs[0].token_ids if token != eos]
        assert ours == ids or reference.lead(one, ids, **theirs(asked)) < CLEAR


@torch.no_grad()
def test_the_spectrogram_is_transformers(whisper: Callable[[str], Path]) -> None:
    from tandem.inputs import Media
    from tandem.workers.models.families import spec_of
    from tandem.workers.models.model_folder import read_json
    from tandem.workers.requests.media import read_processor

    for geometry in GEOMETRIES:
        folder = whisper(geometry)
        encoder = spec_of(read_json(folder, "config.json")).encoder
        assert encoder is not None
        processor = read_processor(folder, encoder.front)
        assert processor is not None
        for seconds in (0.01, 0.3, 1.0):
            features = processor.features(Media("audio", wav(sound(5, seconds), RATE)))
            expected = Reference(folder).features(sound(5, seconds))[0]
            torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def test_samples_and_targets_of_one_recording_decode_it_once(
    whisper: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    features = AudioProcessor.features

    def counted(processor: AudioProcessor, media: Media) -> torch.Tensor:
        decoded.append(len(media.data))
        return features(processor, media)

    monkeypatch.setattr(AudioProcessor, "features", counted)
    with LLM(str(whisper("base")), dtype="float32", max_num_seqs=2) as llm:
        (several,) = llm.generate(audio(sound(0)), SamplingParams(n=6, temperature=1.0, max_tokens=4, seed=1))
        assert len(several.outputs) == 6
        assert len(decoded) == 1
        llm.score(audio(sound(1)), ["ba be", "da", "fu"], source_language="en")
        assert len(decoded) == 2
        # More recordings than are decoded ahead, each with its own answer.
        many = [audio(sound(seed)) for seed in range(12)]
        alone = [llm.generate(one, GREEDY, source_language="en")[0].outputs[0].token_ids for one in many]
        together = llm.generate(many, GREEDY, source_language="en", use_tqdm=False)
        assert [output.outputs[0].token_ids for output in together] == alone


def test_the_score_of_an_answer_is_transformers(whisper: Callable[[str], Path]) -> None:
    reference = Reference(whisper("base"))
    text = "ba be da"
    with LLM(str(whisper("base")), dtype="float32") as llm:
        (scores,) = llm.score(audio(sound(2)), text, source_language="en")
    (score,) = scores.scores
    prefix = reference.opening({"language": "en"})
    assert score.token_ids[-1] == EOS
    with torch.no_grad():
        ids = torch.tensor([[*prefix, *score.token_ids]])
        logits = reference.model(reference.features(sound(2)), decoder_input_ids=ids).logits[0]
    expected = logits.log_softmax(-1)[len(prefix) - 1 : -1].gather(1, ids[0, len(prefix) :, None]).squeeze(1)
    assert score.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_damaged_recording_ends_the_call_and_not_the_llm(whisper: Callable[[str], Path]) -> None:
    broken = wav(np.full(1_000, np.nan), RATE)
    with LLM(str(whisper("base")), dtype="float32") as llm:
        with pytest.raises(InvalidRequest, match="no numbers"):
            llm.generate([audio(sound(0)), audio(broken), audio(sound(1))], GREEDY, use_tqdm=False)
        assert llm.generate(audio(sound(0)), GREEDY)[0].outputs[0].token_ids
        stats = llm.stats()
        assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
