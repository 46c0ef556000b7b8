"""What a room, a line and a microphone do to speech, and what is heard where nobody speaks."""

from __future__ import annotations

import random

import numpy as np
from clips import RATE, Samples


def recorded(speech: Samples, rng: random.Random, noisy: bool) -> Samples:
    """Speech as a microphone has it: any loudness, any colour, perhaps a room and a band; `noisy`: with noise
    of 3 to 30 dB below the speech."""
    samples = tilted(speech, rng)
    if rng.random() < 0.25:
        samples = in_a_room(samples, rng)
    if rng.random() < 0.2:
        samples = banded(samples, *((300, 3400) if rng.random() < 0.5 else (0, rng.uniform(3000, 7000))))
    if noisy:
        loud = speech[np.abs(speech) > 1e-3]
        power = float(np.mean(loud**2)) if len(loud) else 1e-6
        samples = samples + noise(len(samples), rng) * np.float32(power * 10 ** -rng.uniform(0.3, 3)) ** 0.5
    peak = float(np.abs(samples).max()) or 1.0
    return samples * np.float32(10 ** (-rng.uniform(0, 30) / 20) / peak)


def noise(count: int, rng: random.Random) -> Samples:
    """Hiss of any colour, perhaps with a hum or with tones and knocks; its power is 1."""
    generator = np.random.default_rng(rng.getrandbits(64))
    spectrum = np.fft.rfft(generator.standard_normal(count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    samples = np.fft.irfft(spectrum * np.maximum(hertz, 20.0) ** -rng.uniform(-0.25, 1.0), count)
    samples /= np.sqrt(np.mean(samples**2)) + 1e-9
    at = np.arange(count) / RATE
    kind = rng.random()
    if kind < 0.15:
        base = rng.choice((50.0, 60.0, rng.uniform(80, 400)))
        for overtone in range(1, 6):
            samples += rng.uniform(0, 1.5) / overtone * np.sin(2 * np.pi * base * overtone * at)
    elif kind < 0.25:
        for _ in range(rng.randint(1, 4)):
            begin, length = rng.randrange(count), rng.randint(RATE // 50, RATE)
            part = slice(begin, min(count, begin + length))
            samples[part] += rng.uniform(1, 4) * np.sin(2 * np.pi * rng.uniform(200, 4000) * at[part])
    elif kind < 0.4:
        for _ in range(rng.randint(1, 6)):
            begin = rng.randrange(count)
            length = min(count - begin, rng.randint(RATE // 100, RATE // 5))
            knock = generator.standard_normal(length) * np.exp(-np.arange(length) / (length / 5))
            samples[begin : begin + length] += rng.uniform(2, 10) * knock
    elif kind < 0.5:  # it comes and goes
        wave = np.sin(2 * np.pi * rng.uniform(0.2, 6) * at + rng.uniform(0, 6))
        samples *= 1 + rng.uniform(0.3, 0.9) * wave
    samples /= np.sqrt(np.mean(samples**2)) + 1e-9
    return samples.astype(np.float32)


def nobody(count: int, rng: random.Random) -> Samples:
    """A recording in which nobody speaks: nothing at all, or noise of any loudness."""
    if rng.random() < 0.2:
        return np.zeros(count, np.float32)
    samples = noise(count, rng)
    if rng.random() < 0.2:  # part of the time only
        begin = rng.randrange(count)
        samples[begin:] = 0
    return samples * np.float32(10 ** (-rng.uniform(10, 80) / 20))


def in_a_room(samples: Samples, rng: random.Random) -> Samples:
    """With the decaying echoes of a room of 0.05 to 0.4 s."""
    generator = np.random.default_rng(rng.getrandbits(64))
    length = int(rng.uniform(0.05, 0.4) * RATE)
    echoes = generator.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    echoes *= rng.uniform(0.1, 0.6) / np.sqrt(np.sum(echoes**2))
    echoes[0] = 1.0
    size = len(samples) + length
    made = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(echoes, size), size)
    return made[: len(samples)].astype(np.float32)


def banded(samples: Samples, low: float, high: float) -> Samples:
    """Without what is below and above, in Hz."""
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    gain = np.clip((hertz - low) / 100 + 1, 0, 1) * np.clip((high - hertz) / 300 + 1, 0, 1)
    return np.fft.irfft(np.fft.rfft(samples) * gain, len(samples)).astype(np.float32)


def tilted(samples: Samples, rng: random.Random) -> Samples:
    """Through a smooth filter of up to 8 dB."""
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    decibels = np.interp(hertz, [0, 250, 1000, 3000, 8000], [rng.uniform(-8, 8) for _ in range(5)])
    spectrum = np.fft.rfft(samples) * 10 ** (decibels / 20)
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)
