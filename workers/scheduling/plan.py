"""The scheduler's state of a sequence, and the plan of one step: what the scheduler hands to the runner
and takes back. Plain data; only the scheduler writes to it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from tandem.outputs import TokenLogprobs
from tandem.workers.request import Delta, EngineRequest

if TYPE_CHECKING:
    from tandem.workers.scheduling.drafts import Drafter

# In place of a token that only the device knows: the sequence's last one. The numbers below it are draft
# tokens: ON_DEVICE - k is the k-th after the last one.
ON_DEVICE = -1


class State(Enum):
    WAITING = "waiting"  # not admitted yet, or preempted
    RUNNING = "running"  # holds a slot and pages
    ENDED = "ended"


class WaitingFor(Enum):
    """Why the first waiting sequence did not join the batch in a step. Those after it wait for it: nothing
    overtakes. Where it lacks several things, the first of these is the reason."""

    SLOTS = "slots"  # fewer free slots than it has beams: raise max_num_seqs, or add replicas
    PAGES = "pages"  # too few free pages for it and for the running ones to grow, or one was just preempted
    IN_FLIGHT = "in_flight"  # it was preempted, and the steps that know its last tokens are not applied yet
    TOKENS = "tokens"  # the step's max_batched_tokens are used up, by prefills most likely
    ENCODER = "encoder"  # the step's max_encoder_tokens are used up, or the encoder is busy with other inputs


@dataclass(slots=True, eq=False)
class CrossEntry:
    """The cross-attention pages of one encoder input, shared by the sequences that read it."""

    index: int  # row of the device's table of cross pages
    key: str
    pages: list[int]
    length: int  # encoder positions
    readers: int = 0  # running sequences
    encoded: bool = True  # False while its input is encoded alongside steps: its readers have no rows yet
    written: bool = False  # K and V are in the pages, or will be by the steps in flight
    kept: bool = False  # it stays without readers, until its pages are needed


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way. All fields are the scheduler's.

    Beams are `width` rows with slots and pages of their own, which come and go together. Their tokens stay on
    the device: after the prefix, `tokens` only counts them.
    """

    request: EngineRequest
    arrived: float  # on the clock of `now`, like the next two
    order: tuple[float, int]
    deadline: float | None
    tokens: list[int]  # prefix, then all generated tokens applied so far, or all of a target but its last
    state: State = State.WAITING
    computed: int = 0  # positions whose self K/V are in pages, or will be by the steps in flight, at least
    queued_s: float | None = None  # from arrival to first admission
    in_flight: int = 0  # tokens sampled by steps not applied yet, those after draft tokens excluded
    drafter: Drafter | None = None  # None: this engine drafts nothing
    drafted: int = 0  # draft tokens in steps not applied yet: only the device knows how many are right
    width: int = 1  # beams
    slots: list[int] = field(default_factory=list)  # `width` of them
    pages: list[int] = field(default_factory=list)  # those of all beams' first positions, then of the next, …
    cross: CrossEntry | None = None  # None unless it runs
    scores: list[TokenLogprobs] = field(default_factory=list)  # those of the tokens scored so far

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prefix_ids)

    @property
    def known(self) -> int:
        """Positions whose token is decided, by the host or by a step in flight."""
        return len(self.tokens) + self.in_flight

    @property
    def scored_from(self) -> int:
        """The position whose next token is the first to be scored, of a target or of the prefix, or the
        probe's."""
        if self.request.target_ids:
            return len(self.request.prefix_ids) - 1
        probe = self.request.decoding.probe
        return 0 if probe is None else probe[0]

    def targets(self, start: int, stop: int) -> tuple[int, ...]:
        """The tokens to be scored that follow these positions."""
        request, first = self.request, self.scored_from
        ids, decoding = request.target_ids, request.decoding
        if not self.generated:  # else they are delivered
            if decoding.prompt_logprobs is not None:
                ids = request.prefix_ids[1:]
            elif decoding.probe is not None:
                ids = decoding.probe[1:]
        return ids[max(0, start - first) : max(0, stop - first)]


@dataclass(slots=True)
class Admission:
    """An encoder input whose cross-attention K/V this step computes, into `entry.pages`."""

    entry: CrossEntry
    request: EngineRequest  # the first reader: says where the hidden states come from
    overlapped: bool = False  # its encoding began alongside an earlier step


@dataclass(slots=True)
class Row:
    """Consecutive positions of one sequence, computed in this step."""

    sequence: Sequence
    start: int  # first position, at least
    count: int  # positions
    # The positions' tokens, or ON_DEVICE and below; of beams, which have one each, the same for all.
    token_ids: list[int]
    samples: int  # so many of the last positions' logits give a token; of beams at most one
    width: int = 1  # beams that each compute this, their one, position; a prefix is computed by the first
    # Tokens to be scored, which follow the positions from the sequence's `scored_from` on.
    target_ids: tuple[int, ...] = ()
    uncertain: int = 0  # so many positions later at most, as many as draft tokens in flight are right

    @property
    def steps(self) -> range:
        """For each sampled position, how many tokens are generated before the one it gives, at least."""
        stop = self.start + self.count - len(self.sequence.request.prefix_ids) + 1
        return range(stop - self.samples, stop)


@dataclass(slots=True)
class StepPlan:
    """One step. Rows of one position come first, then beams, then longer rows; among each, rows that share
    an encoder input are adjacent."""

    rows: list[Row] = field(default_factory=list)
    positions: int = 0  # in the rows, of all beams; draft tokens excluded
    admissions: list[Admission] = field(default_factory=list)
    # Encoder inputs whose encoding begins alongside this step: a later one admits them.
    overlapped: list[Admission] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)  # got a slot: the sampler reads their parameters
    new_pages: list[tuple[int, int, int]] = field(default_factory=list)  # slot, index in its table, page
    ended: list[Delta] = field(default_factory=list)  # ended without a token: cancelled, deadline


# By beams, best first: generated ids, score, and the sum of log-probabilities where it was asked for.
Found = list[tuple[list[int], float, float | None]]


class DraftOutcome(NamedTuple):
    """What a step showed about a sequence's draft tokens."""

    right: int  # draft tokens up to the first wrong one, those that got no row included
    run: int  # so many of the sequence's last tokens stand in its source, too; 0: nothing is known to follow
    left: int  # tokens of the source after those


class StepResult(NamedTuple):
    """What the sampling rows of a plan gave, in the plan's order."""

    tokens: list[int]  # one for each sampled position of rows without beams
    logprobs: list[TokenLogprobs | None] | None = None  # one for each of `tokens`, if any row asked
    beams: Seq[Found | None] = ()  # one for each row of beams; None while they go on
    scores: Seq[TokenLogprobs] = ()  # those of the rows' targets, one after another
    drafts: Seq[DraftOutcome] = ()  # one for each sampling sequence without beams; none if nothing drafts
    # One for each of `tokens`, if any row asked: see `Delta.sum_logprob`.
    chosen_logprobs: list[float] | None = None
    alignments: Seq[list[int]] = ()  # one for each row that completes an aligned target
