"""What Whisper's decoder starts from, held to transformers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration
from whisper import EOS, LANGUAGES, NO_TIMESTAMPS, SOT, TRANSCRIBE, TRANSLATE

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.workers.requests.speech import Speech

MULTILINGUAL = {
    "is_multilingual": True, "lang_to_id": {f"<|{code}|>": i for code, i in LANGUAGES.items()},
    "task_to_id": {"translate": TRANSLATE, "transcribe": TRANSCRIBE}, "no_timestamps_token_id": NO_TIMESTAMPS,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "large-v3": MULTILINGUAL,
    "base": {**MULTILINGUAL, "forced_decoder_ids": [[1, None], [2, TRANSCRIBE]]},
    "fine-tuned": {
        **MULTILINGUAL, "forced_decoder_ids": [[1, LANGUAGES["de"]], [2, TRANSLATE], [3, NO_TIMESTAMPS]],
    },
    "says": {**MULTILINGUAL, "language": "german", "task": "translate"},
    "english": {
        "is_multilingual": False, "no_timestamps_token_id": NO_TIMESTAMPS,
        "forced_decoder_ids": [[1, NO_TIMESTAMPS]],
    },
    "old": {"forced_decoder_ids": [[1, None], [2, TRANSCRIBE]]},
    "nothing": {},
}  # fmt: skip
DETECTED = LANGUAGES["fr"]


def theirs(config: dict[str, Any], language: str | None, task: str | None) -> list[int]:
    """transformers' own, where the language that it detects is DETECTED."""
    generation = GenerationConfig(
        decoder_start_token_id=SOT, eos_token_id=EOS, return_timestamps=False, **config
    )
    model = WhisperForConditionalGeneration

    class Stub:
        device = torch.device("cpu")

        def detect_language(self, **_: Any) -> torch.Tensor:
            return torch.tensor([DETECTED])

    model._set_language_and_task(language, task, None, generation)
    ids: list[int] = model._retrieve_init_tokens(Stub(), None, 1, generation, GenerationConfig(), 1, {})[
        0
    ].tolist()
    return ids


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("language", "task"),
    list(itertools.product([None, "en", "French", "<|de|>"], [None, "transcribe", "translate"])),
)
def test_what_the_decoder_starts_from_is_transformers(
    name: str, language: str | None, task: str | None
) -> None:
    config = CONFIGS[name]
    speech = Speech.read({}, config)
    try:
        expected = theirs(config, language, task)
    except ValueError:
        with pytest.raises(InvalidRequest):
            speech.opening(language, task)
        return
    opening = speech.opening(language, task)
    assert [SOT, *(ids[0] if len(ids) == 1 else DETECTED for ids in opening)] == expected
    every = tuple(LANGUAGES.values())
    assert all(ids == every for ids in opening if len(ids) > 1)


def test_the_older_key_may_be_in_config_json() -> None:
    speech = Speech.read({"forced_decoder_ids": [[1, None], [2, TRANSLATE]]}, MULTILINGUAL)
    assert speech.opening(None, None)[1:] == ((TRANSLATE,), (NO_TIMESTAMPS,))


@pytest.mark.parametrize(
    ("language", "task", "field", "why"),
    [
        ("xx", None, "source_language", "'xx' is not one of this model's languages: de, en, fr"),
        (None, "summarize", "task", "it has transcribe, translate"),
    ],
)
def test_what_the_model_does_not_know_is_refused(language: Any, task: Any, field: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        Speech.read({}, MULTILINGUAL).opening(language, task)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "config",
    [
        {"forced_decoder_ids": 3},
        {"forced_decoder_ids": [[2, 5]]},
        {"lang_to_id": [1]},
        {"task_to_id": {"a": "b"}},
        {"language": 3},
        {"task": ["transcribe"]},
        {"no_timestamps_token_id": "<|notimestamps|>"},
    ],
)
def test_a_malformed_configuration_is_said(config: dict[str, Any]) -> None:
    with pytest.raises(ModelLoadError):
        Speech.read({}, config)
