"""Prompts of every kind, read; above all those with media."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tandem.errors import InvalidRequest
from tandem.inputs import Media, PromptSide, split_prompt


def media(data: Any) -> tuple[Media, ...]:
    return split_prompt({"prompt": "", "multi_modal_data": data}).encoder.media


def test_a_waveform_becomes_a_wav_file_of_floats() -> None:
    samples = np.linspace(-1, 1, 100)
    [(modality, data, _)] = media({"audio": (samples, 16_000)})
    assert modality == "audio"
    assert data[:4] == b"RIFF"
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    format_, channels, rate, per_second, per_frame, bits = np.frombuffer(
        data[20:36], "<u2,<u2,<u4,<u4,<u2,<u2"
    )[0]
    assert (format_, channels, rate, per_second, per_frame, bits) == (3, 1, 16_000, 64_000, 4, 32)
    start = data.index(b"data")
    assert int.from_bytes(data[start + 4 : start + 8], "little") == 400
    assert np.frombuffer(data[start + 8 :], "<f4").tolist() == samples.astype(np.float32).tolist()


def test_files_are_read_and_modalities_ordered(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(b"fLaC")
    assert media({"image": b"PNG", "audio": [path, str(path), b"RIFF"]}) == (
        Media("audio", b"fLaC"),
        Media("audio", b"fLaC"),
        Media("audio", b"RIFF"),
        Media("image", b"PNG"),
    )


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        ([b"RIFF"], "multi_modal_data", "must be a dict"),
        ({"video": b""}, "multi_modal_data.video", "unknown modality"),
        ({"audio": 5}, "multi_modal_data.audio", "bytes or path, or"),
        ({"audio": np.zeros(5)}, "multi_modal_data.audio", "got ndarray"),
        ({"audio": "/nowhere/at/all"}, "multi_modal_data.audio", "cannot be read"),
        ({"audio": "/dev/zero"}, "multi_modal_data.audio", "is no file"),
        ({"audio": (np.zeros((2, 5)), 16_000)}, "multi_modal_data.audio", "must be mono floats"),
        ({"audio": (np.zeros(5, np.int16), 16_000)}, "multi_modal_data.audio", "got int16"),
        ({"audio": (np.array([0.0, np.nan]), 16_000)}, "multi_modal_data.audio", "not finite"),
        ({"audio": (np.zeros(5), 0)}, "multi_modal_data.audio", "sample rate"),
        ({"audio": (np.zeros(5), 16e3)}, "multi_modal_data.audio", "sample rate"),
        (
            {"image": (np.zeros(5), 16_000)},
            "multi_modal_data.image",
            "bytes or path, a PIL.Image or an array, got tuple",
        ),
    ],
)
def test_what_is_no_media_is_refused_by_name(data: Any, field: str, message: str) -> None:
    for prompt, prefix in (
        ({"prompt": "", "multi_modal_data": data}, ""),
        (
            {"encoder_prompt": {"prompt": "", "multi_modal_data": data}, "decoder_prompt": None},
            "encoder_prompt.",
        ),
    ):
        with pytest.raises(InvalidRequest, match=message) as caught:
            split_prompt(prompt)  # type: ignore[arg-type]
        assert caught.value.field == prefix + field


def test_only_encoders_read_media() -> None:
    prompt: Any = {"prompt": "", "multi_modal_data": {"audio": b"RIFF"}}
    with pytest.raises(InvalidRequest) as caught:
        split_prompt({"encoder_prompt": "a", "decoder_prompt": prompt})
    assert caught.value.field == "decoder_prompt.multi_modal_data"


def test_text_next_to_ids_is_only_shown() -> None:
    split = split_prompt({"prompt_token_ids": [5], "prompt": "shown"})
    assert split.encoder == PromptSide("shown", [5])
    assert not split.explicit
    with pytest.raises(InvalidRequest, match="must be a str, got int"):
        split_prompt({"prompt_token_ids": [5], "prompt": 3})  # type: ignore[arg-type]
