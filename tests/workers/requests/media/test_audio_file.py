"""What clients send as audio: every container that is usual, and what is none."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from audio_files import encoded, wav

from tandem.errors import InvalidRequest
from tandem.workers.requests.media.audio_file import _opened, check_audio, decode_audio, read_audio

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
        (wav(np.full(100, np.nan), RATE), "no numbers up to 10000"),
        (wav(np.full(100, 1e18), RATE), "no numbers up to 10000"),
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


@pytest.mark.parametrize("rate", [1, 99])
def test_a_rate_whose_packets_would_be_huge_is_refused(rate: int) -> None:
    with pytest.raises(InvalidRequest, match=f"has {rate} samples a second, not 100 to 768000"):
        read_audio(wav(tone(RATE), rate), RATE, 1e6)


def test_uncompressed_audio_is_read_in_large_parts() -> None:
    """Each takes the interpreter, for which other threads wait meanwhile."""
    samples = tone(RATE, 30.0)
    parts = list(decode_audio(wav(samples, RATE), RATE, 30))
    assert len(parts) <= 1 + len(samples) * 4 // 2**16
    assert np.array_equal(np.concatenate(parts), samples)


def test_a_rate_whose_filter_would_be_huge_is_refused() -> None:
    """A resampler's filter for this prime takes 800 MB and 13 s."""
    with pytest.raises(InvalidRequest, match="99999989 samples a second"):
        read_audio(wav(tone(RATE), 99_999_989), RATE, 30)


def test_a_stream_that_changes_midway_is_refused_by_name() -> None:
    mono, stereo = (encoded(tone(44_100), 44_100, "adts", "aac", stereo=stereo) for stereo in (False, True))
    with pytest.raises(InvalidRequest, match="midway"):
        read_audio(mono + stereo, RATE, 30)


@pytest.mark.parametrize("container", ["avi", "mov"])
def test_pictures_beside_the_sound_are_not_decoded(container: str) -> None:
    """FFmpeg decodes a picture, of any size, to say what a video is like."""
    file = BytesIO()
    with av.open(file, "w", format=container) as output:
        sound = output.add_stream("pcm_s16le", rate=RATE, layout="mono")
        video = output.add_stream("png", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "rgba"
        picture = av.Packet(_png(64))
        picture.stream, picture.pts, picture.dts, picture.is_keyframe = video, 0, 0, True
        picture.time_base = Fraction(1, 25)
        output.mux(picture)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    with _opened(file.getvalue()) as (opened, _):
        assert opened.streams.video[0].codec_context.pix_fmt is None
    assert len(read_audio(file.getvalue(), RATE, 30)) == RATE


def _png(side: int) -> bytes:
    """Black, RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    packer, row = zlib.compressobj(1), bytes(4 * side + 1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_raw_stream_that_begins_quietly_is_not_taken_for_a_long_one() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, 44_100 * 3).astype(np.float32)
    data = encoded(np.concatenate([np.zeros(44_100 * 5, np.float32), noise]), 44_100, "adts", "aac")
    check_audio(data, 10)
    assert len(read_audio(data, RATE, 10)) == pytest.approx(8 * RATE, abs=RATE * 0.2)
