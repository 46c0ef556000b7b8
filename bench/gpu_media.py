"""What recordings and images have in common: files that come one after another, are decoded and answered."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, ClassVar, Final

import machine
import numpy as np
from gpu_models import Bench

from tandem.inputs import Media
from tandem.workers.models.spec import FrontSpec
from tandem.workers.request import EncoderInput, EngineRequest

LISTENERS: Final = 2  # threads that make features, as an engine's actor has
CONCURRENT: Final = (1, 32)
ROUND_S: Final = 5.0  # least seconds of a round of files on a GPU


class MediaBench(Bench, ABC):
    """A model in a folder whose encoder reads media."""

    unit: ClassVar[str]  # what the files are called, in the plural

    @abstractmethod
    def files(self) -> Iterator[Media]:
        """Files without end."""

    @abstractmethod
    def given(self, name: str, media: Media) -> EncoderInput:
        """The encoder input of a file, which is yet to be decoded."""

    @abstractmethod
    def asked(self, encoder: EncoderInput, target: int) -> EngineRequest:
        """The request of so many tokens about a decoded input, which has its key as its name."""

    @property
    def front(self) -> FrontSpec:
        encoder = self.engine.runner.encoder
        assert encoder is not None
        assert encoder.spec.front is not None
        return encoder.spec.front

    def served(self, rounds: int) -> list[dict[str, Any]]:
        """Files in a second, from a file's bytes to the last token, so many at once all the time."""
        found = []
        for concurrent in CONCURRENT:
            self._serve_files(concurrent, 2 * concurrent, 0.0)
            rates, latencies = [], []
            for _ in range(rounds):
                rate, seconds = self._serve_files(
                    concurrent, 2 * concurrent, ROUND_S if self.device.type == "cuda" else 0.0
                )
                rates.append(rate)
                latencies += seconds
            found.append(
                {
                    "concurrent": concurrent,
                    f"{self.unit}_per_s": machine.spread(rates),
                    "p50_s": round(float(np.quantile(latencies, 0.5)), 4),
                    "p95_s": round(float(np.quantile(latencies, 0.95)), 4),
                    "target": self.model.goal,
                }
            )
        return found

    def _serve_files(self, concurrent: int, least: int, least_s: float) -> tuple[float, list[float]]:
        """Files a second, and the seconds of each."""
        engine, names = self.engine, iter(range(1 << 30))
        files = self.files()
        begun: dict[str, float] = {}
        seconds: list[float] = []
        decoding: set[Future[EngineRequest]] = set()

        def decode(name: str, media: Media) -> EngineRequest:
            return self.asked(engine.prepare(self.given(name, media)), self.model.target)

        with ThreadPoolExecutor(LISTENERS) as threads:

            def begin() -> None:
                name = f"file {next(names)}"
                begun[name] = time.perf_counter()
                decoding.add(threads.submit(decode, name, next(files)))

            start = time.perf_counter()
            for _ in range(concurrent):
                begin()
            while begun:
                if not engine.has_work:
                    wait(decoding, return_when=FIRST_COMPLETED)
                for decoded in [one for one in decoding if one.done()]:
                    decoding.remove(decoded)
                    engine.submit(decoded.result())
                for delta in engine.step():
                    if delta.last:
                        seconds.append(time.perf_counter() - begun.pop(delta.request_id))
                        spent = time.perf_counter() - start
                        if len(seconds) + len(begun) < least or spent < least_s:
                            begin()
            return len(seconds) / (time.perf_counter() - start), seconds
