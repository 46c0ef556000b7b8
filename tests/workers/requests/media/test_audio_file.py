"""What clients send as audio: every container that is usual, and what is none."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from audio_files import encoded, wav

from tandem.errors import InvalidRequest
from tandem.workers.requests.media.audio_file import check_audio, read_audio

RATE = 16_000


def tone(rate: int, seconds: float = 2.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_samples_at_the_models_rate_are_taken_as_they_are() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, RATE).astype(np.float32)
    assert np.array_equal(read_audio(wav(samples, RATE), RATE, 30), samples)


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("wav", "pcm_s16le", 8_000),  # telephone
        ("wav", "pcm_s24le", 44_100),
        ("flac", "flac", 44_100),
        ("mp3", "libmp3lame", 44_100),
        ("ogg", "libopus", 48_000),
        ("webm", "libopus", 48_000),
        ("mp4", "aac", 44_100),
    ],
)
@pytest.mark.parametrize("stereo", [False, True])
def test_any_container_and_rate(container: str, codec: str, rate: int, stereo: bool) -> None:
    data = encoded(tone(rate), rate, container, codec, stereo=stereo)
    samples = read_audio(data, RATE, 30)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(2 * RATE, abs=RATE * 0.2)
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) * RATE / len(middle) == pytest.approx(440, abs=2)
    # Channels are averaged, so two equal ones are as loud as one.
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.06)
    check_audio(data, 30)


def test_a_file_of_more_seconds_than_allowed_is_refused_by_its_header_and_by_its_samples() -> None:
    data = encoded(tone(44_100), 44_100, "flac", "flac")
    with pytest.raises(InvalidRequest, match=r"has 2.0 s, the limit is 1.5 s") as refused:
        check_audio(data, 1.5)
    assert refused.value.field == "multi_modal_data.audio"
    with pytest.raises(InvalidRequest, match=r"has more, the limit is 1.5 s"):
        read_audio(data, RATE, 1.5)


def test_a_bomb_is_refused_while_it_is_decoded() -> None:
    """An hour of silence is a small file: no more is held than what is allowed."""
    data = encoded(np.zeros(16_000 * 1800, np.float32), 16_000, "flac", "flac")
    assert len(data) < 500_000
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="the limit is 30 s"):
        read_audio(data, RATE, 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * RATE * 4 * 3


@pytest.mark.parametrize("rate", [0, 1, 2**32 - 1])
def test_a_forged_rate_allocates_nothing(rate: int) -> None:
    """16,000 samples at one a second would be 256 million at 16 kHz."""
    try:
        samples = read_audio(wav(tone(RATE), rate), RATE, 30)
    except InvalidRequest:
        return
    assert len(samples) < RATE


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot be decoded"),
        (b"no audio", "cannot be decoded"),
        (wav(tone(RATE), RATE)[:30], "cannot be decoded"),
        (wav(np.zeros(0), RATE), "has no samples"),
        (wav(np.full(100, np.nan), RATE), "not finite"),
        # FFmpeg would open what these name.
        (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hosts\n#EXT-X-ENDLIST\n",
            "cannot be decoded",
        ),
        (b"ffconcat version 1.0\nfile /etc/hosts\n", "cannot be decoded"),
    ],
)
def test_what_is_no_audio_is_refused_by_name(data: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        read_audio(data, RATE, 30)
    assert refused.value.field == "multi_modal_data.audio"


def test_a_file_that_was_cut_off_has_what_came() -> None:
    samples = tone(RATE)
    assert len(read_audio(wav(samples, RATE)[:-4000], RATE, 30)) == len(samples) - 1000
