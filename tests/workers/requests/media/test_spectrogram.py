"""A whole recording's spectrogram, block by block, held to transformers' of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from audio_files import encoded, wav
from transformers import WhisperFeatureExtractor
from whisper import RATE, sound

from tandem import InvalidRequest
from tandem.inputs import Media
from tandem.workers.models.spec import FrontSpec
from tandem.workers.requests.media import spectrogram
from tandem.workers.requests.media.audio import AudioProcessor
from tandem.workers.requests.media.spectrogram import Spectrogram

FRONT = FrontSpec(  # windows of a second
    kind="audio_convolutions", modality="audio", placeholder_id=0, positions=50, features=(80, 100)
)


@pytest.fixture(scope="module")
def extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80, chunk_length=1)


@pytest.mark.parametrize("block_s", [1, 60])
@pytest.mark.parametrize("count", [3, 201, 15_999, 16_000, 16_001, 16_159, 47_840, 48_039, 60_123])
def test_as_transformers_of_the_whole(
    extractor: WhisperFeatureExtractor, monkeypatch: pytest.MonkeyPatch, count: int, block_s: int
) -> None:
    monkeypatch.setattr(spectrogram, "_BLOCK_S", block_s)
    # One loud place, which is every other's floor.
    samples = sound(count, 4.0)[:count] * np.where(np.arange(count) < count // 2, 1.0, 0.05).astype("f4")
    long = {"truncation": False, "padding": "longest"} if count > 16_000 else {}
    expected = extractor(samples, sampling_rate=RATE, return_tensors="pt", **long).input_features[0]
    media = Media("audio", wav(samples, RATE))
    made = AudioProcessor(extractor, FRONT).spectrogram(media, 10.0, followed_by_silence=False)
    assert made.frames == max(100, count // 160)
    assert made.duration_s == count / RATE
    torch.testing.assert_close(made.mel, expected, rtol=0, atol=1e-5)
    assert made.silence == pytest.approx(max(float(expected.max()) - 2.0, -1.5), abs=1e-5)


def test_followed_by_silence(extractor: WhisperFeatureExtractor) -> None:
    """openai-whisper: silence is put after the samples, and its frames are no content."""
    samples = sound(1, 1.3)
    media = Media("audio", wav(samples, RATE))
    made = AudioProcessor(extractor, FRONT).spectrogram(media, 10.0, followed_by_silence=True)
    whole = np.concatenate([samples, np.zeros(16_000, np.float32)])
    expected = extractor(
        whole, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest"
    ).input_features[0]
    torch.testing.assert_close(made.mel, expected[:, :130], rtol=0, atol=1e-5)


def test_a_window_is_filled_up_with_zeros() -> None:
    mel = torch.arange(12.0).reshape(2, 6)
    made = Spectrogram(mel, 0.06)
    assert made.window(1, 4, 3).tolist() == [[[1, 2, 3], [7, 8, 9]]]
    assert made.window(4, 6, 3).tolist() == [[[4, 5, 0], [10, 11, 0]]]


def test_what_a_header_forges_is_refused_while_decoding(extractor: WhisperFeatureExtractor) -> None:
    """A file whose header says a tenth of what it holds, and one that says nothing."""
    processor = AudioProcessor(extractor, FRONT)
    data = bytearray(wav(sound(2, 8.0), RATE))
    forged = bytes(data[:24]) + (160_000).to_bytes(4, "little") + bytes(data[28:])
    assert processor.recording_s(Media("audio", forged), 2.0) <= 2.0
    raw = encoded(sound(3, 6.0), RATE, "adts", "aac")
    assert processor.recording_s(Media("audio", raw), 2.0) == 2.0
    for file in (raw, bytes(data)):
        with pytest.raises(InvalidRequest, match="the limit is 2 s"):
            processor.spectrogram(Media("audio", file), 2.0, followed_by_silence=False)
    with pytest.raises(InvalidRequest, match=r"8\.0 s, the limit is 2 s"):
        processor.recording_s(Media("audio", bytes(data)), 2.0)
    broken = Media("audio", wav(np.full(40_000, np.nan), RATE))
    with pytest.raises(InvalidRequest, match="no numbers"):
        processor.spectrogram(broken, 10.0, followed_by_silence=False)
