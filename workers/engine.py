"""The engine: requests in, deltas out, one step at a time. It is rank 0 of a tensor-parallel group; the
other ranks run a `Follower`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tandem import kernels
from tandem.errors import HiddenStatesLost, InternalError, InvalidRequest
from tandem.workers.config import EngineConfig
from tandem.workers.device import HostCopy
from tandem.workers.distributed import Group
from tandem.workers.execution.packet import CLOSE, EncodePacket, Packet
from tandem.workers.execution.runner import Runner
from tandem.workers.execution.step_media import StepMedia, features_of
from tandem.workers.request import Delta, EncoderInput, EngineRequest, EngineStats
from tandem.workers.requests.media import MediaProcessor, prepare_input, read_processor
from tandem.workers.sampling.sampler import Sampled, Sampler, Scored
from tandem.workers.scheduling.drafts import STEP_ROWS
from tandem.workers.scheduling.pages import PagePool
from tandem.workers.scheduling.plan import StepPlan, StepResult
from tandem.workers.scheduling.resources import Resources
from tandem.workers.scheduling.scheduler import EndReason, Scheduler


class Engine:
    """Continuous batching over one model replica. Not thread-safe: one thread calls everything."""

    def __init__(
        self,
        config: EngineConfig,
        group: Group | None = None,
        make_runner: Callable[[EngineConfig, Group], Runner] = Runner,
    ) -> None:
        """
        Args:
            group: the ranks, of which this is the first; None: there is no other.
            make_runner: what executes steps. Measurements put something else in `Runner`'s place; it is to be
                the same on every rank.
        """
        self.config = config
        self.group = group or Group()
        if self.group.size != config.tensor_parallel_size:
            raise InvalidRequest(
                f"is {config.tensor_parallel_size}, but the group has {self.group.size} ranks",
                field="tensor_parallel_size",
            )
        self.runner = make_runner(config, self.group)
        self.spec = self.runner.spec
        self._processor: MediaProcessor | None = None
        if config.with_encoder and self.spec.encoder is not None:
            self._processor = read_processor(Path(config.model), self.spec.encoder.front)
        with self.runner.streams.on():
            self.sampler = Sampler(config.max_num_seqs, self.spec.vocab_size, self.runner.device)
        overlap = self.runner.device.type == "cuda" if config.overlap is None else config.overlap
        self._depth = 2 if overlap else 1
        self.scheduler = Scheduler(
            Resources(
                PagePool(self.runner.num_pages, self.runner.page_size),
                config.max_num_seqs,
                self.spec.cross_planes,
            ),
            max_batched_tokens=config.max_batched_tokens,
            max_encoder_tokens=config.max_encoder_tokens,
            draft_tokens=self.runner.draft_tokens,
            step_rows=STEP_ROWS[self.runner.device.type],
            async_encode=config.encodes_async(self.runner.device),
        )
        self._failed = False  # a step raised, or is under way
        self._compilations = 0  # see `EngineStats`
        # Steps launched and not applied, at most `_depth`.
        self._in_flight: deque[tuple[StepPlan, Sampled | None, Scored | None]] = deque()
        self._hidden: dict[int, torch.Tensor] = {}  # by handle: hidden states of the step to be launched

    def prepare(self, encoder_input: EncoderInput) -> EncoderInput:
        """The input with the features of its media, which `submit` needs, in their place. Decoding takes
        milliseconds of CPU time; any thread may call this.

        Raises InvalidRequest for media that cannot be decoded.
        """
        return prepare_input(encoder_input, self._processor)

    def submit(self, request: EngineRequest) -> None:
        """Takes a request in; its deltas come from the steps that follow.

        Raises InvalidRequest if it can never fit or its id is in use.
        """
        for field, stack, got in (
            ("max_encoder_length", self.spec.encoder, len(request.encoder.token_ids)),
            (
                "max_decoder_length",
                self.spec.decoder,
                len(request.prefix_ids) + request.decoding.max_tokens,
            ),
        ):
            limit: int = getattr(self.config, field)
            limit = 0 if stack is None else min(limit, stack.max_positions or limit)
            if got > limit:
                raise InvalidRequest(
                    f"the engine takes {limit}, the request needs {got} positions", field=field
                )
        self.scheduler.submit(request, time.monotonic())

    def cancel(self, request_id: str, reason: EndReason = "cancelled") -> None:
        """Ends a request and frees its pages; its last delta comes from the next step."""
        self.scheduler.cancel(request_id, reason)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight)

    def step(self) -> list[Delta]:
        """Plans, launches and applies one step; returns what the sequences grew by.

        An exception leaves scheduler and device apart: every later step raises InternalError.
        """
        if self._failed:
            raise InternalError("a step of this engine failed before; make another engine")
        self._failed = True
        with self._at_work():
            deltas = self._step()
        self._failed = False
        return deltas

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """On the worker's streams; counts what is compiled."""
        before = kernels.compilations()
        with self.runner.streams.on():
            yield
        self._compilations += kernels.compilations() - before

    def _step(self) -> list[Delta]:
        plan = self.scheduler.plan(time.monotonic(), encoded=self.runner.encoded)
        self._load_hidden(plan)
        if plan.rows or plan.admissions or plan.overlapped:
            self._in_flight.append((plan, *self._launch(plan)))
        deltas = plan.ended
        if self._in_flight and (len(self._in_flight) >= self._depth or not plan.rows):
            applied, sampled, scored = self._in_flight.popleft()
            result = StepResult([]) if sampled is None else sampled.wait()
            if scored is not None:
                scores, alignments = scored.wait()
                result = result._replace(scores=scores, alignments=alignments)
            deltas += self.scheduler.apply(applied, result)
        if self.config.check_invariants:
            self.check()
        return deltas

    def _load_hidden(self, plan: StepPlan) -> None:
        """Fetches hidden states before the step is launched: lost ones fail their readers, not the step."""
        for admission in list(plan.admissions):
            hidden = admission.request.encoder.hidden
            if hidden is None:
                continue
            try:
                states = hidden()
                assert self.spec.encoder is not None, "the scheduler admits no empty input"
                wanted = (admission.entry.length, self.spec.encoder.d_model)
                if tuple(states.shape) != wanted:
                    raise HiddenStatesLost(f"of shape {list(states.shape)} instead of {list(wanted)}")
                self._hidden[hidden.handle] = states
            except HiddenStatesLost as error:
                self.scheduler.fail(plan, admission, error)

    def _launch(self, plan: StepPlan) -> tuple[Sampled | None, Scored | None]:
        packet, media = Packet.of(plan), StepMedia.of(plan)
        if self.group.size > 1:
            self.group.send_integers(packet.to_ints().tolist())
        self.sampler.start(plan.started)
        logits, scores = self.runner.execute(packet, self._hidden.__getitem__, media)
        self._hidden = {}
        scored = None if scores is None else Scored(plan.rows, scores)
        sampled = None
        if logits is not None:
            sampling = [row for row in plan.rows if row.samples]
            sampled = self.sampler.sample(logits, sampling, self.runner.positions)
            drafts = self.runner.finish(packet, sampled.choice)
            sampled.drafts = None if drafts is None else HostCopy(drafts)
        self.runner.encode_async(packet, media)
        return sampled, scored

    def encode(self, inputs: Sequence[EncoderInput]) -> torch.Tensor:
        """The hidden states [sum of lengths, d_model] of inputs, one after another, on the CPU, and in the
        encoder's dtype. Inputs with media have their features. They are encoded at once, between two steps,
        and no page is needed.

        An exception leaves the ranks apart, see `step`. Raises InvalidRequest where there is no encoder.
        """
        if self.runner.encoder is None:
            raise InvalidRequest("this engine has no encoder", field="model")
        if self._failed:
            raise InternalError("a step of this engine failed before; make another engine")
        self._failed = True
        packet = EncodePacket.of(inputs)
        if self.group.size > 1:
            self.group.send_integers(packet.to_ints().tolist())
        with self._at_work():
            [states] = HostCopy(self.runner.encode(packet, features_of(inputs))).wait()
        self._failed = False
        return states

    def stats(self) -> EngineStats:
        media = self.runner.media
        return self.scheduler.stats()._replace(
            compilations=self._compilations,
            media_encoded=media.encoded,
            media_reused=media.reused,
            media_cache_bytes=media.nbytes,
        )

    def check(self) -> None:
        """Raises AssertionError where an invariant of the scheduler does not hold."""
        self.scheduler.check()

    def close(self) -> None:
        """Ends the other ranks' loops, and the group; gives back the memory of the device."""
        self.group.send_integers(CLOSE)
        self.group.close()
        self.release()

    def release(self) -> None:
        """Gives back the device's memory, and nothing else: for an engine whose step raised."""
        self._in_flight.clear()
        self._hidden = {}
        self.runner.close()
