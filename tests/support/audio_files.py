"""Audio files as clients send them, made in memory."""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream

Samples = npt.NDArray[np.float32]


def wav(samples: npt.NDArray[Any], rate: int, channels: int = 1) -> bytes:
    """float32 PCM; several channels are interleaved already. The header says `rate`, whatever that is."""
    data = samples.astype("<f4").tobytes()
    block = 4 * channels
    head = struct.pack("<IHHIIHHH", 18, 3, channels, rate, rate * block & 0xFFFFFFFF, block, 32, 0)
    parts = b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def encoded(samples: Samples, rate: int, container: str, codec: str, *, stereo: bool = False) -> bytes:
    """A file of this container and codec; stereo: both channels are `samples`."""
    layout = "stereo" if stereo else "mono"
    planes = np.stack([samples, samples]) if stereo else samples[None]
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
    frame.sample_rate = rate
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        stream.codec_context.open()
        resampler = AudioResampler(
            format=stream.format, layout=layout, rate=rate, frame_size=stream.codec_context.frame_size or 0
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def repeated(file: bytes, container: str, seconds: float) -> bytes:
    """The packets of a file's one stream again and again, as often as it takes: nothing is encoded."""
    with av.open(io.BytesIO(file), "r") as source:
        packets = [packet for packet in source.demux(source.streams[0]) if packet.size]
        template, made = source.streams[0], io.BytesIO()
        base, parts = packets[0].time_base, [bytes(packet) for packet in packets]
        each = packets[-1].duration or 1
        with av.open(made, "w", format=container) as output:
            stream = output.add_stream_from_template(template)
            for number in range(int(seconds / (each * base))):
                packet = av.Packet(parts[number % len(parts)])
                packet.stream, packet.time_base, packet.duration = stream, base, each
                packet.pts = packet.dts = number * each
                output.mux(packet)
    return made.getvalue()
