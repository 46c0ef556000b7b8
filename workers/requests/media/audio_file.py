"""Audio files to samples. FFmpeg's libraries decode, through PyAV, whose wheel brings them: loaded with the
first file, as workers of texts and images never have one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from tandem.errors import InvalidRequest

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

Samples = npt.NDArray[np.float32]
# Called some times a second while a file is decoded, with the seconds of it so far. What it raises ends that.
Watch = Callable[[float], None]

FIELD: Final = "multi_modal_data.audio"
LOUDEST: Final = 1e4  # beyond it spectra overflow float32
_PART: Final = 2**16  # samples given out at a time; one frame of a low rate may become millions
# Containers that hold what they name. Playlists, which FFmpeg reads too, would open files and addresses.
_FORMATS: Final = (
    "wav,w64,aiff,au,caf,flac,mp3,ogg,aac,ac3,amr,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,avi,mpeg,mpegts,"
    "flv"
)
# Decoders of audio. Any other stream of a file stays closed: to say what a video is like, FFmpeg decodes a
# picture of it, of any size.
_NAMED: Final = (
    "aac,aac_fixed,aac_latm,ac3,ac3_fixed,alac,amrnb,amrwb,eac3,flac,gsm,gsm_ms,libopencore_amrnb,"
    "libopencore_amrwb,libopus,libspeex,libvorbis,mp1,mp1float,mp2,mp2float,mp3,mp3float,opus,speex,vorbis,"
    "wavpack,wmalossless,wmapro,wmav1,wmav2"
)
# Samples a second. The filter of a resampler grows with a high rate, what a packet becomes with a low one.
_LOWEST_RATE: Final = 100
_HIGHEST_RATE: Final = 768_000
_PACKET: Final = 2**16  # bytes of uncompressed audio that are read at a time: FFmpeg's 4,096 take far longer
# Channels are averaged: full scale in each stays full scale.
_MIX: Final = {"rematrix_maxval": "1.0"}
_TIME_BASE: Final = 1_000_000  # units of a container's duration in a second: AV_TIME_BASE


def check_audio(data: bytes | BinaryIO, longest_s: float, padding_s: float = 0.0) -> float | None:
    """Reads a file's header. Returns the seconds that it says, None where it says none. Raises InvalidRequest
    where it is no audio or says that it is too long.

    Up to padding_s seconds more are let pass. A header may lie: `read_audio` checks what is decoded.
    """
    with _opened(data) as (container, stream):
        if container.format.name == "aac":
            return None  # a raw stream: FFmpeg takes the first frames' bit rate for all
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration_s = container.duration / _TIME_BASE
        else:
            return None
        if duration_s > longest_s + padding_s:
            raise _too_long(duration_s, longest_s)
        return duration_s


def read_audio(data: bytes, rate: int, longest_s: float, padding_s: float = 0.0) -> Samples:
    """What `decode_audio` gives, float32 [samples]: no more is held in memory than the limit says."""
    return np.concatenate(list(decode_audio(data, rate, longest_s, padding_s)))


def decode_audio(
    data: bytes, rate: int, longest_s: float, padding_s: float = 0.0, watch: Watch | None = None
) -> Iterator[Samples]:
    """A file's samples in parts of some milliseconds, float32 [n] and not empty: mono, at `rate` samples a
    second, in [-1, 1].

    Channels are mixed and other rates resampled by libswresample. Raises InvalidRequest for what is no audio,
    is damaged, empty or not finite, and as soon as more than `longest_s` and `padding_s` seconds together are
    decoded; what `watch` raises, which is called before each part and whenever the file is read.
    """
    from av.audio.resampler import AudioResampler

    seconds, empty = Fraction(), True

    def look() -> None:
        if watch is not None:
            watch(float(seconds))

    with _opened(_Watched(data, look)) as (container, stream):
        resampler = AudioResampler(format="flt", layout="mono", rate=rate, options=_MIX)
        first: tuple[int, str, str] | None = None
        for frame in container.decode(stream):
            kind = frame.sample_rate, frame.layout.name, frame.format.name
            if not _LOWEST_RATE <= frame.sample_rate <= _HIGHEST_RATE:
                raise InvalidRequest(
                    f"has {frame.sample_rate} samples a second, not {_LOWEST_RATE} to {_HIGHEST_RATE}",
                    field=FIELD,
                )
            if first is None:
                first = kind
            elif kind != first:
                raise InvalidRequest("changes its sample rate, channels or format midway", field=FIELD)
            seconds += Fraction(frame.samples, frame.sample_rate)
            if seconds > longest_s + padding_s:
                raise _too_long(None, longest_s)
            for part in _samples(resampler.resample(frame)):
                look()
                empty = False
                yield part
        for part in _samples(resampler.resample(None)):
            empty = False
            yield part
    if empty:
        raise InvalidRequest("has no samples", field=FIELD)


class _Watched(io.BytesIO):
    """A file that is looked at whenever FFmpeg reads: from one frame to the next it may read to the end, past
    millions of other streams' packets."""

    def __init__(self, data: bytes, look: Callable[[], None]) -> None:
        super().__init__(data)
        self._look = look

    def read(self, size: int | None = -1, /) -> bytes:
        self._look()
        return super().read(size)


def _samples(frames: Iterable[AudioFrame]) -> Iterator[Samples]:
    for frame in frames:
        samples = frame.to_ndarray()[0]
        if not np.abs(samples).max(initial=0) <= LOUDEST:  # nor NaN
            raise InvalidRequest(
                f"has samples that are no numbers up to {LOUDEST:g}; full scale is 1", field=FIELD
            )
        for start in range(0, len(samples), _PART):
            yield samples[start : start + _PART]


@contextmanager
def _opened(data: bytes | BinaryIO) -> Iterator[tuple[InputContainer, AudioStream]]:
    import av

    file = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with av.open(file, "r", options=_options(), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise InvalidRequest("has no audio track", field=FIELD)
            yield container, container.streams.audio[0]
    except av.FFmpegError as error:
        raise InvalidRequest(f"cannot be decoded as audio: {error.strerror}", field=FIELD) from None


@cache
def _options() -> dict[str, str]:
    import av

    uncompressed = sorted(name for name in av.codecs_available if name.startswith(("pcm_", "adpcm_")))
    return {
        "format_whitelist": _FORMATS, "codec_whitelist": ",".join([_NAMED, *uncompressed]),
        "protocol_whitelist": "none", "max_size": str(_PACKET),
    }  # fmt: skip


def _too_long(duration_s: float | None, longest_s: float) -> InvalidRequest:
    got = "more" if duration_s is None else f"{duration_s:.1f} s"
    return InvalidRequest(f"has {got}, the limit is {longest_s:g} s", field=FIELD)
