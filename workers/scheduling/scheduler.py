"""What the next step computes: continuous batching over one pool of pages.

`plan(now)` decides, `apply(plan, tokens)` moves the state on; between the two the runner executes the
plan. Neither knows a device, a clock or a thread. Plans may be made ahead: a sequence's token of a
step not applied yet is known to the device only, and the plan refers to it.

Order: sequences are served by arrival, each level of priority counting as PRIORITY_S seconds of
waiting. The order never changes, nothing overtakes, so nothing starves; when pages run out, the last
in order is preempted and recomputed later from its tokens.

While others decode, an engine that encodes by itself may do so beside the steps: what comes in gets its slot,
and its first row when its encoder input is done. Meanwhile inputs gather, for the next batch.

When all that is planned, drafts take what is left, of the step's tokens and of pages that are held anyway.
Where a sequence that drafted goes on is known to the device only until its step is applied; plans made ahead
know the first and the last position it may be at.
"""

from __future__ import annotations

from itertools import islice, repeat
from typing import Literal

from tandem.errors import InvalidRequest, TandemError
from tandem.outputs import TokenLogprobs
from tandem.workers.request import Delta, EngineRequest
from tandem.workers.scheduling.deltas import beam_delta, finish_reason, score_delta, token_delta
from tandem.workers.scheduling.drafter import STEP_ROWS, DraftOutcome, drafter_of
from tandem.workers.scheduling.drafting import add_drafts
from tandem.workers.scheduling.pages import PagePool
from tandem.workers.scheduling.plan import (
    ON_DEVICE,
    Admission,
    Found,
    Row,
    Sequence,
    State,
    StepPlan,
    StepResult,
)
from tandem.workers.scheduling.resources import Resources

PRIORITY_S = 10.0
MAX_OVERLAP_STEPS = (
    16  # that go on without those who wait for their encoder inputs, at most; then a step waits
)

EndReason = Literal["cancelled", "deadline"]


class Scheduler(Resources):
    """See the module's docstring. Not thread-safe: one thread calls everything."""

    def __init__(
        self,
        pool: PagePool,
        *,
        max_num_seqs: int,
        max_batched_tokens: int,
        max_encoder_tokens: int,
        draft_tokens: int = 0,
        step_rows: int = STEP_ROWS["cpu"],
        async_encode: bool = False,
    ) -> None:
        """
        Args:
            max_num_seqs: sequences running at once (slots).
            max_batched_tokens: decoder positions computed in one step; at least max_num_seqs.
            max_encoder_tokens: encoder positions projected in one step; a single longer input goes alone.
            draft_tokens: guessed for a sequence in one step, at most.
            step_rows: a step takes as long as its rows and this many more.
            async_encode: the engine encodes beside its steps what it encodes by itself.
        """
        if max_batched_tokens < max_num_seqs:
            raise ValueError(f"max_batched_tokens {max_batched_tokens} < max_num_seqs {max_num_seqs}")
        super().__init__(pool, max_num_seqs)
        self.max_batched_tokens = max_batched_tokens
        self.max_encoder_tokens = max_encoder_tokens
        self.draft_tokens = draft_tokens
        self.step_rows = step_rows
        self.async_encode = async_encode
        self._encoding: list[Admission] = []  # beside the steps, one batch at a time
        self._encoding_steps = 0  # planned meanwhile

    # -- requests come and go

    def submit(self, request: EngineRequest, now: float) -> None:
        """Takes a request in. Raises InvalidRequest if it can never fit or its id is in use."""
        ending = (delta.request_id for delta in self._ended)  # its last delta is still to come
        if request.request_id in self._sequences or request.request_id in ending:
            raise InvalidRequest("is already running", field="request_id")
        width = request.decoding.beams.num_beams if request.decoding.beams else 1
        if width > 1 and request.generated_ids:
            raise InvalidRequest("beams start anew, not from tokens of one of them", field="generated_ids")
        if width > self.max_num_seqs:
            raise InvalidRequest(
                f"the engine decodes {self.max_num_seqs} sequences at once, got {width}", field="num_beams"
            )
        positions = len(request.prefix_ids) + request.decoding.max_tokens
        need = self.pool.pages_for(len(request.encoder.token_ids)) + width * self.pool.pages_for(positions)
        if need > self.pool.total:
            raise InvalidRequest(
                f"{len(request.encoder.token_ids)} encoder tokens, {len(request.prefix_ids)} decoder prompt "
                f"tokens and {request.decoding.max_tokens} new tokens need {need} pages of K/V memory, "
                f"the engine has {self.pool.total}",
                field="max_tokens",
            )
        self._arrivals += 1
        sequence = Sequence(
            request=request,
            arrived=now - request.waited_s,
            order=(now - request.waited_s - request.priority * PRIORITY_S, self._arrivals),
            deadline=None if request.timeout_s is None else now + request.timeout_s,
            tokens=[*request.prefix_ids, *request.generated_ids, *request.target_ids[:-1]],
            width=width,
        )
        self._sequences[request.request_id] = sequence
        if request.generated_ids and (reason := finish_reason(sequence)):
            self._end(sequence, token_delta(sequence, [], reason))
            return
        self._waiting.push(sequence.order, sequence)
        if sequence.deadline is not None:
            self._deadlines.push((sequence.deadline, self._arrivals), sequence)

    def cancel(self, request_id: str, reason: EndReason = "cancelled") -> None:
        """Ends a request; its last delta is in the next plan. Unknown ids have ended already."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._end(sequence, Delta(request_id, [], finish_reason=reason))

    def fail(self, plan: StepPlan, admission: Admission, error: TandemError) -> None:
        """Takes an encoder input that cannot be read out of a plan, and ends its readers."""
        plan.admissions.remove(admission)
        readers = [s for s in self._running if s.cross is admission.entry]
        plan.rows = [row for row in plan.rows if row.sequence.cross is not admission.entry]
        plan.started = [s for s in plan.started if s.cross is not admission.entry]
        for sequence in readers:
            self._end(sequence, Delta(sequence.request.request_id, [], error=error))
        plan.ended += self._take_ended()

    # -- decide

    def plan(self, now: float, *, encoded: bool = True) -> StepPlan:
        """The next step; empty where nothing can run before a step in flight is applied.

        encoded: whether the encoder inputs are done that earlier plans began with.
        """
        while (late := self._deadlines.first()) is not None and late[0][0] <= now:
            self._end(late[1], Delta(late[1].request.request_id, [], finish_reason="deadline"))
        plan = StepPlan()
        preemptions = self._preemptions
        self._encoding_steps += 1
        if encoded or self._encoding_steps > MAX_OVERLAP_STEPS:
            self._join(plan)
        budget = self._plan_running(plan)
        if self._encoding and not plan.rows:  # nobody decodes meanwhile
            self._join(plan)
            budget = self._plan_running(plan)
        # Without those whose readers were preempted just now.
        plan.admissions = [admission for admission in plan.admissions if admission.entry.readers]
        if self._preemptions == preemptions:  # else what would come in might drive out the next
            budget = self._admit(plan, budget, now)
        self._drafted += add_drafts(plan, budget, self.draft_tokens, self.pool.page_size, self.step_rows)
        plan.rows.sort(key=_row_order)
        plan.ended = self._take_ended()
        return plan

    def _join(self, plan: StepPlan) -> None:
        """From this step on, what was encoded beside the ones before is read."""
        for admission in self._encoding:
            admission.entry.encoded = True
        plan.admissions += self._encoding
        self._encoding = []

    def _plan_running(self, plan: StepPlan) -> int:
        """A row for every running sequence that can go on; returns the tokens left to the step."""
        budget = self.max_batched_tokens
        # One token is kept back for each sequence behind, so that a long prefill delays no decode.
        behind = sum(sequence.width for sequence in self._running)
        for sequence in list(self._running):
            behind -= sequence.width
            if sequence.state is not State.RUNNING:  # preempted for one before it
                continue
            assert sequence.cross is not None
            if not sequence.cross.encoded:
                continue
            ahead = sequence.in_flight + sequence.drafted
            if sequence.generated + ahead >= sequence.request.decoding.max_tokens:
                continue  # its last token may be in flight
            count = min(sequence.known - sequence.computed, budget - behind)
            if self._reserve(sequence, count, plan):
                budget -= self._add_row(sequence, count, plan)
        return budget

    def _reserve(self, sequence: Sequence, count: int, plan: StepPlan) -> bool:
        """Pages for `count` more positions, preempting the last in order while there are too few."""
        width = sequence.width
        need = self._need(sequence, count) - len(sequence.pages)
        while (pages := self.pool.take(need)) is None:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        for page in pages:
            index, beam = divmod(len(sequence.pages), width)
            plan.new_pages.append((sequence.slots[beam], index, page))
            sequence.pages.append(page)
        return True

    def _admit(self, plan: StepPlan, budget: int, now: float) -> int:
        """Lets waiting sequences in, strictly in order, while slots, pages and tokens last; returns the
        tokens left to the step."""
        encoder_tokens = 0
        overlap = self.async_encode and bool(plan.rows)
        while budget > 0:
            if (first := self._waiting.first()) is None:
                break
            sequence = first[1]
            if sequence.width > len(self._free_slots):
                break
            if sequence.in_flight:
                break  # a preempted one comes back only when all its tokens are known
            encoder = sequence.request.encoder
            entry = self._cross.get(encoder.key)
            length = len(encoder.token_ids)
            if entry is None and encoder_tokens and encoder_tokens + length > self.max_encoder_tokens:
                break
            if entry is None and encoder.hidden is None and self._encoding:
                break  # it goes in the next batch, with what else comes until then
            cross_pages = self.pool.pages_for(length) if entry is None else 0
            # Room for one more token, and for each running sequence to grow: fewer preemptions.
            self_pages = sequence.width * self.pool.pages_for(len(sequence.tokens) + 1)
            growth = self.max_num_seqs - len(self._free_slots)
            if cross_pages + self_pages + growth > self.pool.free:
                break
            if entry is None:
                entry = self._cross.make(encoder.key, length)
                entry.encoded = not (overlap and length and encoder.hidden is None)
                if not entry.encoded:
                    plan.overlapped.append(Admission(entry, sequence.request, overlapped=True))
                elif length:
                    plan.admissions.append(Admission(entry, sequence.request))
                encoder_tokens += length
                self._encoded += length
            entry.readers += 1
            self._waiting.pop()
            sequence.state, sequence.cross = State.RUNNING, entry
            if sequence.queued_s is None:
                sequence.queued_s = now - sequence.arrived
            if self.draft_tokens:  # anew where it was preempted: so does the device begin
                sequence.drafter = drafter_of(sequence.request)
            sequence.slots = [self._free_slots.pop() for _ in range(sequence.width)]
            sequence.computed = 0
            self._running.append(sequence)
            self._running.sort(key=lambda s: s.order)
            plan.started.append(sequence)
            if entry.encoded:
                count = min(len(sequence.tokens), budget)
                self._reserve(sequence, count, plan)
                budget -= self._add_row(sequence, count, plan)
        if plan.overlapped:
            self._encoding, self._encoding_steps = list(plan.overlapped), 0
        return budget

    def _add_row(self, sequence: Sequence, count: int, plan: StepPlan) -> int:
        """Returns how many positions are computed for it."""
        start = sequence.computed
        sequence.computed += count
        complete = sequence.computed == sequence.known
        width = sequence.width if start >= len(sequence.request.prefix_ids) else 1
        token_ids = sequence.tokens[start : start + count] or [ON_DEVICE]
        targets = sequence.targets(start, sequence.computed)
        samples = int(complete and not sequence.request.target_ids)
        row = Row(sequence, start, count, token_ids, samples, width, targets, sequence.drafted)
        plan.rows.append(row)
        if complete:
            sequence.in_flight += 1
        return count * width

    # -- apply

    def apply(self, plan: StepPlan, result: StepResult) -> list[Delta]:
        """Takes in what the plan's sampling rows gave."""
        deltas = []
        sampled = zip(result.tokens, result.logprobs or repeat(None), strict=False)
        finished, scores, seen = iter(result.beams), iter(result.scores), iter(result.seen)
        for row in plan.rows:
            sequence = row.sequence
            if row.target_ids:
                deltas += self._apply_scores(row, list(islice(scores, len(row.target_ids))))
            if not row.samples:
                continue
            sequence.in_flight -= 1
            if sequence.width > 1:
                deltas += self._apply_beams(sequence, next(finished))
                continue
            chosen, saw = list(islice(sampled, row.samples)), next(seen, None)
            sequence.drafted -= row.samples - 1
            if sequence.state is not State.ENDED:  # else the step was under way when it ended
                deltas.append(self._apply_tokens(row, chosen, saw))
        self._steps += 1
        return deltas

    def _apply_tokens(
        self, row: Row, chosen: list[tuple[int, TokenLogprobs | None]], seen: DraftOutcome | None
    ) -> Delta:
        """`chosen` are the tokens behind the row's sampled positions, right as long as the guesses were."""
        sequence = row.sequence
        if sequence.drafter is not None and seen is not None:
            sequence.drafter.observe(seen, row.samples)
        new, logprobs = [], []
        for token, logprob in chosen[: 1 if seen is None else seen.right + 1]:
            sequence.tokens.append(token)
            new.append(token)
            logprobs.append(logprob)
            reason = finish_reason(sequence)
            if reason is not None:
                break
        sequence.computed += len(new) - 1
        if len(new) < row.samples:
            self._trim(sequence)
        self._generated += len(new)
        self._accepted += len(new) - 1
        delta = token_delta(sequence, new, reason, [one for one in logprobs if one is not None])
        if reason is not None:
            self._end(sequence, None)
        return delta

    def _apply_scores(self, row: Row, scores: list[TokenLogprobs]) -> list[Delta]:
        sequence = row.sequence
        # By position: one that was preempted finds the same again.
        at = max(0, row.start - sequence.scored_from)
        sequence.scores[at : at + len(scores)] = scores
        if not sequence.request.target_ids:
            return []  # the prompt's, which go with the first token
        last = row.start + row.count == len(sequence.tokens)
        sequence.in_flight -= last
        if sequence.state is State.ENDED or not last:
            return []
        self._end(sequence, None)
        return [score_delta(sequence)]

    def _apply_beams(self, sequence: Sequence, found: Found | None) -> list[Delta]:
        if sequence.state is not State.RUNNING:
            return []  # the step was under way when it ended, or was preempted and starts anew
        sequence.tokens.append(ON_DEVICE)
        self._generated += sequence.width
        if found is None:
            return []
        self._end(sequence, None)
        return [beam_delta(sequence, found)]


def _row_order(row: Row) -> tuple[int, int]:
    assert row.sequence.cross is not None
    return 2 if row.count > 1 else row.width > 1, row.sequence.cross.index
