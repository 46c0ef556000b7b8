"""Speech from eSpeak NG, whose library and voices come in the wheel of `espeakng-loader`, with the times of
its words and sounds."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import espeakng_loader
import numpy as np
import numpy.typing as npt
from clips import PAUSE, RATE, Samples

# Constants of espeak_ng's speak_lib.h.
_SYNCHRONOUS: Final = 2
_PHONEME_EVENTS, _DONT_EXIT = 0x0001, 0x8000
_CHARACTERS, _UTF8 = 1, 1
_SPEED, _PITCH, _RANGE = 1, 3, 4
_LAST, _WORD, _PHONEME = 0, 1, 7
_EDGE_S: Final = 0.03  # kept around the first and last sound


class _Name(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Voice(NamedTuple):
    """A dialect, a speaker, and the way they speak."""

    dialect: str  # as "en-us"
    variant: str  # a file of eSpeak NG's voices/!v; "" is the dialect's own speaker
    speed: int = 175  # words a minute
    pitch: int = 50  # 0 to 99
    range: int = 50  # of the pitch, 0 to 99
    tract: float = 1.0  # all frequencies times this, as of a shorter or longer vocal tract

    @property
    def name(self) -> str:
        return f"{self.dialect}+{self.variant}" if self.variant else self.dialect


class Speech(NamedTuple):
    samples: Samples  # at RATE, full scale 1
    words: list[tuple[int, float]]  # where a word begins: character of the text, seconds
    sounds: list[tuple[str, float]]  # eSpeak's name of a phoneme, or PAUSE, and where it begins in seconds


def variants() -> list[str]:
    """The speakers there are."""
    return sorted(path.name for path in Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir())


def say(text: str, voice: Voice) -> Speech:
    """Raises ValueError for an unknown voice. One call at a time in a process: the library has one state."""
    return _library().say(text, voice)


@cache
def _library() -> _Library:
    return _Library()


class _Library:
    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        options = _PHONEME_EVENTS | _DONT_EXIT
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, options)
        if self._rate <= 0:
            raise RuntimeError(f"eSpeak NG does not start with the data in {data.decode()}")
        self._blocks: list[npt.NDArray[np.int16]] = []
        self._events: list[tuple[int, int, int, str]] = []  # type, character, milliseconds, phoneme
        self._callback = _Callback(self._take)  # kept: the library holds its address
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice = ""

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if count > 0 and samples:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        at = 0
        while events[at].type != _LAST:
            event = events[at]
            name = event.id.string.decode(errors="replace") if event.type == _PHONEME else ""
            self._events.append((event.type, event.text_position - 1, event.audio_position, name))
            at += 1
        return 0

    def say(self, text: str, voice: Voice) -> Speech:
        if voice.name != self._voice:
            if self._library.espeak_SetVoiceByName(voice.name.encode()):
                raise ValueError(f"eSpeak NG has no voice {voice.name!r}")
            self._voice = voice.name
        for parameter, value in ((_SPEED, voice.speed), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._blocks, self._events = [], []
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
        samples = np.concatenate(self._blocks).astype(np.float32) / 2**15
        # As played at another rate: a shorter vocal tract speaks faster, too.
        samples = resample(samples, self._rate * voice.tract)
        words, sounds = [], []
        for kind, character, milliseconds, name in self._events:
            seconds = milliseconds / 1000 / voice.tract
            if kind == _WORD:
                words.append((character, seconds))
            elif kind == _PHONEME:
                name = name.lstrip("',")  # without stress
                sounds.append((PAUSE if name.startswith("_") else name, seconds))
        return _trimmed(Speech(samples, words, sounds))


def resample(samples: Samples, rate: float) -> Samples:
    """From `rate` to RATE, by Fourier transforms."""
    count = round(len(samples) * RATE / rate)
    spectrum = np.fft.rfft(samples)
    made = np.zeros(count // 2 + 1, spectrum.dtype)
    kept = min(len(made), len(spectrum))
    made[:kept] = spectrum[:kept]
    return (np.fft.irfft(made, count) * (count / len(samples))).astype(np.float32)


def _trimmed(speech: Speech) -> Speech:
    """Without the pauses at both ends."""
    loud = [number for number, (name, _) in enumerate(speech.sounds) if name != PAUSE]
    if not loud:
        return speech
    last = loud[-1] + 1
    end_s = speech.sounds[last][1] if last < len(speech.sounds) else len(speech.samples) / RATE
    start = max(0, int((speech.sounds[loud[0]][1] - _EDGE_S) * RATE))
    stop = min(len(speech.samples), int((end_s + _EDGE_S) * RATE))
    return Speech(
        speech.samples[start:stop],
        [(character, max(0.0, at - start / RATE)) for character, at in speech.words],
        [(name, max(0.0, at - start / RATE)) for name, at in speech.sounds],
    )
