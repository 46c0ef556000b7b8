"""A cluster as queues: routers, encoders and decoders at sizes that no machine here has.

Discrete events over what a step, a request or a message costs, which `simulate.py` measures. The policies are
the cluster's own: a router does one thing after another; encoder inputs leave in batches as soon as a replica
has room (`EncoderPool`); a request goes to the less loaded of two engines, by what they last told its router
(`EnginePool`, `EngineLink.load`); an engine admits in order of arrival and steps its whole batch; each step
is one message to every router that has a row in it.

Every replica has a core of its own. There is no failure, no preemption and no reuse of encoder output. Times
are in seconds, lengths in tokens.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.cluster.config import ServeConfig
from tandem.cluster.ingress.service import _LONGEST_GATHER_S, _MESSAGES_PER_S
from tandem.cluster.messages import HEARTBEAT_S
from tandem.cluster.replicas.step_inbox import GATHER_S_PER_REQUEST, LONGEST_GATHER_S
from tandem.cluster.router.engine_pool import FULL

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_ENCODER_TOKENS = ServeConfig.max_encoder_tokens
BATCHES_IN_FLIGHT = ServeConfig.encoder_batches_in_flight


@dataclass(frozen=True)
class Costs:
    """Seconds of work, by what it is done for."""

    router_request: float  # from a client's call to its submission, and its end
    router_message: float  # a message from an engine, whatever it holds
    router_delta: float  # one sequence in that message
    router_chunk: float  # streamed to a client
    encoder_step: float  # a batch, and for each token in it:
    encoder_token: float
    decoder_step: float  # a step, and for each row in it:
    decoder_row: float
    decoder_token: float  # an encoder token of a sequence that joins: its cross-attention K/V
    # The rest of a lone request's time: between processes, the hand-off of its hidden states included. It
    # keeps no process busy.
    transport: float

    def decoder_rate(self, traffic: Traffic, slots: int) -> float:
        """Requests/s of one decoder whose slots are all taken."""
        step = self.decoder_step + slots * self.decoder_row
        admission = traffic.mean_input * self.decoder_token
        return slots / (traffic.mean_output * step + slots * admission)

    def encoder_rate(self, traffic: Traffic) -> float:
        """Requests/s of one encoder whose batches are full."""
        batch = max(1.0, MAX_ENCODER_TOKENS // traffic.mean_input)
        return batch / (self.encoder_step + batch * traffic.mean_input * self.encoder_token)

    def router_load(self, shape: Shape, traffic: Traffic, rate: float) -> float:
        """Seconds of work a second at each router, if it is spread evenly and nothing queues."""
        # A decoder's rows and the time of its step follow from one another: rows are tokens/s times it.
        each = rate / shape.decoders
        work = each * (traffic.mean_output * self.decoder_row + traffic.mean_input * self.decoder_token)
        step_s = self.decoder_step / max(1e-9, 1 - work)
        rows = min(shape.slots, max(1.0, each * traffic.mean_output * step_s))
        messages = shape.routers * (1 - (1 - 1 / shape.routers) ** rows)  # with at least one of them in it
        live = rate * traffic.mean_output * step_s / shape.routers
        step = messages * self.message_s(rows, step_s)
        step += rows * float(self.delta_s(shape, np.array([live]), step_s)[0])
        return (rate * self.router_request + shape.decoders / step_s * step) / shape.routers

    def message_s(self, rows: float, step_s: float) -> float:
        """A step's part of a message, seconds: messages gather steps where there are many rows."""
        return self.router_message * min(1.0, step_s / min(LONGEST_GATHER_S, rows * GATHER_S_PER_REQUEST))

    def delta_s(self, shape: Shape, live: Floats | Ints, step_s: float) -> Floats:
        """Seconds a row of a step costs its router. Streamed tokens gather where there are many requests."""
        if not shape.streaming:
            return np.full(len(live), self.router_delta)
        gather_s = np.minimum(_LONGEST_GATHER_S, np.maximum(live, 1e-9) / _MESSAGES_PER_S)
        return self.router_delta + self.router_chunk * np.minimum(1.0, step_s / gather_s)


@dataclass(frozen=True)
class Traffic:
    """Requests arrive at random, independently of one another. Lengths are uniform from the first number to
    the second, which is excluded."""

    inputs: tuple[int, int] = (10, 80)
    outputs: tuple[int, int] = (8, 65)

    @property
    def mean_input(self) -> float:
        return sum(self.inputs) / 2 - 0.5

    @property
    def mean_output(self) -> float:
        return sum(self.outputs) / 2 - 0.5


@dataclass(frozen=True)
class Shape:
    encoders: int
    decoders: int
    routers: int
    slots: int = 32  # sequences that a decoder decodes at once
    streaming: bool = True
    # False: every router takes the worker that looks least loaded, and of equals the first it knows, which is
    # the same for all.
    by_chance: bool = True


@dataclass(frozen=True)
class Outcome:
    """Times by request, in order of arrival. All else covers the time in which requests arrive, without its
    first third, in which the cluster fills."""

    arrived: Floats
    first: Floats  # when its first token had passed its router
    end: Floats  # when its last token had
    tokens_per_s: float
    # By replica: the work of a router and an encoder, in seconds a second; above 1 it falls behind.
    # By decoder: the share of its slots that were taken.
    routers: Floats
    encoders: Floats
    decoders: Floats

    def settled(self, of: Floats) -> Floats:
        """Seconds from arrival, of the requests that came after the cluster had filled."""
        return (of - self.arrived)[len(of) // 3 :]


class _Decoder:
    """Slots are numbered; a free one has no tokens left."""

    def __init__(self, slots: int) -> None:
        self.left = np.zeros(slots, np.int64)  # tokens to come
        self.router = np.zeros(slots, np.int64)
        self.request = np.zeros(slots, np.int64)
        self.free = list(range(slots))
        self.started: list[int] = []  # slots that the running step has filled
        self.waiting: deque[int] = deque()
        self.stepping = False
        self.step_s = 0.0  # the running step's

    @property
    def load(self) -> int:
        return len(self.left) - len(self.free) + len(self.waiting)


class Simulation:
    """One run, of `count` requests at `rate` a second. Equal arguments, equal outcome."""

    def __init__(
        self, shape: Shape, costs: Costs, traffic: Traffic, rate: float, count: int, seed: int = 0
    ) -> None:
        self.shape, self.costs = shape, costs
        self.random = rng = np.random.default_rng(seed)
        self.arrived = np.cumsum(rng.exponential(1 / rate, count))
        self.inputs = rng.integers(*traffic.inputs, count)
        self.outputs = rng.integers(*traffic.outputs, count)
        self.router = rng.integers(shape.routers, size=count)  # of each request
        self.first, self.end = np.full(count, np.nan), np.full(count, np.nan)
        self.live = np.zeros(shape.routers, np.int64)
        self.delivered = 0  # tokens
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = itertools.count()

        self._free_at = np.zeros(shape.routers)
        self._busy = [np.zeros(shape.routers), np.zeros(shape.encoders), np.zeros(shape.decoders)]
        self._marks: list[tuple[int, list[Floats]]] = []  # tokens delivered and busy times, so far

        self._to_encode: list[deque[int]] = [deque() for _ in range(shape.routers)]
        self._in_flight = np.zeros((shape.routers, shape.encoders), np.int64)  # batches
        self._batches: list[deque[tuple[int, list[int]]]] = [deque() for _ in range(shape.encoders)]
        self._encoding = [False] * shape.encoders

        self._to_place: list[deque[int]] = [deque() for _ in range(shape.routers)]
        self._decoders = [_Decoder(shape.slots) for _ in range(shape.decoders)]
        # By router and decoder: sequences there, as it last said; and those that this router has there.
        self._known = np.zeros((shape.routers, shape.decoders), np.int64)
        self._own = np.zeros((shape.routers, shape.decoders), np.int64)

    def run(self) -> Outcome:
        for number, at in enumerate(self.arrived):
            self._at(at, self._arrive, number)
        last = float(self.arrived[-1])
        for at in (last / 3, last):
            self._at(at, self._mark, None)
        for number in range(self.shape.decoders):
            self._at(HEARTBEAT_S, self._heartbeat, number)
        while self._events:
            self.now, _, handle, what = heapq.heappop(self._events)
            handle(what)
        (before, busy_before), (after, busy_after) = self._marks
        window = last - last / 3
        busy = ((b - a) / window for a, b in zip(busy_before, busy_after, strict=True))
        return Outcome(self.arrived, self.first, self.end, (after - before) / window, *busy)

    def _at(self, time: float, handle: Callable[[Any], None], what: Any) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), handle, what))

    def _mark(self, _: None) -> None:
        self._marks.append((self.delivered, [busy.copy() for busy in self._busy]))

    # -- the router

    def _arrive(self, number: int) -> None:
        router, cost = self.router[number], self.costs.router_request
        self.live[router] += 1
        self._busy[0][router] += cost
        self._free_at[router] = max(self._free_at[router], self.now) + cost
        self._at(self._free_at[router], self._encode, number)

    def _encode(self, number: int) -> None:
        self._to_encode[self.router[number]].append(number)
        self._send(self.router[number])

    def _send(self, router: int) -> None:
        """Drain after step: all inputs that wait leave as soon as a replica has room."""
        queue = self._to_encode[router]
        while queue:
            batches = self._in_flight[router]
            equal = self.random.random(len(batches)) if self.shape.by_chance else 0.0
            encoder = int(np.argmin(batches + equal))
            if self._in_flight[router, encoder] == BATCHES_IN_FLIGHT:
                return
            batch = [queue.popleft()]
            tokens = self.inputs[batch[0]]
            while queue and tokens + self.inputs[queue[0]] <= MAX_ENCODER_TOKENS:
                tokens += self.inputs[queue[0]]
                batch.append(queue.popleft())
            self._in_flight[router, encoder] += 1
            self._batches[encoder].append((router, batch))
            self._run_encoder(encoder)

    def _place(self, number: int) -> None:
        router = self.router[number]
        self._to_place[router].append(number)
        self._grant(router)

    def _grant(self, router: int) -> None:
        """Sends requests whose inputs are encoded to engines, while any has room."""
        queue = self._to_place[router]
        while queue:
            loads = np.maximum(self._known[router], self._own[router])
            some = np.flatnonzero(loads < FULL * self.shape.slots)
            if not len(some):
                return
            if self.shape.by_chance and len(some) > 2:
                one, step = self.random.integers(len(some)), self.random.integers(1, len(some))
                some = some[[one, (one + step) % len(some)]]
            decoder = int(some[np.argmin(loads[some])])
            self._own[router, decoder] += 1
            self._at(self.now + self.costs.transport, self._join, (decoder, queue.popleft()))

    # -- an encoder

    def _run_encoder(self, encoder: int) -> None:
        if self._batches[encoder] and not self._encoding[encoder]:
            self._encoding[encoder] = True
            router, batch = self._batches[encoder].popleft()
            tokens = int(self.inputs[batch].sum())
            seconds = self.costs.encoder_step + tokens * self.costs.encoder_token
            self._busy[1][encoder] += seconds
            self._at(self.now + seconds, self._encoded, (encoder, router, batch))

    def _encoded(self, what: tuple[int, int, list[int]]) -> None:
        encoder, router, batch = what
        self._encoding[encoder] = False
        self._in_flight[router, encoder] -= 1
        for number in batch:
            self._place(number)
        self._send(router)
        self._run_encoder(encoder)

    # -- a decoder

    def _join(self, what: tuple[int, int]) -> None:
        decoder, number = what
        self._decoders[decoder].waiting.append(number)
        if not self._decoders[decoder].stepping:
            self._step(decoder)

    def _step(self, number: int) -> None:
        decoder, costs, tokens = self._decoders[number], self.costs, 0
        decoder.started = []
        while decoder.free and decoder.waiting:
            request = decoder.waiting[0]
            if tokens and tokens + self.inputs[request] > MAX_ENCODER_TOKENS:
                break
            slot = decoder.free.pop()
            decoder.waiting.popleft()
            decoder.left[slot], decoder.request[slot] = self.outputs[request], request
            decoder.router[slot] = self.router[request]
            decoder.started.append(slot)
            tokens += self.inputs[request]
        rows = len(decoder.left) - len(decoder.free)
        decoder.stepping = rows > 0
        if decoder.stepping:
            seconds = costs.decoder_step + rows * costs.decoder_row + tokens * costs.decoder_token
            decoder.step_s = seconds
            self._busy[2][number] += seconds * rows / self.shape.slots
            self._at(self.now + seconds, self._stepped, number)

    def _stepped(self, number: int) -> None:
        """One token for each row: one message for each router that has rows here."""
        decoder = self._decoders[number]
        rows = np.flatnonzero(decoder.left)
        decoder.left[rows] -= 1
        self.delivered += len(rows)
        routers, counts = np.unique(decoder.router[rows], return_counts=True)
        self._receive(routers, counts, decoder, len(rows))
        if decoder.started:
            self.first[decoder.request[decoder.started]] = self._free_at[decoder.router[decoder.started]]
        ended = rows[decoder.left[rows] == 0]
        if len(ended):
            self.end[decoder.request[ended]] = self._free_at[decoder.router[ended]]
            np.subtract.at(self.live, decoder.router[ended], 1)
            np.subtract.at(self._own[:, number], decoder.router[ended], 1)
            decoder.free += ended.tolist()
        self._known[routers, number] = decoder.load
        for router in routers:
            if self._to_place[router]:
                self._grant(router)
        self._step(number)

    def _receive(self, routers: Ints, deltas: Ints, decoder: _Decoder, rows: int) -> None:
        """The routers take in a step's tokens."""
        step_s = max(decoder.step_s, 1e-9)
        seconds = self.costs.message_s(rows, step_s)
        seconds = seconds + deltas * self.costs.delta_s(self.shape, self.live[routers], step_s)
        self._busy[0][routers] += seconds
        self._free_at[routers] = np.maximum(self._free_at[routers], self.now) + seconds

    def _heartbeat(self, number: int) -> None:
        """Routers without requests here learn of this decoder's load."""
        self._known[:, number] = self._decoders[number].load
        if np.isnan(self.end).any():
            self._at(self.now + HEARTBEAT_S, self._heartbeat, number)
