"""A whole recording's spectrogram, block by block, held to transformers' of the whole."""

from __future__ import annotations

import time
from fractions import Fraction
from io import BytesIO

import av
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
from tandem.workers.requests.media.voice_activity import VoiceActivity

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
    said_s = processor.recording_s(Media("audio", forged), 2.0)
    assert said_s is not None
    assert said_s <= 2.0
    raw = encoded(sound(3, 6.0), RATE, "adts", "aac")
    assert processor.recording_s(Media("audio", raw), 2.0) is None
    for file in (raw, bytes(data)):
        with pytest.raises(InvalidRequest, match="the limit is 2 s"):
            processor.spectrogram(Media("audio", file), 2.0, followed_by_silence=False)
    with pytest.raises(InvalidRequest, match=r"8\.0 s, the limit is 2 s"):
        processor.recording_s(Media("audio", bytes(data)), 2.0)
    broken = Media("audio", wav(np.full(40_000, np.nan), RATE))
    with pytest.raises(InvalidRequest, match="no numbers"):
        processor.spectrogram(broken, 10.0, followed_by_silence=False)


def many_packets(count: int) -> bytes:
    """Matroska with a little sound, and so many packets of another stream before its last."""
    file, size, times = BytesIO(), 1600, (Fraction(1, RATE), Fraction(1, 1000))
    with av.open(file, "w", format="matroska") as output:
        streams = [output.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in times]
        for stream in streams:
            stream.codec_context.open()
        output.start_encoding()

        def put(number: int, data: bytes, at: int) -> None:
            packet = av.Packet(data)
            packet.stream, packet.time_base = streams[number], times[number]
            packet.pts = packet.dts = at
            packet.duration = 1
            output.mux(packet)

        put(0, bytes(2 * size), 0)
        for at in range(count):
            put(1, bytes(2), at)
        put(0, bytes(2 * size), RATE * count // 1000)
    return file.getvalue()


LOOKED_AT = {
    "minutes": lambda: wav(sound(4, 150.0), RATE),
    "a hundred samples a second": lambda: wav(sound(5, 9.0)[:140_000], 100),
    "packets of another stream": lambda: many_packets(100_000),
}


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_recording_is_looked_at_some_times_a_second(extractor: WhisperFeatureExtractor, name: str) -> None:
    """While it is decoded, heard and transformed, whatever is in the file."""
    media, longest_s = Media("audio", LOOKED_AT[name]()), 0.0
    last_s = time.thread_time()

    def watch(seconds: float) -> None:
        nonlocal last_s, longest_s
        longest_s, last_s = max(longest_s, time.thread_time() - last_s), time.thread_time()
        assert seconds <= 1500.0

    AudioProcessor(extractor, FRONT).spectrogram(
        media, 7200.0, followed_by_silence=True, voice=VoiceActivity(), watch=watch
    )
    watch(0.0)
    assert longest_s < 0.4, "seconds of a core from one look to the next"


def test_what_the_watch_raises_ends_it(extractor: WhisperFeatureExtractor) -> None:
    media = Media("audio", wav(sound(4, 10.0), RATE))
    for end_s in (0.0, 5.0):
        heard_s = []

        def watch(seconds: float, end_s: float = end_s, heard_s: list[float] = heard_s) -> None:
            heard_s.append(seconds)
            if seconds >= end_s:
                raise LookupError

        with pytest.raises(LookupError):
            AudioProcessor(extractor, FRONT).spectrogram(media, 10.0, followed_by_silence=True, watch=watch)
        assert end_s <= heard_s[-1] < end_s + 0.5
