"""A whole cluster in one process: the real router and engine actors, a fake engine whose tokens are known
beforehand, and calls through Ray's interfaces without Ray."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import BatchSummary, pack
from tandem.cluster.messages import read_input
from tandem.cluster.replicas.engine_actor import EngineActor
from tandem.cluster.router.forecast import Forecast
from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.router import Router
from tandem.errors import HiddenStatesLost, InvalidRequest
from tandem.inputs import Media
from tandem.outputs import FinishReason, TokenLogprobs
from tandem.workers.request import (
    Decoding,
    Delta,
    EncoderInput,
    EngineRequest,
    EngineStats,
    Hypothesis,
    MediaCounts,
)

D_MODEL = 4
IDENTITY = "the model's"


def request(
    name: str,
    tokens: int = 5,
    *,
    ids: tuple[int, ...] | None = None,
    timeout_s: float | None = None,
    priority: int = 0,
) -> EngineRequest:
    """`name` is also the encoder's key; `ids` its input."""
    return EngineRequest(
        request_id=name,
        encoder=EncoderInput(key=name.split("#")[0], token_ids=ids or (len(name), 2, 1)),
        prefix_ids=(0,),
        decoding=Decoding(tokens, 0, 0.0, 0, 1.0, 0.0, 1.0, 0, frozenset(), frozenset(), None),
        timeout_s=timeout_s,
        priority=priority,
    )


def at_router(of: EngineRequest) -> RoutedRequest:
    """A request at a router that serves no other, a minute before its deadline."""
    now = time.monotonic()
    return RoutedRequest(of, now, now + 60, Forecast(lambda: 0, time.monotonic))


def expected(of: EngineRequest) -> list[int]:
    """The fake engine's answer: a function of the encoder's input and the position alone."""
    return [_token(of, position) for position in range(of.decoding.max_tokens)]


def _token(of: EngineRequest, position: int) -> int:
    return sum(of.encoder.token_ids) * 1000 + position


def hypotheses(of: EngineRequest) -> list[Hypothesis]:
    """The hypotheses of a request's beams."""
    ids = [_token(of, position) for position in range(of.decoding.max_tokens)]
    return [Hypothesis(ids, -0.5, "length", None), Hypothesis(ids[::-1], -0.75, "length", None)]


def target_logprobs(of: EngineRequest) -> list[TokenLogprobs]:
    """The log-probabilities of a request's target."""
    return [TokenLogprobs(token_id, -0.5 * n, []) for n, token_id in enumerate(of.target_ids)]


async def until(condition: Callable[[], object]) -> None:
    """Waits for what comes soon, however busy the machine."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


class FakeEngine:
    """A fake engine: one token for each of its sequences in each step."""

    def __init__(self, slots: int = 8, step_s: float = 0.001) -> None:
        self.slots, self.step_s = slots, step_s
        self.cancelled: list[str] = []
        self.submitted: list[EngineRequest] = []
        self.encoded: list[list[list[int]]] = []  # batches
        self.closed = False
        self.stuck = False
        self.fail_with: BaseException | None = None
        self.refusal: InvalidRequest | None = None  # of inputs to encode
        self._rows: dict[str, EngineRequest] = {}
        self._done: dict[str, int] = {}
        self._deadlines: dict[str, float] = {}
        self._ended: list[Delta] = []
        self._steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._rows or self._ended)

    def prepare(self, encoder_input: EncoderInput) -> EncoderInput:
        return encoder_input

    def submit(self, request: EngineRequest) -> None:
        assert request.request_id not in self._rows
        self.submitted.append(request)
        self._rows[request.request_id] = request
        self._done[request.request_id] = len(request.generated_ids)
        if request.timeout_s is not None:
            self._deadlines[request.request_id] = time.monotonic() + request.timeout_s

    def cancel(self, request_id: str, reason: Any = "cancelled") -> None:
        if self._rows.pop(request_id, None):
            self.cancelled.append(request_id)
            self._ended.append(Delta(request_id, [], finish_reason=reason))

    def encode(self, inputs: Sequence[EncoderInput]) -> torch.Tensor:
        self.encoded.append([list(one.token_ids) for one in inputs])
        time.sleep(self.step_s)
        if self.refusal is not None:
            raise self.refusal
        return torch.cat([encode(one.token_ids) for one in inputs])

    def step(self) -> list[Delta]:
        if self.fail_with is not None:
            raise self.fail_with
        time.sleep(self.step_s)
        now = time.monotonic()
        for request_id in [r for r in self._rows if self._deadlines.get(r, now) < now]:
            self.cancel(request_id, "deadline")
        deltas, self._ended = self._ended, []
        if self.stuck:
            return deltas
        self._steps += 1
        for request_id, row in list(self._rows.items())[: self.slots]:
            position = self._done[request_id]
            if position == len(row.generated_ids) and row.encoder.hidden is not None:
                try:
                    hidden = row.encoder.hidden()
                except HiddenStatesLost as error:
                    del self._rows[request_id]
                    deltas.append(Delta(request_id, [], error=error))
                    continue
                assert hidden.tolist() == encode(row.encoder.token_ids).tolist()
            self._done[request_id] += 1
            last = self._done[request_id] >= row.decoding.max_tokens
            if last:
                del self._rows[request_id]
            if row.target_ids:
                if last:
                    deltas.append(Delta(request_id, [], target_logprobs(row), finish_reason="length"))
            elif row.decoding.beams is None:
                reason: FinishReason | None = "length" if last else None
                queued_s = row.waited_s if position == len(row.generated_ids) else None
                token = [_token(row, position)]
                deltas.append(Delta(request_id, token, finish_reason=reason, queued_s=queued_s))
            elif last:
                deltas.append(Delta(request_id, [], finish_reason="length", hypotheses=hypotheses(row)))
        return deltas

    def stats(self) -> EngineStats:
        rows = len(self._rows)
        running = min(rows, self.slots)
        return EngineStats(
            running, rows - running, self.slots, 100 - running, 100, 0, self._steps, 0, 0, 0, 0, 0, {}
        )

    def close(self) -> None:
        self.closed = True


def encode(token_ids: tuple[int, ...] | list[int]) -> torch.Tensor:
    return torch.tensor(token_ids, dtype=torch.float32)[:, None].expand(-1, D_MODEL)


class FakeReference:
    """An ObjectRef."""

    def __init__(self) -> None:
        self._arrived: Future[Any] = Future()

    @classmethod
    def to(cls, value: object) -> FakeReference:
        reference = cls()
        reference.arrive(value)
        return reference

    def arrive(self, value: object) -> None:
        if self._arrived.done():  # lost before it was made
            return
        if isinstance(value, BaseException):
            self._arrived.set_exception(value)
        else:
            self._arrived.set_result(value)

    def lose(self) -> None:
        if self._arrived.done():
            self._arrived = Future()
        self.arrive(ObjectLostError("0" * 56, None, ""))

    def future(self) -> Future[Any]:
        mine: Future[Any] = Future()  # a reader that gives up cancels its own

        def tell(arrived: Future[Any]) -> None:
            if mine.cancelled():
                return
            if error := arrived.exception():
                mine.set_exception(error)
            else:
                mine.set_result(arrived.result())

        self._arrived.add_done_callback(tell)
        return mine

    def __await__(self) -> Any:
        return asyncio.wrap_future(self.future()).__await__()


class FakeActor:
    """An actor handle to an `EngineActor` in this process; `kill` makes it behave like a dead one's."""

    def __init__(self, config: ServeConfig, engine: FakeEngine) -> None:
        self.engine = engine
        self.actor = EngineActor(config, lambda _config, _rendezvous: engine)
        self.dead = asyncio.Event()
        self.identity = IDENTITY
        self.silent = False  # alive, but its messages do not arrive
        self.delays: dict[str, list[float]] = {}  # by method: how late the next calls get here, one each

    async def start(self) -> FakeActor:
        await self.actor.start("", [])
        return self

    def kill(self) -> None:
        self.dead.set()
        self.engine.stuck = True

    async def stop(self) -> None:
        self.actor._thread.stop()
        await asyncio.to_thread(self.actor._thread.join, 5.0)
        await self.actor._background.close()

    def __getattr__(self, name: str) -> Any:
        return FakeMethod(self, getattr(self.actor, name))


class FakeMethod:
    def __init__(self, handle: FakeActor, method: Callable[..., Any]) -> None:
        self._handle, self._method, self._two = handle, method, False

    def options(self, *, num_returns: str | int) -> FakeMethod:
        assert num_returns in ("streaming", 2)
        self._two = num_returns == 2
        return self

    def remote(self, *args: Any) -> Any:
        result = self._method(*args)
        if hasattr(result, "__anext__"):
            return self._stream(result)
        if self._two:
            return self._pair(result)
        return asyncio.ensure_future(self._or_die(self._late(result)))

    def _pair(self, call: Any) -> tuple[FakeReference, asyncio.Future[Any]]:
        """The two results of a call, each an object of its own."""
        reference = FakeReference()

        async def second() -> Any:
            try:
                first, other = await self._or_die(self._late(call))
            except BaseException as error:
                reference.arrive(error)
                raise
            reference.arrive(first)
            return other

        return reference, asyncio.ensure_future(second())

    async def _late(self, call: Any) -> Any:
        if delays := self._handle.delays.get(self._method.__name__):
            await asyncio.sleep(delays.pop(0))
        return await call

    async def _stream(self, items: AsyncIterator[object]) -> AsyncIterator[FakeReference]:
        while True:
            try:
                item = await self._or_die(items.__anext__())  # type: ignore[arg-type]
            except StopAsyncIteration:
                return
            if self._handle.silent:
                await asyncio.sleep(3600)
            yield FakeReference.to(item)

    async def _or_die(self, work: Any) -> Any:
        dead = asyncio.ensure_future(self._handle.dead.wait())
        done = asyncio.ensure_future(work)
        # Whoever asked may be gone by then, and nobody looks at the error.
        done.add_done_callback(lambda late: late.cancelled() or late.exception())
        await asyncio.wait([dead, done], return_when=asyncio.FIRST_COMPLETED)
        if dead.done():
            done.cancel()
            raise ActorDiedError
        dead.cancel()
        return done.result()


class FakeBroadcast:
    def __init__(self, replicas: Mapping[str, Any]) -> None:
        self._answers = [(name, actor, actor.identity) for name, actor in replicas.items()]

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        del timeout_s
        assert return_exceptions
        await asyncio.sleep(0)
        if not self._answers:
            raise DeploymentUnavailableError(DeploymentID("Decoder"))
        return self._answers


class FakeDecoders:
    """The decoder's deployment handle."""

    def __init__(self) -> None:
        self.replicas: dict[str, FakeActor] = {}

    def broadcast(self, method: str) -> FakeBroadcast:
        assert method == "describe"
        return FakeBroadcast(self.replicas)


class FakeEncoders:
    """The encoder's deployment handle, and its replicas. `faults` are raised by the next calls, one each."""

    def __init__(self, replicas: int = 1, step_s: float = 0.0) -> None:
        self.step_s = step_s
        self.batches: list[list[list[int]]] = []
        self.media: list[Media] = []  # of all batches
        self.features: list[torch.Tensor] = []
        self.owners: list[str] = []
        self.references: list[FakeReference] = []
        self.faults: list[BaseException] = []
        self.losing = False  # what they have encoded vanishes
        self.poison: int | None = None  # a token no encoder survives
        self.running = 0  # passes, from the call on
        self._free = asyncio.Event()
        self._free.set()
        self._numbers = itertools.count()
        self.replicas = {self._name(): FakeEncoder(self) for _ in range(replicas)}

    def _name(self) -> str:
        return f"encoder{next(self._numbers)}"

    def replace(self) -> None:
        """Replaces the replica, as Serve does when one has ended."""
        self.replicas = {self._name(): FakeEncoder(self)}

    def broadcast(self, method: str) -> FakeBroadcast:
        assert method == "describe"
        return FakeBroadcast(self.replicas)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No pass that is under way or begins inside ends before."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    async def run(self, inputs: list[list[int]]) -> tuple[Any, BatchSummary]:
        await asyncio.sleep(self.step_s)
        await self._free.wait()
        if self.faults:
            raise self.faults.pop(0)
        if any(self.poison in ids for ids in inputs):
            raise task_error(ValueError("poison"))
        hidden = torch.cat([torch.zeros(0, D_MODEL), *map(encode, inputs)])
        media = MediaCounts(encoded=len(inputs), reused=1, nbytes=64)
        summary = BatchSummary(
            tokens=len(hidden),
            nbytes=hidden.nbytes,
            seconds=0.0,
            refused={},
            media=media,
        )
        return pack(hidden), summary

    def begun(self, task: asyncio.Future[Any]) -> None:
        self.running += 1
        task.add_done_callback(self._ended)

    def _ended(self, _task: asyncio.Future[Any]) -> None:
        self.running -= 1


class FakeEncoder:
    """An actor handle to an encoder."""

    def __init__(self, encoders: FakeEncoders) -> None:
        self.identity = IDENTITY
        self.encode = self
        self._encoders = encoders

    def options(self, *, num_returns: int) -> FakeEncoder:
        assert num_returns == 2
        return self

    def remote(self, packed: list[list[Any]], router_id: str, queued_tokens: int) -> tuple[Any, Any]:
        encoder_inputs = list(map(read_input, packed))
        inputs = [list(each.token_ids) for each in encoder_inputs]
        self._encoders.media += itertools.chain(*(each.media for each in encoder_inputs))
        self._encoders.features += [each.features for each in encoder_inputs if each.features is not None]
        self._encoders.owners += [each.owner for each in encoder_inputs]
        assert router_id
        assert queued_tokens >= 0
        self._encoders.batches.append(inputs)
        reference = FakeReference()
        self._encoders.references.append(reference)

        async def answer() -> BatchSummary:
            try:
                packed, summary = await self._encoders.run(inputs)
            except BaseException as error:
                reference.arrive(error)
                raise
            if self._encoders.losing:
                reference.lose()
            else:
                reference.arrive(packed)
            return summary

        task = asyncio.ensure_future(answer())
        self._encoders.begun(task)
        return reference, task


def task_error(cause: Exception) -> BaseException:
    """What Ray raises where a task raised `cause`."""
    error: BaseException = RayTaskError("encode", "", cause).as_instanceof_cause()
    return error


class FakeCluster:
    """Use with `async with`. Starts `engines` engines and a router."""

    def __init__(
        self,
        *,
        engines: int = 1,
        slots: int = 8,
        step_s: float = 0.001,
        disaggregated: bool = True,
        **config: Any,
    ) -> None:
        self.config = ServeConfig(**{"replica_wait_s": 5.0, **config})
        self.encoders = FakeEncoders()
        self.decoders = FakeDecoders()
        self.router = Router(
            self.config,
            IDENTITY,
            self.encoders if disaggregated else None,  # type: ignore[arg-type]
            self.decoders,  # type: ignore[arg-type]
        )
        self.disaggregated = disaggregated
        self._to_start, self._slots, self._step_s = engines, slots, step_s
        self._numbers = itertools.count()
        self._all: list[FakeActor] = []

    async def add_engine(self) -> FakeActor:
        actor = await FakeActor(self.config, FakeEngine(self._slots, self._step_s)).start()
        self.decoders.replicas[f"engine{next(self._numbers)}"] = actor
        self._all.append(actor)
        return actor

    def kill(self, actor: FakeActor) -> None:
        self.decoders.replicas = {k: v for k, v in self.decoders.replicas.items() if v is not actor}
        actor.kill()

    async def __aenter__(self) -> FakeCluster:
        for _ in range(self._to_start):
            await self.add_engine()
        await self.router.start()
        while self._to_start and len(self.router.stats().engines) < self._to_start:
            await asyncio.sleep(0.001)
        if self.disaggregated:
            while len(self.encoders.batches) < 2 or self.encoders.running:  # the warm-up
                await asyncio.sleep(0.001)
            self.encoders.batches.clear()
            self.encoders.references.clear()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.router.close()
        for actor in self._all:
            await actor.stop()

    async def collect(self, one: EngineRequest) -> tuple[list[int], str | None]:
        """The whole answer of a request, and how it ended; checks that it ends exactly once."""
        tokens: list[int] = []
        ends: list[str | None] = []
        async for delta in self.router.generate(one):
            assert delta.request_id == one.request_id
            assert not ends
            tokens += delta.token_ids
            if delta.last:
                ends.append(delta.finish_reason)
        [end] = ends
        return tokens, end

    async def settled(self) -> None:
        """Waits until no request is left anywhere, and fails if that does not come."""
        async with asyncio.timeout(5):
            while (
                self.router.stats().outstanding
                or self.encoders.running
                or any(a.engine.has_work or a.actor._live for a in self._all if not a.dead.is_set())
            ):
                await asyncio.sleep(0.002)
