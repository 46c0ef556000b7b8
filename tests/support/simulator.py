"""A plain model of what the scheduler promises, to hold it to while requests come and go.

`Simulator` drives a scheduler as `Engine` does, plans applied `depth - 1` steps late, and stands in for
the device: it remembers what was written to which position of which page, and looks at all of it when a
row is computed. It keeps its own books, in sets and lists that are gone through from end to end: who
waits and runs in which order, who holds which page, which answers are out. Where the scheduler's books
differ, an AssertionError says how.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import pytest
import torch

from tandem.errors import HiddenStatesLost, InvalidRequest
from tandem.kernels import match_prompt_tokens
from tandem.kernels.decode_rows import resolve
from tandem.kernels.values import LAST, LENGTH, PLACE, POSITION, RUN, SOURCE
from tandem.outputs import TokenLogprobs
from tandem.workers.request import BeamSearch, Decoding, Delta, EncoderInput, EngineRequest, Hypothesis
from tandem.workers.scheduling.pages import PagePool
from tandem.workers.scheduling.plan import (
    ON_DEVICE,
    DraftOutcome,
    Found,
    Row,
    Sequence,
    StepPlan,
    StepResult,
    WaitingFor,
)
from tandem.workers.scheduling.resources import Resources
from tandem.workers.scheduling.scheduler import Scheduler

EOS, OWN_STOP = 1, 2
PRIORITY_S = 10.0  # seconds of waiting that one level of priority is worth
NOTHING = 0  # no token of any job
MAX_OVERLAP_STEPS = 16  # that may go on without the sequences whose input is encoded meanwhile
Reason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True)
class Job:
    """A request, and the model's answer to it: a token that depends only on the job and on how many
    tokens there are already, so that an answer once interrupted must be taken up where it was."""

    name: str
    number: int  # of the job: makes its tokens its own
    key: int  # its encoder input
    encoder_length: int  # the same for equal keys
    prefix: int = 1  # decoder tokens to start from
    max_tokens: int = 4
    min_tokens: int = 0
    stops: tuple[tuple[int, int], ...] = ()  # (how many tokens there are, the stop id the model says then)
    stop_ids: frozenset[int] = frozenset({EOS})
    resumed: int = 0  # tokens that were generated and delivered elsewhere before
    priority: int = 0
    timeout_s: float | None = None
    waited_s: float = 0.0  # before it came here
    at: int = 0  # the step before which it is submitted
    cancel_at: int | None = None  # the step before which it is cancelled
    scored: bool = False  # the answer is given, max_tokens long, and scored
    prompted: bool = False  # the prefix is scored, and delivered with the first token
    width: int = 1  # beams; they find the answer, all the same one, at the step that ends it
    copied: frozenset[int] = frozenset()  # after so many tokens the model says the encoder's
    sampled: bool = False  # with a temperature

    def token(self, count: int) -> int:
        """What the model says after `count` tokens. It would go on after the end: steps that are made
        ahead compute a little further."""
        own = 1000 * (self.number + 1) + count
        said = self.source[count % len(self.source)] if count in self.copied else own
        return dict(self.stops).get(count, said)

    @property
    def source(self) -> tuple[int, ...]:
        """Its encoder input."""
        return tuple(-100 * (self.key + 1) - i for i in range(self.encoder_length))

    @property
    def answer(self) -> tuple[list[int], Reason]:
        if self.scored:
            return [self.token(count) for count in range(self.max_tokens)], "length"
        tokens: list[int] = []
        while True:
            tokens.append(self.token(len(tokens)))
            if tokens[-1] in self.stop_ids and len(tokens) > self.min_tokens:
                return tokens, "stop"
            if len(tokens) == self.max_tokens:
                return tokens, "length"

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return tuple(1000 * (self.number + 1) + 500 + i for i in range(self.prefix))

    def score(self, position: int) -> TokenLogprobs:
        """The score of the token after this position of the prefix or the answer."""
        after = position + 1 - self.prefix
        token = self.prefix_ids[position + 1] if after < 0 else self.token(after)
        return TokenLogprobs(token, -float(1000 * self.number + position), [])

    def request(self) -> EngineRequest:
        return EngineRequest(
            self.name,
            EncoderInput(f"key {self.key}", self.source),
            self.prefix_ids,
            Decoding(
                max_tokens=self.max_tokens,
                min_tokens=self.min_tokens,
                temperature=float(self.sampled),
                top_k=0,
                top_p=1.0,
                min_p=0.0,
                repetition_penalty=1.0,
                seed=0,
                stop_ids=self.stop_ids,
                eos_ids=frozenset({EOS}),
                logprobs=None,
                prompt_logprobs=0 if self.prompted else None,
                beams=BeamSearch(self.width, 1, 1.0, early_stopping=False) if self.width > 1 else None,
            ),
            generated_ids=tuple(self.answer[0][: self.resumed]),
            target_ids=tuple(self.answer[0]) if self.scored else (),
            priority=self.priority,
            timeout_s=self.timeout_s,
            waited_s=self.waited_s,
        )


@dataclass(eq=False)
class Life:
    """A submitted job."""

    job: Job
    request: EngineRequest
    order: tuple[float, int]
    deadline: float | None
    out: list[int]  # all its tokens that are out, those from elsewhere included
    steps_before: int  # steps made when it was submitted
    running: bool = False
    cancelled: bool = False
    failed: bool = False
    computed: int = (
        0  # positions in its pages, once what is launched is done, if no draft token in it is right
    )
    in_flight: int = 0  # sampled in steps that are not applied yet
    drafted: int = 0  # draft tokens in them
    pages: list[int] = field(default_factory=list)
    reason: Reason | None = None
    steps: int = 0  # from submission to the end

    @property
    def known(self) -> int:
        return self.job.prefix + len(self.out) + self.in_flight

    @property
    def row_width(self) -> int:
        """Beams that compute its next position."""
        return self.job.width if self.computed >= self.job.prefix else 1

    def targets(self, start: int, stop: int) -> list[TokenLogprobs]:
        """What these positions score: the answer's tokens, or the prefix's unless they are delivered."""
        end = self.job.prefix - 1
        if self.job.scored:
            return [self.job.score(position) for position in range(max(start, end), stop)]
        wanted = self.job.prompted and not self.out
        return [self.job.score(position) for position in range(start, min(stop, end) if wanted else 0)]

    def token_at(self, position: int) -> int:
        job = self.job
        return job.prefix_ids[position] if position < job.prefix else job.token(position - job.prefix)


@dataclass
class _Room:
    """What is left to those who wait, in a step."""

    slots: int
    tokens: int
    pages: int
    encoder_tokens: int | None  # None: no encoder input is admitted yet, any may be
    new_keys: list[str] = field(default_factory=list)


Cell = tuple[object, int, int]  # whose, position, token
Launched = tuple[StepPlan, StepResult, list[tuple[Life, list[int]]]]  # who gets tokens, and their drafts


class Simulator:
    """Owns the scheduler. `submit`, `cancel` and `step` are the engine's."""

    def __init__(
        self,
        *,
        pages: int,
        page_size: int,
        max_num_seqs: int,
        max_batched_tokens: int,
        max_encoder_tokens: int,
        depth: int = 1,
        draft_tokens: int = 0,
        failing: Iterable[int] = (),
        overlapped: Seq[int] = (),
    ) -> None:
        """`failing`: which admitted encoder inputs, counted from 0, cannot be read.
        `overlapped`: how many steps each batch of encoder inputs takes while others decode, in turn; empty:
        inputs are encoded within steps.
        """
        self.scheduler = Scheduler(
            Resources(PagePool(pages, page_size), max_num_seqs),
            max_batched_tokens=max_batched_tokens,
            max_encoder_tokens=max_encoder_tokens,
            draft_tokens=draft_tokens,
            async_encode=bool(overlapped),
        )
        self.draft_tokens = draft_tokens
        self.total, self.page_size, self.depth = pages, page_size, depth
        self.max_num_seqs, self.max_batched_tokens = max_num_seqs, max_batched_tokens
        self.max_encoder_tokens = max_encoder_tokens
        self.failing = set(failing)
        self.overlapped = overlapped
        self.lives: dict[str, Life] = {}  # all that have no last delta yet
        self.started: list[Life] = []  # in the order in which they first ran
        self.ended: list[Life] = []
        self.steps = self.arrivals = self.admitted = self.generated = self.encoded = 0
        self.waiting_for: Counter[str] = Counter()  # steps by why the first that waited stayed out
        self.preemptions = self.restarts = self.rescored = self.drafted = self.accepted = 0
        self.preempted_drafts = self.unseen_drafts = 0
        self.moved = 0  # rows that began later than the scheduler knew
        self.batches = self.batch_inputs = self.overdue = self.abandoned = 0
        # The device.
        self.encoding: list[str] = []  # keys of the batch that is encoded alongside the steps
        self.encoding_steps = 0  # planned since it began
        self.states: dict[int, str] = {}  # entry → key, whose hidden states are there
        self.cross: dict[str, list[int]] = {}  # pages by encoder key
        self.memory: dict[tuple[int, int], Cell] = {}  # page, offset → what was written there last
        self.self_table: dict[tuple[int, int], int] = {}  # slot, index → page
        self.cross_table: dict[int, tuple[list[int], int]] = {}  # entry → pages, length
        self.sequences = torch.zeros(max_num_seqs, SOURCE + 20, dtype=torch.int64)  # see values.py
        self.histories: dict[int, list[tuple[tuple[int, int], int]]] = {}  # a beam's slot → cells, tokens
        self.launched: deque[Launched] = deque()

    # -- requests come and go

    def submit(self, job: Job, now: float) -> Life | None:
        """None where the scheduler has to refuse it, and does."""
        request = job.request()
        if job.name in self.lives and self._ended_already(self.lives[job.name]):
            return None  # its last delta is due in the next plan; the cluster gives no id out twice
        if job.name in self.lives:
            with pytest.raises(InvalidRequest, match="request_id"):
                self.scheduler.submit(request, now)
            return None
        if job.width > self.max_num_seqs:
            with pytest.raises(InvalidRequest, match="num_beams"):
                self.scheduler.submit(request, now)
            return None
        pages = job.width * self._pages_for(job.prefix + job.max_tokens)
        if self._pages_for(job.encoder_length) + pages > self.total:
            with pytest.raises(InvalidRequest, match="max_tokens"):
                self.scheduler.submit(request, now)
            return None
        self.scheduler.submit(request, now)
        self.arrivals += 1
        life = Life(
            job,
            request,
            order=(now - job.waited_s - PRIORITY_S * job.priority, self.arrivals),
            deadline=None if job.timeout_s is None else now + job.timeout_s,
            out=list(request.generated_ids or request.target_ids[:-1]),
            steps_before=self.steps,
        )
        self.lives[job.name] = life
        self.scheduler.check()
        return life

    def cancel(self, name: str) -> None:
        self.scheduler.cancel(name)
        life = self.lives.get(name)
        if life is not None and not self._ended_already(life):
            life.cancelled = True
            self._stop_running(life)
        self.scheduler.check()

    @staticmethod
    def _ended_already(life: Life) -> bool:
        """Cancelled, or complete when it came: only its last delta is missing."""
        return life.cancelled or len(life.out) == len(life.job.answer[0])

    # -- one step

    def step(self, now: float) -> None:
        """Plans, launches and applies as `Engine.step` does, and compares all along."""
        late = [life for life in self.lives.values() if life.deadline is not None and life.deadline <= now]
        late = [life for life in late if not self._ended_already(life)]
        due = [life for life in self.lives.values() if self._ended_already(life)]
        for life in late:
            self._stop_running(life)
        self.encoding_steps += 1
        done = not self.encoding or self.encoding_steps > self.overlapped[self.batches % len(self.overlapped)]
        plan = self.scheduler.plan(now, encoded=done)
        joined: list[str] = []
        if done or self.encoding_steps > MAX_OVERLAP_STEPS:
            self.overdue += not done
            joined, self.encoding = self.encoding, []
        self._compare_running(plan, {id(life) for life in late + due}, joined)
        self._compare_layout(plan)
        self._compare_books()

        deltas = {delta.request_id: delta for delta in plan.ended}
        assert len(deltas) == len(plan.ended), "ended twice"
        assert deltas.keys() == {life.job.name for life in late + due}
        for life in late:
            self._end(life, deltas[life.job.name], "deadline")
        for life in due:
            self._end(life, deltas[life.job.name], "cancelled" if life.cancelled else life.job.answer[1])

        self._fail(plan)
        if plan.rows or plan.admissions or plan.overlapped:
            self.launched.append(self._execute(plan))
        if self.launched and (len(self.launched) >= self.depth or not plan.rows):
            self._apply(*self.launched.popleft())
        self.steps += 1
        self._compare_books()
        assert self.scheduler.has_work == bool(self.lives)

    def _compare_running(self, plan: StepPlan, gone: set[int], joined: list[str]) -> None:
        """Who goes on, who makes room, who comes in. joined: inputs that are done now."""
        alive = [life for life in self.lives.values() if id(life) not in gone]
        running = sorted((life for life in alive if life.running), key=lambda life: life.order)
        rows = {row.sequence.request.request_id: row for row in plan.rows}
        assert len(rows) == len(plan.rows), "two rows for one sequence"

        counts, stay = self._share(running)
        before = len(running)
        if self.encoding and not any(counts[:stay]):  # nobody decodes: a step may as well wait for them
            self._make_room(running[stay:])
            del running[stay:]
            joined, self.encoding = self.encoding, []
            counts, stay = self._share(running)
        left_to_waiting = self.max_batched_tokens
        for life, count in zip(running[:stay], counts, strict=False):
            left_to_waiting -= count * life.row_width
            row = rows.pop(life.job.name, None)
            assert (row is None) == (count == 0), f"{life.job.name} has no row, or one too many"
            if row is not None:
                self._compare_row(row, life, count)
        self._make_room(running[stay:])
        decoding = any(counts[:stay])
        self.abandoned += sum(key not in self.cross for key in joined)
        joined = [key for key in joined if key in self.cross]

        started = [self.lives[s.request.request_id] for s in plan.started]
        waiting = sorted((life for life in alive if not life.running), key=lambda life: life.order)
        assert started == waiting[: len(started)], "one overtook another"
        room = _Room(
            slots=self.max_num_seqs - sum(life.job.width for life in running[:stay]),
            tokens=left_to_waiting,
            pages=self.total - sum(map(self._pages_for, self._positions(running[:stay]))),
            encoder_tokens=None,
        )
        under_way = list(self.encoding)
        for life in started:
            assert self._lacks(life, room, under_way) is None, f"{life.job.name} came in"
            key, length = life.request.encoder.key, life.job.encoder_length
            if key not in self.cross and decoding and self.overlapped:
                self.encoding.append(key)
            count = 0
            if key not in self.encoding:
                row = rows.pop(life.job.name)
                count = len(life.out) + life.job.prefix if row.samples > 1 else row.count
                self._compare_row(row, life, count)
            life.running = True
            if life not in self.started:
                self.started.append(life)
            room.slots -= life.job.width
            room.tokens -= count
            room.pages -= life.job.width * self._pages_for(count)
            if key not in self.cross:
                self.cross[key] = []
                room.new_keys.append(key)
                room.pages -= self._pages_for(length)
                room.encoder_tokens = (
                    self.max_encoder_tokens if room.encoder_tokens is None else room.encoder_tokens
                )
                room.encoder_tokens -= length
        assert not rows, "rows of sequences that do not run"
        if stay < before:  # nobody comes in where one had to make room
            assert not started
            self.waiting_for[WaitingFor.PAGES.value] += 1
        elif len(started) < len(waiting):
            reason = self._lacks(waiting[len(started)], room, under_way)
            assert reason is not None, "kept out without a reason"
            self.waiting_for[reason.value] += 1
        begun = [key for key in room.new_keys if key in self.encoding]
        assert not begun or begun == room.new_keys == self.encoding, "one batch at a time"
        self._compare_admissions(plan, joined, [] if begun else room.new_keys, begun)
        self._take_new_pages(plan)

    def _share(self, running: list[Life]) -> tuple[list[int], int]:
        """How many positions each computes, and how many of them can stay."""
        # In order, each gets the tokens it lacks, while there is one left for each later one.
        counts, left = [], self.max_batched_tokens
        behind = sum(life.job.width for life in running)
        for life in running:
            behind -= life.job.width
            last_is_in_flight = len(life.out) + life.in_flight + life.drafted >= life.job.max_tokens
            waits = last_is_in_flight or life.request.encoder.key in self.encoding
            counts.append(0 if waits else min(life.known - life.computed, left - behind))
            left -= counts[-1] * life.row_width
        # Those go on that fit with what they get: as many as possible, the first in order.
        return counts, max(k for k in range(len(running) + 1) if self._fits(running[:k], counts))

    def _make_room(self, lives: list[Life]) -> None:
        self.preemptions += len(lives)
        for life in lives:
            self.rescored += len(life.targets(0, life.computed)) > 0
            self.preempted_drafts += life.drafted > 0
            self._stop_running(life)
            if life.job.width > 1:
                life.out = []  # beams start anew
                self.restarts += 1

    def _lacks(self, life: Life, room: _Room, under_way: list[str]) -> WaitingFor | None:
        """What it must have to come in: slots, pages up to its next token and one for each that runs to grow
        by, all its tokens known, a token of the step, and, for an encoder input, no batch of them under way
        and room in the step's."""
        new = life.request.encoder.key not in self.cross
        length = life.job.encoder_length
        positions = life.job.prefix + len(life.out) + 1
        pages = life.job.width * self._pages_for(positions) + (self._pages_for(length) if new else 0)
        has = {
            WaitingFor.SLOTS: room.slots >= life.job.width,
            WaitingFor.PAGES: room.pages >= pages + self.max_num_seqs - room.slots,
            WaitingFor.IN_FLIGHT: life.in_flight == 0,
            WaitingFor.TOKENS: room.tokens > 0,
            WaitingFor.ENCODER: not new
            or (not under_way and (room.encoder_tokens is None or length <= room.encoder_tokens)),
        }
        return next((what for what in WaitingFor if not has[what]), None)

    def _positions(self, lives: list[Life]) -> list[int]:
        """How many positions each page table of these covers, their own and their encoder inputs'."""
        cross = {life.request.encoder.key: life.job.encoder_length for life in lives}
        own = [life.computed + life.drafted for life in lives for _ in range(life.job.width)]
        return own + list(cross.values())

    def _fits(self, lives: list[Life], counts: list[int]) -> bool:
        growth = 0
        for life, count in zip(lives, counts, strict=False):
            before = life.computed + life.drafted
            growth += life.job.width * (self._pages_for(before + count) - self._pages_for(before))
        return growth + sum(map(self._pages_for, self._positions(lives))) <= self.total

    def _compare_row(self, row: Row, life: Life, count: int) -> None:
        assert row.sequence.request is life.request
        draft = row.count - count
        assert (row.start, row.uncertain) == (life.computed, life.drafted)
        assert draft == max(0, row.samples - 1)
        assert count >= 1
        assert row.width == life.row_width
        ends_at = row.start + count
        assert ends_at <= life.known
        complete = ends_at == life.known
        assert row.samples - draft == (complete and not life.job.scored)
        if draft:
            assert row.token_ids[count:] == [ON_DEVICE - number for number in range(1, draft + 1)]
            self._compare_draft(draft, life, ends_at + life.drafted)
        targets = life.targets(row.start, ends_at)
        assert row.target_ids == tuple(score.token_id for score in targets)
        on_host = [life.token_at(p) for p in range(row.start, ends_at) if p < life.known - life.in_flight]
        if row.width > 1:
            on_host = []  # beams' tokens are on the device only
        assert row.token_ids[:count] == (on_host or [ON_DEVICE])
        assert len(on_host) == count or (count == 1 and not on_host), "tokens neither here nor there"
        life.computed = ends_at
        life.in_flight += complete

    def _compare_draft(self, draft: int, life: Life, ends_at: int) -> None:
        """Nobody has less for it, and all of it can be right."""
        assert draft <= self.draft_tokens
        assert not life.job.sampled
        assert life.job.width == 1
        assert self._pages_for(ends_at + draft) == self._pages_for(ends_at), "takes a page"
        assert ends_at + draft < life.job.prefix + life.job.max_tokens, "beyond its end"
        self.unseen_drafts += life.drafted > 0
        life.drafted += draft
        self.drafted += draft

    def _compare_admissions(
        self, plan: StepPlan, joined: list[str], at_once: list[str], begun: list[str]
    ) -> None:
        assert [admission.entry.key for admission in plan.admissions] == joined + at_once
        assert [admission.entry.key for admission in plan.overlapped] == begun
        assert all(admission.entry.encoded for admission in plan.admissions)
        new = [admission for admission in plan.admissions if not admission.overlapped] + plan.overlapped
        assert [admission.entry.key for admission in new] == at_once + begun
        lengths = [admission.entry.length for admission in new]
        assert sum(lengths) <= self.max_encoder_tokens or len(lengths) <= 1
        if begun:
            self.encoding_steps = 0
            self.batches, self.batch_inputs = self.batches + 1, self.batch_inputs + len(begun)
        for admission in new:
            entry = admission.entry
            assert admission.request.encoder.key == entry.key
            assert entry.length == len(admission.request.encoder.token_ids)
            assert len(entry.pages) == self._pages_for(entry.length)
            self.encoded += entry.length
            self._take_pages(self.cross[entry.key], entry.pages)

    def _take_new_pages(self, plan: StepPlan) -> None:
        slots = {
            slot: (self.lives[row.sequence.request.request_id], beam)
            for row in plan.rows
            for beam, slot in enumerate(row.sequence.slots)
        }
        assert len(slots) == sum(len(row.sequence.slots) for row in plan.rows), "two sequences in one slot"
        for slot, index, page in plan.new_pages:
            life, beam = slots[slot]
            assert (index, beam) == divmod(len(life.pages), life.job.width)
            self._take_pages(life.pages, [page])
        for life in self.lives.values():
            pages = self._pages_for(life.computed + life.drafted if life.running else 0)
            assert len(life.pages) == life.job.width * pages

    def _take_pages(self, into: list[int], pages: list[int]) -> None:
        for page in pages:
            assert 0 <= page < self.total
            assert page not in self._held(), f"page {page} is held by another"
            into.append(page)

    def _compare_layout(self, plan: StepPlan) -> None:
        assert sum(row.count * row.width for row in plan.rows) <= self.max_batched_tokens
        assert all(0 <= slot < self.max_num_seqs for row in plan.rows for slot in row.sequence.slots)
        kinds = [2 if row.count > 1 else int(row.width > 1) for row in plan.rows]
        assert kinds == sorted(kinds), "rows of one position come first, then beams"
        for group in range(3):
            rows = [row for row, kind in zip(plan.rows, kinds, strict=True) if kind == group]
            keys = [row.sequence.request.encoder.key for row in rows]
            changes = sum(a != b for a, b in pairwise(keys))
            assert not keys or changes == len(set(keys)) - 1, "readers of one input are adjacent"

    # -- the device

    def _execute(self, plan: StepPlan) -> Launched:
        """Writes what the plan writes, then reads everything that its rows attend to."""
        lives = {id(life.request): life for life in self.lives.values()}
        for slot, index, page in plan.new_pages:
            self.self_table[slot, index] = page
        for sequence in plan.started:
            if sequence.drafter is not None:
                self._take_source(sequence)
        for admission in plan.overlapped:
            self.states[admission.entry.index] = admission.entry.key
        for admission in plan.admissions:
            entry = admission.entry
            if admission.overlapped:
                assert self.states.pop(entry.index) == entry.key
            assert entry.pages == self.cross[entry.key]
            self.cross_table[entry.index] = (list(entry.pages), entry.length)
            for position in range(entry.length):
                self.memory[self._cell(entry.pages, position)] = (entry.key, position, 0)
        starts = [self._start(row) for row in plan.rows]
        guesses = []
        for row, start in zip(plan.rows, starts, strict=True):
            if row.samples > 1 and self.depth == 1:  # else the host may not have heard yet
                assert self.sequences[row.sequence.slots[0], RUN] > 0, "there is nothing to guess"
            written = self._write(row, start, lives[id(row.sequence.request)])
            guesses.append(written[row.count - row.samples + 1 :])
        tokens: list[int] = []
        moves: list[list[int]] = []
        beams: list[list[tuple[list[int], float]] | None] = []
        scores: list[TokenLogprobs] = []
        sampling: list[tuple[Life, list[int]]] = []
        for row, start, drafted in zip(plan.rows, starts, guesses, strict=True):
            life = lives[id(row.sequence.request)]
            end = start + row.count
            if life.job.width > 1:
                for slot in row.sequence.slots[: row.width]:
                    assert len(self.histories[slot]) == end
                    for position, (cell, token) in enumerate(self.histories[slot]):
                        assert self.memory[cell] == (life, position, token)
            else:
                slot = row.sequence.slots[0]
                table = [self.self_table[slot, i] for i in range(self._pages_for(end))]
                for position in range(end - max(0, row.samples - 1)):
                    cell = self.memory[self._cell(table, position)]
                    assert cell == (life, position, life.token_at(position))
            assert row.sequence.cross is not None
            pages, length = self.cross_table[row.sequence.cross.index]
            assert length == life.job.encoder_length
            for position in range(length):
                assert self.memory[self._cell(pages, position)] == (life.request.encoder.key, position, 0)
            scores += life.targets(row.start, end)
            if life.job.scored and end == life.job.prefix + life.job.max_tokens - 1:
                sampling.append((life, []))
            if row.samples:
                sampling.append((life, self._verifiable(row, drafted)))
                if life.job.width > 1:
                    beams.append(self._choose(row, life))
                else:
                    said = self._say(end - row.samples + 1, drafted, life)
                    moves.append([row.sequence.slots[0], end - row.samples, len(said), len(tokens)])
                    tokens += said
        return plan, StepResult(tokens, None, beams, scores, self._follow(tokens, moves)), sampling

    def _take_source(self, sequence: Sequence) -> None:
        assert sequence.drafter is not None
        state, source = self.sequences[sequence.slots[0]], sequence.drafter.source
        state[:] = 0
        state[LAST] = sequence.tokens[-1]
        state[LENGTH] = len(source)
        state[SOURCE : SOURCE + len(source)] = torch.tensor(source)

    def _start(self, row: Row) -> int:
        """The row's first position."""
        if not row.uncertain:
            return row.start
        start = int(self.sequences[row.sequence.slots[0], POSITION])
        assert row.start <= start <= row.start + row.uncertain
        self.moved += start > row.start
        return start

    def _follow(self, tokens: list[int], moves: list[list[int]]) -> list[DraftOutcome]:
        if not self.draft_tokens:
            for slot, _, _, first in moves:
                self.sequences[slot, LAST] = tokens[first]
        if not self.draft_tokens or not moves:
            return []
        found = match_prompt_tokens(torch.tensor(tokens), torch.tensor(moves).T.contiguous(), self.sequences)
        return [DraftOutcome(*of) for of in found.tolist()]

    @staticmethod
    def _say(first: int, guesses: list[int], life: Life) -> list[int]:
        """What the model says after each sampled position. After a wrong guess it agrees with the next."""
        said, right = [life.token_at(first)], True
        for position, guess in enumerate(guesses, first):
            right &= guess == life.token_at(position)
            follows = [*guesses, -1][position + 1 - first]
            said.append(life.token_at(position + 1) if right else follows)
        return said

    def _verifiable(self, row: Row, drafted: list[int]) -> list[int]:
        """The draft tokens, NOTHING in place of those that the source does not have: a plan made ahead may
        ask for more than turns out to follow. Whatever the device puts there counts as wrong."""
        state = self.sequences[row.sequence.slots[0]]
        left = int(state[LENGTH] - state[PLACE]) if state[RUN] > 0 else 0
        return [token if number < left else NOTHING for number, token in enumerate(drafted)]

    def _write(self, row: Row, start: int, life: Life) -> list[int]:
        """Returns the row's tokens, of beams the last one's."""
        written: list[int] = []
        for slot in row.sequence.slots[: row.width]:
            if start == 0:
                self.histories[slot] = []
            written = []
            for position, token in enumerate(row.token_ids, start):
                page = self.self_table[slot, position // self.page_size]
                assert page in life.pages, "writes to a page it does not hold"
                if ON_DEVICE - self.draft_tokens <= token <= ON_DEVICE:
                    of = torch.tensor([slot]), torch.tensor([position]), torch.tensor([token])
                    token = int(resolve(*of, self.sequences)[0])
                cell = page, position % self.page_size
                self.memory[cell] = (life, position, token)
                written.append(token)
                if life.job.width > 1:
                    self.histories[slot].append((cell, token))
        return written

    def _choose(self, row: Row, life: Life) -> Found | None:
        """Every beam goes on from any other's history, with a token of its own."""
        slots, count = row.sequence.slots, row.start + row.count - life.job.prefix
        parents = random.Random(1000 * life.job.number + count).choices(slots[: row.width], k=len(slots))
        histories = [list(self.histories[parent]) for parent in parents]
        for beam, (slot, history) in enumerate(zip(slots, histories, strict=True)):
            self.histories[slot] = history
            self.sequences[slot, LAST] = 100 * life.job.token(count) + beam
        answer = life.job.answer[0]
        return [(answer, -1.5, None)] if count + 1 == len(answer) else None

    def _cell(self, pages: list[int], position: int) -> tuple[int, int]:
        return pages[position // self.page_size], position % self.page_size

    # -- the ends

    def _fail(self, plan: StepPlan) -> None:
        for admission in list(plan.admissions):
            number, self.admitted = self.admitted, self.admitted + 1
            if number not in self.failing:
                continue
            before = len(plan.ended)
            self.scheduler.fail(plan, admission, HiddenStatesLost("gone"))
            readers = [
                life
                for life in self.lives.values()
                if life.running and life.request.encoder.key == admission.entry.key
            ]
            assert readers
            ends = {delta.request_id: delta for delta in plan.ended[before:]}
            assert ends.keys() == {life.job.name for life in readers}
            for life in readers:
                life.failed = True
                assert isinstance(ends[life.job.name].error, HiddenStatesLost)
                self._end(life, ends[life.job.name], "error")
            assert admission not in plan.admissions
            left = {row.sequence.request.request_id for row in plan.rows}
            left |= {sequence.request.request_id for sequence in plan.started}
            assert not left & ends.keys()
            self._compare_books()

    def _apply(self, plan: StepPlan, result: StepResult, sampling: list[tuple[Life, list[int]]]) -> None:
        deltas = iter(self.scheduler.apply(plan, result))
        for life, draft in sampling:
            life.in_flight -= 1
            life.drafted -= len(draft)
            if self.lives.get(life.job.name) is not life or life.cancelled:
                continue
            if life.job.width > 1 and not life.running:
                continue  # preempted meanwhile: it starts anew
            self.generated += 0 if life.job.scored else life.job.width
            before, (answer, reason) = len(life.out), life.job.answer
            life.out.append(life.job.token(before))
            for guess in draft:
                if guess != life.out[-1] or len(life.out) == len(answer):
                    break
                life.out.append(life.job.token(len(life.out)))
                life.computed += life.running
                self.generated += 1
                self.accepted += 1
            assert life.out == answer[: len(life.out)]
            # Pages for wrong draft tokens are free again.
            del life.pages[life.job.width * self._pages_for(life.computed + life.drafted) :]
            done = len(life.out) == len(answer)
            if life.job.width > 1:
                if done:
                    delta = next(deltas)
                    own = delta.stop_reason
                    assert delta.hypotheses == [Hypothesis(answer, -1.5, delta.finish_reason, own)]
                    self._end(life, delta, reason)
                continue
            delta = next(deltas)
            if life.job.scored:
                target = [life.job.score(life.job.prefix - 1 + at) for at in range(len(answer))]
                assert (delta.request_id, delta.token_ids, delta.logprobs) == (life.job.name, [], target)
                self._end(life, delta, reason)
                continue
            assert (delta.request_id, delta.token_ids) == (life.job.name, life.out[before:])
            prompt = [life.job.score(position) for position in range(life.job.prefix - 1)]
            first = life.job.prompted and not before
            assert delta.prompt_logprobs == (prompt if first else None)
            if done:
                self._end(life, delta, reason)
            else:
                assert not delta.last
        assert next(deltas, None) is None

    def _end(self, life: Life, delta: Delta, reason: Reason) -> None:
        assert delta.last
        assert delta.finish_reason == (None if reason == "error" else reason)
        assert (delta.error is not None) == (reason == "error")
        own_stop = reason == "stop" and life.out[-1] != EOS
        assert delta.stop_reason == (life.out[-1] if own_stop else None)
        assert delta.token_ids == life.out[len(life.out) - len(delta.token_ids) :]
        life.reason, life.steps = reason, self.steps - life.steps_before
        self._stop_running(life)
        del self.lives[life.job.name]
        self.ended.append(life)

    def _stop_running(self, life: Life) -> None:
        life.running, life.computed, life.pages = False, 0, []
        read = {other.request.encoder.key for other in self.lives.values() if other.running}
        self.cross = {key: pages for key, pages in self.cross.items() if key in read}

    # -- books

    def _held(self) -> list[int]:
        return [page for life in self.lives.values() for page in life.pages] + [
            page for pages in self.cross.values() for page in pages
        ]

    def _compare_books(self) -> None:
        self.scheduler.check()
        held = self._held()
        assert len(set(held)) == len(held), "a page is used twice"
        stats = self.scheduler.stats()
        assert stats.free_pages == self.total - len(held), "a page is lost"
        assert stats.cross_pages == sum(map(len, self.cross.values()))
        assert stats.running == sum(life.job.width for life in self.lives.values() if life.running)
        assert stats.running <= self.max_num_seqs
        assert stats.preemptions == self.preemptions
        assert stats.waiting_for == {reason.value: self.waiting_for[reason.value] for reason in WaitingFor}
        assert stats.generated_tokens == self.generated
        assert stats.encoded_tokens == self.encoded
        assert (stats.drafted_tokens, stats.accepted_tokens) == (self.drafted, self.accepted)

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.page_size)
