"""A router without workers: the real contract, with answers made up on the spot."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from tandem.cluster.messages import HandoffTotals
from tandem.cluster.router.encoder_pool import EncoderCounters
from tandem.cluster.router.routed_request import Arrival
from tandem.cluster.router.router import Room, RouterStats
from tandem.errors import Overloaded, TandemError
from tandem.outputs import TokenLogprobs
from tandem.workers.request import Delta, EncodeRequest, EngineRequest, EngineStats, Hypothesis

WIDTH = 4  # of hidden states


def engine_stats(*, running: int = 0, steps: int = 0) -> EngineStats:
    return EngineStats(
        running=running, waiting=0, max_running=8, free_pages=75, total_pages=100, cross_pages=5,
        steps=steps, generated_tokens=0, encoded_tokens=0, preemptions=1,
        drafted_tokens=0, accepted_tokens=0, waiting_for={"slots": 3, "pages": 0},
    )  # fmt: skip


class FakeRouter:
    """Answers every request with `answer`, a token a delta; sampled ones with a shuffle of it that
    depends on the seed only. The tokens of a target are given 0, -0.25, -0.5 …"""

    def __init__(self, answer: Sequence[int], eos_id: int = 1) -> None:
        self.answer, self.eos_id = list(answer), eos_id
        self.requests: list[EngineRequest] = []
        self.arrivals: list[Arrival | None] = []  # as requests were accepted
        self.encoded: list[EncodeRequest] = []
        self.live: set[str] = set()
        self.cancelled: list[str] = []  # streams closed before their end
        self.delay_s = 0.0  # before each token
        self.stall_after: int | None = None  # tokens, then nothing more
        self.error: tuple[int, Exception] | None = None  # after how many tokens
        self.deadline_after: int | None = None
        self.is_ready = True
        self.full = False
        self.gathers_s: list[float] = []  # what readers asked for
        self.engines = {"engine-1": engine_stats()}

    def check_room(self, sequences: int = 1, *, priority: int | None = 0) -> None:
        del sequences, priority
        if self.full:
            raise Overloaded("full", refused="queue", retry_after_s=2.25)

    @contextmanager
    def keep_room(self, media_bytes: int, audio_s: float, *, priority: int = 0) -> Iterator[Room]:
        del media_bytes, priority
        self.check_room()
        yield Room(audio_s)

    @contextmanager
    def accept(
        self,
        requests: Sequence[EngineRequest],
        *,
        arrival: Arrival | None = None,
        within: Room | None = None,
    ) -> Iterator[list[EngineRequest]]:
        if within is None:
            self.check_room(len(requests))
        self.arrivals.append(arrival)
        yield list(requests)

    async def deltas(
        self, request: EngineRequest, gather_s: Callable[[], float] = lambda: 0.0
    ) -> AsyncGenerator[Delta]:
        self.requests.append(request)
        self.live.add(request.request_id)
        ended = False
        try:
            if request.target_ids and self.error is None and self.deadline_after is None:
                await asyncio.sleep(self.delay_s)
                if self.stall_after is not None:
                    await asyncio.Event().wait()
                ended = True
                yield Delta(
                    request.request_id,
                    [],
                    [TokenLogprobs(token_id, -0.25 * n, []) for n, token_id in enumerate(request.target_ids)],
                    finish_reason="length",
                    queued_s=0.25,
                )
                return
            if request.decoding.beams is not None:
                ended = True
                yield self._beams(request)
                return
            ids = self._ids(request)
            for count in range(len(ids) + 1):
                if self.error is not None and count == self.error[0]:
                    ended = True
                    raise self.error[1]
                if count == self.deadline_after:
                    ended = True
                    yield Delta(request.request_id, [], finish_reason="deadline")
                    return
                if count == self.stall_after:
                    await asyncio.Event().wait()
                if count == len(ids):
                    break
                self.gathers_s.append(gather_s())
                await asyncio.sleep(self.delay_s)
                last = count == len(ids) - 1
                ended = last
                yield Delta(
                    request.request_id,
                    [ids[count]],
                    self._logprobs(request, ids[count]),
                    finish_reason=None if not last else "stop" if ids[count] == self.eos_id else "length",
                    queued_s=None if count else 0.25,
                    prompt_logprobs=None if count else self._prompt_logprobs(request),
                )
        finally:
            self.live.discard(request.request_id)
            if not ended:
                self.cancelled.append(request.request_id)

    def _beams(self, request: EngineRequest) -> Delta:
        """Hypotheses: the answer, then its beginnings."""
        beams = request.decoding.beams
        assert beams is not None
        found = [
            Hypothesis([*self.answer[: len(self.answer) - n], self.eos_id], -0.5 - n, "stop", None)
            for n in range(beams.num_return_sequences)
        ]
        return Delta(request.request_id, [], finish_reason="stop", hypotheses=found)

    def _ids(self, request: EngineRequest) -> list[int]:
        decoding, ids = request.decoding, list(self.answer)
        if decoding.temperature:
            ids.sort(key=lambda i: zlib.crc32(f"{decoding.seed} {i}".encode()))
        return [*ids, self.eos_id][: decoding.max_tokens]

    def _logprobs(self, request: EngineRequest, token_id: int) -> list[TokenLogprobs] | None:
        count = request.decoding.logprobs
        if count is None:
            return None
        top = [(token_id, -0.25), (5, -2.0), (6, -3.0)]
        return [TokenLogprobs(token_id, -0.25, top[:count])]

    def _prompt_logprobs(self, request: EngineRequest) -> list[TokenLogprobs] | None:
        asked = request.decoding.prompt_logprobs
        if asked is None:
            return None
        return [TokenLogprobs(token_id, -2.5, [(5, -0.5)][:asked], 7) for token_id in request.prefix_ids[1:]]

    async def hidden_states(
        self, requests: Sequence[EncodeRequest], *, arrival: Arrival | None = None
    ) -> list[torch.Tensor]:
        """Row i of an input is its i-th id times 1, 2, … `WIDTH`."""
        self.check_room(len(requests))
        self.arrivals.append(arrival)
        self.encoded += requests
        try:
            await asyncio.sleep(self.delay_s)
            if self.stall_after is not None:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error[1]
            columns = torch.arange(1.0, WIDTH + 1)
            return [torch.tensor(one.encoder.token_ids)[:, None] * columns for one in requests]
        except asyncio.CancelledError:
            self.cancelled += [one.encoder.key for one in requests]
            raise

    async def ready(self) -> bool:
        return self.is_ready

    def stats(self) -> RouterStats:
        return RouterStats(
            encoder_replicas=1, engines=self.engines,
            handoffs=dict.fromkeys(self.engines, HandoffTotals(4, 4096, 0.5)),
            messages=dict.fromkeys(self.engines, 6),
            outstanding=len(self.live), waiting=0,
            queued_encoder_tokens=3, encoder=EncoderCounters(batches=2, batch_tokens=40),
            encoder_cache_bytes=1024, resubmitted=0, generated_tokens=0,
        )  # fmt: skip

    def fail(self, error: TandemError | Exception, after: int = 0) -> None:
        self.error = (after, error)
