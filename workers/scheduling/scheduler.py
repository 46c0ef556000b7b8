"""What the next step computes: continuous batching over one pool of pages.

`plan(now)` decides, `apply(plan, result)` moves the state on; between the two the runner executes the
plan. Neither knows a device, a clock or a thread. Plans may be made ahead: a sequence's token of a
step not applied yet is known to the device only, and the plan refers to it.

Order: sequences are served by arrival, each level of priority counting as PRIORITY_S seconds of
waiting. The order never changes, nothing overtakes, so nothing starves; when pages run out, the last
in order is preempted and recomputed later from its tokens.

Overlapped encoding: an engine that encodes by itself may do so alongside the steps of others. A sequence
gets its slot at once, and its first row when its encoder input is done. Inputs that come meanwhile gather for
the next batch.

Draft tokens take what is left when all that is planned: the rest of the step's tokens, and the room in pages
that are held anyway. Where a sequence with draft tokens goes on is known to the device only until its step
is applied; plans made ahead know the first and the last position it may be at.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, repeat
from typing import Literal

from tandem.errors import InvalidRequest, TandemError
from tandem.limits import PRIORITY_S
from tandem.outputs import TokenLogprobs
from tandem.workers.request import Delta, EngineRequest, EngineStats
from tandem.workers.scheduling.deltas import beam_delta, finish_reason, score_delta, token_delta
from tandem.workers.scheduling.drafts import STEP_ROWS, Drafter, add_drafts
from tandem.workers.scheduling.plan import (
    ON_DEVICE,
    Admission,
    DraftOutcome,
    Found,
    Row,
    Sequence,
    State,
    StepPlan,
    StepResult,
    WaitingFor,
)
from tandem.workers.scheduling.queue import SequenceQueue
from tandem.workers.scheduling.resources import Resources

# Steps that go on, at most, while sequences wait for the encoding alongside them; the next step waits for it.
MAX_OVERLAP_STEPS = 16

EndReason = Literal["cancelled", "deadline"]


class Scheduler:
    """See the module's docstring. Not thread-safe: one thread calls everything."""

    def __init__(
        self,
        resources: Resources,
        *,
        max_batched_tokens: int,
        max_encoder_tokens: int,
        draft_tokens: int = 0,
        step_rows: int = STEP_ROWS["cpu"],
        async_encode: bool = False,
    ) -> None:
        """
        Args:
            resources: what the sequences share; nobody else admits to them.
            max_batched_tokens: decoder positions computed in one step; at least the number of slots.
            max_encoder_tokens: encoder positions projected in one step; a single longer input goes alone.
            draft_tokens: draft tokens of a sequence in one step, at most.
            step_rows: a step takes as long as its rows and this many more.
            async_encode: encoder inputs without hidden states are encoded alongside steps.
        """
        if max_batched_tokens < resources.slots:
            raise ValueError(f"max_batched_tokens {max_batched_tokens} < {resources.slots} slots")
        self.resources = resources
        self.queue = SequenceQueue()
        self.max_batched_tokens = max_batched_tokens
        self.max_encoder_tokens = max_encoder_tokens
        self.draft_tokens = draft_tokens
        self.step_rows = step_rows
        self.async_encode = async_encode
        self._encoding: list[Admission] = []  # alongside the steps, one batch at a time
        self._encoding_steps = 0  # planned meanwhile
        self._ended: list[Delta] = []  # for the next plan
        self._arrivals = 0
        self._waiting_for = {reason.value: 0 for reason in WaitingFor}
        self._steps = self._generated = self._encoded = self._preemptions = 0
        self._drafted = self._accepted = 0

    # -- requests come and go

    @property
    def has_work(self) -> bool:
        return bool(self.queue or self._ended)

    def submit(self, request: EngineRequest, now: float) -> None:
        """Takes a request in. Raises InvalidRequest if it can never fit or its id is in use."""
        ending = (delta.request_id for delta in self._ended)  # its last delta is still to come
        if self.queue.get(request.request_id) is not None or request.request_id in ending:
            raise InvalidRequest("is already running", field="request_id")
        width = request.decoding.beams.num_beams if request.decoding.beams else 1
        if width > 1 and request.generated_ids:
            raise InvalidRequest("beams start anew, not from tokens of one of them", field="generated_ids")
        self.resources.check_fits(request, width)
        self._arrivals += 1
        sequence = Sequence(
            request=request,
            arrived=now - request.waited_s,
            order=(now - request.waited_s - request.priority * PRIORITY_S, self._arrivals),
            deadline=None if request.timeout_s is None else now + request.timeout_s,
            tokens=[*request.prefix_ids, *request.generated_ids, *request.target_ids[:-1]],
            width=width,
        )
        if request.generated_ids and (reason := finish_reason(sequence)):
            self._ended.append(token_delta(sequence, [], reason))
            return
        self.queue.add(sequence)

    def cancel(self, request_id: str, reason: EndReason = "cancelled") -> None:
        """Ends a request; its last delta is in the next plan. Unknown ids have ended already."""
        if (sequence := self.queue.get(request_id)) is not None:
            self._end(sequence, Delta(request_id, [], finish_reason=reason))

    def fail(self, plan: StepPlan, admission: Admission, error: TandemError) -> None:
        """Takes an encoder input that cannot be read out of a plan, and ends its readers."""
        plan.admissions.remove(admission)
        admission.entry.written = False
        readers = [s for s in self.queue.running if s.cross is admission.entry]
        plan.rows = [row for row in plan.rows if row.sequence.cross is not admission.entry]
        plan.started = [s for s in plan.started if s.cross is not admission.entry]
        for sequence in readers:
            self._end(sequence, Delta(sequence.request.request_id, [], error=error))
        plan.ended += self._take_ended()

    def _end(self, sequence: Sequence, delta: Delta | None) -> None:
        """`delta` is its last one, unless `apply` returns that."""
        if sequence.state is State.RUNNING:
            self.resources.release(sequence)
        self.queue.end(sequence)
        if delta is not None:
            self._ended.append(delta)

    def _preempt(self, sequence: Sequence) -> None:
        """It has no row in this plan: rows are made in order, and the last in order is preempted."""
        self.resources.release(sequence)
        self.queue.preempt(sequence)
        if sequence.width > 1:  # its tokens go with its slots: it starts anew, and finds the same
            sequence.tokens = list(sequence.request.prefix_ids)
        self._preemptions += 1

    def _take_ended(self) -> list[Delta]:
        ended, self._ended = self._ended, []
        return ended

    # -- decide

    def plan(self, now: float, *, encoded: bool = True) -> StepPlan:
        """The next step; empty where nothing can run before a step in flight is applied.

        encoded: whether the encoder inputs are done whose encoding earlier plans began.
        """
        for sequence in self.queue.late(now):
            self._end(sequence, Delta(sequence.request.request_id, [], finish_reason="deadline"))
        plan = StepPlan()
        preemptions = self._preemptions
        self._encoding_steps += 1
        if encoded or self._encoding_steps > MAX_OVERLAP_STEPS:
            self._join(plan)
        self._plan_running(plan)
        if self._encoding and not plan.rows:  # nobody decodes meanwhile
            self._join(plan)
            self._plan_running(plan)
        # Without those whose readers were preempted just now.
        plan.admissions = [admission for admission in plan.admissions if admission.entry.readers]
        # After a preemption nobody comes in: it might drive out the next.
        preempted = self._preemptions > preemptions
        reason = WaitingFor.PAGES if preempted else self._admit(plan, now)
        if reason is not None:
            self._waiting_for[reason.value] += 1
        budget = self.max_batched_tokens - plan.positions
        page_size = self.resources.pool.page_size
        self._drafted += add_drafts(plan, budget, self.draft_tokens, page_size, self.step_rows)
        for admission in plan.admissions:
            admission.entry.written = True
        plan.rows.sort(key=_row_order)
        plan.ended = self._take_ended()
        return plan

    def _join(self, plan: StepPlan) -> None:
        """From this step on, what was encoded alongside earlier ones is read."""
        for admission in self._encoding:
            admission.entry.encoded = True
        plan.admissions += self._encoding
        self._encoding = []

    def _plan_running(self, plan: StepPlan) -> None:
        """A row for every running sequence that can go on."""
        # One token is kept for each later sequence, so that a long prefill delays no decode.
        later = sum(sequence.width for sequence in self.queue.running)
        for sequence in list(self.queue.running):
            later -= sequence.width
            if sequence.state is not State.RUNNING:  # preempted for one before it
                continue
            assert sequence.cross is not None
            if not sequence.cross.encoded:
                continue
            ahead = sequence.in_flight + sequence.drafted
            if sequence.generated + ahead >= sequence.request.decoding.max_tokens:
                continue  # its last token may be in flight
            budget = self.max_batched_tokens - plan.positions - later
            count = min(sequence.known - sequence.computed, budget)
            if self._make_room(sequence, count, plan):
                self._add_row(sequence, count, plan)

    def _make_room(self, sequence: Sequence, count: int, plan: StepPlan) -> bool:
        """Pages for `count` more positions, preempting the last in order while there are too few. False
        where that is the sequence itself."""
        while (new_pages := self.resources.grow(sequence, count)) is None:
            victim = self.queue.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        plan.new_pages += new_pages
        return True

    def _admit(self, plan: StepPlan, now: float) -> WaitingFor | None:
        """Lets waiting sequences in, strictly in order. Returns why the first one that stays is not let in;
        None: none stays."""
        decoding, encoder_tokens, reason = bool(plan.rows), 0, None
        while (first := self.queue.waiting.first()) is not None:
            sequence = first[1]
            if (reason := self._lacks(sequence, plan, encoder_tokens)) is not None:
                break
            entry = self.resources.admit(sequence)
            if entry.readers == 1 and not entry.written:
                self._encode(sequence, plan, overlapped=decoding and self.async_encode)
                encoder_tokens += entry.length
            self.queue.start(sequence)
            if sequence.queued_s is None:
                sequence.queued_s = now - sequence.arrived
            if self.draft_tokens:  # anew where it was preempted: so does the device begin
                sequence.drafter = Drafter.of(sequence.request)
            sequence.computed = 0
            plan.started.append(sequence)
            if entry.encoded:
                count = min(len(sequence.tokens), self.max_batched_tokens - plan.positions)
                self._make_room(sequence, count, plan)
                self._add_row(sequence, count, plan)
        if plan.overlapped:
            self._encoding, self._encoding_steps = list(plan.overlapped), 0
        return reason

    def _lacks(self, sequence: Sequence, plan: StepPlan, encoder_tokens: int) -> WaitingFor | None:
        """What a waiting sequence lacks to come in. encoder_tokens: those the plan admits already."""
        if (lacks := self.resources.lacks(sequence)) is not None:
            return lacks
        if sequence.in_flight:
            return WaitingFor.IN_FLIGHT
        if plan.positions >= self.max_batched_tokens:
            return WaitingFor.TOKENS
        encoder = sequence.request.encoder
        if not self.resources.holds_input(encoder.key):
            if encoder_tokens and encoder_tokens + len(encoder.token_ids) > self.max_encoder_tokens:
                return WaitingFor.ENCODER
            if encoder.hidden is None and self._encoding:
                return WaitingFor.ENCODER  # it goes in the next batch, with what else comes until then
        return None

    def _encode(self, sequence: Sequence, plan: StepPlan, *, overlapped: bool) -> None:
        """Has the K/V of a new encoder input computed, in this step or when its encoding is done."""
        entry, request = sequence.cross, sequence.request
        assert entry is not None
        if not entry.length:
            return
        if overlapped and request.encoder.hidden is None:
            entry.encoded = False
            plan.overlapped.append(Admission(entry, request, overlapped=True))
        else:
            plan.admissions.append(Admission(entry, request))
        self._encoded += entry.length

    def _add_row(self, sequence: Sequence, count: int, plan: StepPlan) -> None:
        start = sequence.computed
        sequence.computed += count
        complete = sequence.computed == sequence.known
        width = sequence.width if start >= len(sequence.request.prefix_ids) else 1
        token_ids = sequence.tokens[start : start + count] or [ON_DEVICE]
        targets = sequence.targets(start, sequence.computed)
        samples = int(complete and not sequence.request.target_ids)
        plan.rows.append(Row(sequence, start, count, token_ids, samples, width, targets, sequence.drafted))
        plan.positions += count * width
        if complete:
            sequence.in_flight += 1

    # -- apply

    def apply(self, plan: StepPlan, result: StepResult) -> list[Delta]:
        """Takes in what the plan's sampling rows gave."""
        deltas = []
        sampled = zip(
            result.tokens,
            result.logprobs or repeat(None),
            result.chosen_logprobs or repeat(0.0),
            strict=False,
        )
        finished, scores, outcomes = iter(result.beams), iter(result.scores), iter(result.drafts)
        alignments = iter(result.alignments)
        for row in plan.rows:
            sequence = row.sequence
            if row.target_ids:
                deltas += self._apply_scores(row, list(islice(scores, len(row.target_ids))), alignments)
            if not row.samples:
                continue
            sequence.in_flight -= 1
            if sequence.width > 1:
                deltas += self._apply_beams(sequence, next(finished))
                continue
            chosen, outcome = list(islice(sampled, row.samples)), next(outcomes, None)
            sequence.drafted -= row.samples - 1
            if sequence.state is not State.ENDED:  # else the step was under way when it ended
                deltas.append(self._apply_tokens(row, chosen, outcome))
        self._steps += 1
        return deltas

    def _apply_tokens(
        self,
        row: Row,
        chosen: list[tuple[int, TokenLogprobs | None, float]],
        outcome: DraftOutcome | None,
    ) -> Delta:
        """chosen: the tokens after the row's sampled positions, right as long as its draft tokens are."""
        sequence = row.sequence
        if sequence.drafter is not None and outcome is not None:
            sequence.drafter.observe(outcome, row.samples)
        new, logprobs, sum_logprob = [], [], 0.0
        for token, logprob, chosen_logprob in chosen[: 1 if outcome is None else outcome.right + 1]:
            sequence.tokens.append(token)
            new.append(token)
            logprobs.append(logprob)
            sum_logprob += chosen_logprob
            reason = finish_reason(sequence)
            if reason is not None:
                break
        sequence.computed += len(new) - 1
        if len(new) < row.samples:
            self.resources.trim(sequence)
        self._generated += len(new)
        self._accepted += len(new) - 1
        delta = token_delta(
            sequence,
            new,
            reason,
            [one for one in logprobs if one is not None],
            sum_logprob if sequence.request.decoding.sum_logprobs else None,
        )
        if reason is not None:
            self._end(sequence, None)
        return delta

    def _apply_scores(
        self, row: Row, scores: list[TokenLogprobs], alignments: Iterator[list[int]]
    ) -> list[Delta]:
        sequence = row.sequence
        # By position: one that was preempted finds the same again.
        at = max(0, row.start - sequence.scored_from)
        sequence.scores[at : at + len(scores)] = scores
        if not sequence.request.target_ids:
            return []  # the prompt's, which go with the first token
        last = row.start + row.count == len(sequence.tokens)
        aligned = last and sequence.request.decoding.alignment is not None
        alignment = next(alignments) if aligned else None
        sequence.in_flight -= last
        if sequence.state is State.ENDED or not last:
            return []
        self._end(sequence, None)
        return [score_delta(sequence, alignment)]

    def _apply_beams(self, sequence: Sequence, found: Found | None) -> list[Delta]:
        if sequence.state is not State.RUNNING:
            return []  # the step was under way when it ended, or was preempted and starts anew
        sequence.tokens.append(ON_DEVICE)
        self._generated += sequence.width
        if found is None:
            return []
        self._end(sequence, None)
        return [beam_delta(sequence, found)]

    # -- observation

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self.resources.used_slots,
            waiting=len(self.queue) - len(self.queue.running),
            max_running=self.resources.slots,
            free_pages=self.resources.free_pages,
            total_pages=self.resources.pool.total,
            cross_pages=self.resources.cross_pages,
            steps=self._steps,
            generated_tokens=self._generated,
            encoded_tokens=self._encoded,
            preemptions=self._preemptions,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
            waiting_for=self._waiting_for.copy(),
        )

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold. Cheap enough for production."""
        self.queue.check()
        self.resources.check(self.queue.running)
        for sequence in self.queue.running:
            if sequence.computed > sequence.known:
                raise AssertionError(f"{sequence.request.request_id} has computed what it does not know")


def _row_order(row: Row) -> tuple[int, int]:
    assert row.sequence.cross is not None
    return 2 if row.count > 1 else row.width > 1, row.sequence.cross.index
