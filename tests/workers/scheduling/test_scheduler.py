"""The scheduler, held to a plain model of its promises (`simulator.py`) under random traffic."""

from __future__ import annotations

import gc
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import EOS, MAX_OVERLAP_STEPS, OWN_STOP, PRIORITY_S, Job, Simulator

from tandem.errors import InvalidRequest
from tandem.workers.request import EngineRequest
from tandem.workers.scheduling import drafts
from tandem.workers.scheduling.pages import PagePool
from tandem.workers.scheduling.plan import StepResult, WaitingFor
from tandem.workers.scheduling.resources import Resources
from tandem.workers.scheduling.scheduler import Scheduler

ARRIVALS = 20  # steps during which requests come


@pytest.fixture(autouse=True, scope="module")
def confident() -> Iterator[None]:
    """Drafters that expect to be right, until they see otherwise: many drafts, many wrong ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafts, "CHANCES", (0.9, 0.95, 0.99))
        yield


@dataclass(frozen=True)
class Scenario:
    """An engine's sizes, and everything that happens to it."""

    pages: int
    page_size: int
    max_num_seqs: int
    max_batched_tokens: int
    max_encoder_tokens: int
    depth: int
    draft_tokens: int
    failing: frozenset[int]
    seconds_a_step: float
    jobs: list[Job]
    overlapped: tuple[int, ...] = ()


small = st.integers


@st.composite
def jobs(draw: st.DrawFn, lengths: list[int]) -> Job:
    """One for an engine whose encoder inputs have these lengths; `scenarios` numbers it."""
    key = draw(small(0, len(lengths) - 1))
    max_tokens = draw(small(1, 16))
    stops = draw(st.dictionaries(small(0, 15), st.sampled_from([EOS, OWN_STOP]), max_size=2))
    job = Job(
        name=draw(st.sampled_from(["its own", "its own", "its own", "shared"])),
        number=0,
        key=key,
        encoder_length=lengths[key],
        prefix=draw(small(1, 9)),
        max_tokens=max_tokens,
        min_tokens=draw(small(0, max_tokens)),
        stops=tuple(stops.items()),
        stop_ids=draw(st.sampled_from([frozenset({EOS}), frozenset({EOS, OWN_STOP}), frozenset()])),
        priority=draw(st.sampled_from([0, 0, 0, 1, -2])),
        waited_s=draw(st.sampled_from([0.0, 0.0, 7.5])),
        timeout_s=draw(st.none() | st.floats(0, 30)),
        at=draw(small(0, ARRIVALS)),
        cancel_at=draw(st.none() | st.none() | small(0, 2 * ARRIVALS)),
        copied=frozenset(range(16)) - draw(st.frozensets(small(0, 15), max_size=4)),
        sampled=draw(st.sampled_from([False, False, False, True])),
    )
    if (width := draw(st.sampled_from([1, 1, 1, 2, 3]))) > 1:  # their device bans stops before min_tokens
        return replace(job, width=width, min_tokens=0)
    if draw(st.sampled_from([False, False, False, True])):
        return replace(job, scored=True)
    job = replace(job, prompted=draw(st.booleans()))
    return replace(job, resumed=draw(st.just(0) | small(0, len(job.answer[0]))))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    max_num_seqs = draw(small(1, 6))
    lengths = draw(st.lists(small(1, 12), min_size=1, max_size=4))  # of the encoder inputs
    page_size = draw(st.sampled_from([1, 2, 3, 4, 16]))
    all_jobs = [
        replace(job, number=number, name=str(number) if job.name == "its own" else job.name)
        for number, job in enumerate(draw(st.lists(jobs(lengths), min_size=1, max_size=14)))
    ]
    # Room for the largest and a little more, mostly: then pages run out.
    sizes = (job.encoder_length + job.width * (job.prefix + job.max_tokens) for job in all_jobs)
    largest = max(sizes) // page_size
    return Scenario(
        pages=max(1, largest + draw(st.sampled_from([-1, 0, 0, 0, 1, 1, 2, 3, 6, 12]))),
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_num_seqs + draw(small(0, 12)),
        max_encoder_tokens=draw(small(1, 24)),
        depth=draw(small(1, 3)),
        draft_tokens=draw(st.sampled_from([0, 1, 3, 7])),
        failing=draw(st.frozensets(small(0, 10), max_size=2)),
        seconds_a_step=draw(st.sampled_from([0.0, 0.5, 4.0])),
        jobs=all_jobs,
    )


def play(scenario: Scenario) -> Simulator:
    """Everything happens at its step, then it goes on until all is done."""
    simulator = Simulator(
        pages=scenario.pages,
        page_size=scenario.page_size,
        max_num_seqs=scenario.max_num_seqs,
        max_batched_tokens=scenario.max_batched_tokens,
        max_encoder_tokens=scenario.max_encoder_tokens,
        depth=scenario.depth,
        draft_tokens=scenario.draft_tokens,
        failing=scenario.failing,
        overlapped=scenario.overlapped,
    )
    work = [job.prefix + 2 * job.max_tokens + scenario.depth + 2 for job in scenario.jobs]
    # Whoever is first in order moves on at every step; it can only be displaced by a new arrival or wait
    # for the one that runs in its place.
    bound = ARRIVALS + 1 + 2 * sum(work) + len(work) * max(work)
    if scenario.overlapped:  # once for the batch before, once for its own, and again when it was preempted
        bound *= 1 + 2 * MAX_OVERLAP_STEPS
    submitted = 0
    for step in itertools.count():
        now = step * scenario.seconds_a_step
        for job in scenario.jobs:
            if job.at == step:
                submitted += simulator.submit(job, now) is not None
        for job in scenario.jobs:
            if job.cancel_at == step:
                simulator.cancel(job.name)
        if step > ARRIVALS and not simulator.lives and not simulator.launched:
            break
        assert step <= bound, f"still alive: {[life.job.name for life in simulator.lives.values()]}"
        simulator.step(now)
    assert len(simulator.ended) == submitted
    assert simulator.scheduler.stats().free_pages == scenario.pages
    return simulator


def test_everything_holds_whatever_happens() -> None:
    # What the random traffic ran into: it would prove little if nothing ever ran short.
    seen: Counter[str] = Counter()

    @settings(max_examples=300)
    @given(scenarios())
    def under(scenario: Scenario) -> None:
        simulator = play(scenario)
        ended = simulator.ended
        for life in ended:
            answer, reason = life.job.answer
            assert life.out == answer[: len(life.out)]
            if life.reason in ("stop", "length"):
                assert (life.out, life.reason) == (answer, reason)
        seen.update({str(life.reason) for life in ended})
        seen["preempted"] += simulator.preemptions > 0
        seen["cross pages shared"] += simulator.encoded < sum(life.job.encoder_length for life in ended)
        seen["prefilled in chunks"] += any(
            life.job.prefix > scenario.max_batched_tokens - scenario.max_num_seqs + 1 for life in ended
        )
        seen["beams"] += any(life.job.width > 1 and life.reason in ("stop", "length") for life in ended)
        seen["resumed"] += any(life.job.resumed for life in ended)
        seen["drafts right"] += simulator.accepted > 0
        seen.update(f"waited for {reason}" for reason, steps in simulator.waiting_for.items() if steps)
        seen["scored"] += any(life.job.scored and life.reason == "length" for life in ended)

    under()
    for what in ("stop", "length", "cancelled", "deadline", "error", "preempted", "cross pages shared",
                 "prefilled in chunks", "resumed", "beams", "scored", "drafts right", "waited for slots",
                 "waited for pages", "waited for tokens"):  # fmt: skip
        # How many exactly depends on what else was imported: hypothesis draws constants from it. What is
        # rare here, `test_long_traffic` is sure to meet.
        assert seen[what] >= 3, seen


def test_everything_holds_while_inputs_are_encoded() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=150)
    @given(scenarios(), st.sampled_from([(1,), (2,), (3, 1), (99, 2)]))
    def under(scenario: Scenario, overlapped: tuple[int, ...]) -> None:
        simulator = play(replace(scenario, overlapped=overlapped))
        for life in simulator.ended:
            if life.reason in ("stop", "length"):
                assert (life.out, life.reason) == life.job.answer
        seen["overlapped"] += simulator.batches > 0

    under()
    assert seen["overlapped"] >= 3, seen


@settings(max_examples=60)
@given(scenarios(), small(1, 3))
def test_answers_depend_on_nothing_but_the_request(scenario: Scenario, depth: int) -> None:
    """The same traffic through a small and a large engine, which drafts nothing: what ends by itself ends the
    same."""
    calm = [replace(job, name=str(job.number), timeout_s=None, cancel_at=None) for job in scenario.jobs]
    tight = replace(scenario, jobs=calm, failing=frozenset())
    roomy = replace(tight, pages=500, depth=depth, draft_tokens=0, max_batched_tokens=200, max_num_seqs=20)
    ends = [
        {life.job.number: (life.out, life.reason) for life in play(engine).ended} for engine in (tight, roomy)
    ]
    assert ends[0].items() <= ends[1].items()
    assert {reason for _, reason in ends[1].values()} <= {"stop", "length"}


@pytest.mark.parametrize(
    ("seed", "depth", "page_size", "overlapped"),
    [
        *((0, 1, 1, ()), (1, 1, 2, ()), (2, 2, 1, ()), (3, 2, 2, ()), (4, 3, 1, ()), (13, 3, 2, ())),
        *((6, 1, 8, ()), (7, 2, 8, ()), (8, 3, 8, ())),
        *((9, 1, 2, (1,)), (10, 2, 2, (3, 1, 99)), (11, 3, 1, (2, 6))),
    ],
)
def test_long_traffic(seed: int, depth: int, page_size: int, overlapped: tuple[int, ...]) -> None:
    """A busy engine, for longer than random scenarios last: half a thousand requests, of which the pages
    hold a few."""
    rng = random.Random(seed)
    simulator = Simulator(
        pages=20 if page_size == 8 else 40,
        page_size=page_size,
        max_num_seqs=8,
        max_batched_tokens=rng.choice([8, 12, 40]),
        max_encoder_tokens=rng.choice([8, 20]),
        depth=depth,
        draft_tokens=7,
        failing=rng.sample(range(300), 10),
        overlapped=overlapped,
    )
    lengths = [rng.randint(1, 16 if page_size == 8 else 6) for _ in range(100)]
    copies = random.Random(seed)
    submitted = 0
    for step in itertools.count():
        now = step / 10
        if submitted < 500 and len(simulator.lives) < 30:
            key = max(rng.randrange(len(lengths)) for _ in range(3))
            job = Job(
                str(step), step, key, lengths[key],
                prefix=rng.randint(1, 8),
                max_tokens=rng.randint(1, 15 * page_size),
                stops=((rng.randint(0, 60), EOS),),
                priority=rng.choice([0, 0, 0, 1]),
                timeout_s=rng.choice([None, None, None, 5.0]),
                copied=frozenset(count for count in range(60) if copies.random() < 0.97),
            )  # fmt: skip
            if rng.random() < 0.2:
                job = replace(job, width=rng.randint(2, 3), max_tokens=min(job.max_tokens, 9 * page_size))
            elif rng.random() < 0.3:
                job = replace(job, scored=True)
            else:
                job = replace(job, resumed=rng.choice([0, 0, rng.randint(0, len(job.answer[0]))]))
            submitted += simulator.submit(job, now) is not None
        if simulator.lives and rng.random() < 0.05:
            simulator.cancel(rng.choice(sorted(simulator.lives)))
        simulator.step(now)
        if submitted == 500 and not simulator.lives:
            break
        assert step < 20_000
    assert len(simulator.ended) == 500
    if page_size < 8:
        assert simulator.preemptions > 20
        assert simulator.rescored > 0
        assert simulator.restarts > 0
    else:  # drafts take what a page has left
        assert simulator.preemptions > 10
        assert 20 < simulator.accepted < simulator.drafted
    if page_size > 1:
        # Plans made ahead know neither how many guesses were right nor where their rows begin.
        assert (simulator.unseen_drafts > 0) == (simulator.moved > 0) == (depth > 1)
        assert (simulator.preempted_drafts > 0) == (depth > 1)
    if overlapped:
        assert simulator.batch_inputs > 1.1 * simulator.batches > 50
        assert simulator.abandoned > 0
        assert (simulator.overdue > 0) == (99 in overlapped)


# -- overlapped encoding


def test_inputs_gather_while_others_are_encoded() -> None:
    """Two more steps for a batch: what comes meanwhile makes the next."""
    ours = engine(pages=64, max_num_seqs=8, overlapped=(2,))
    for step in range(8):
        ours.submit(Job(str(step), step, key=step, encoder_length=2, max_tokens=12, at=step), step)
        ours.step(step)
        waits = [name for name, life in ours.lives.items() if life.running and not life.computed]
        # The first was encoded in its step: nobody decoded, it would have waited anyway.
        assert waits == [[], ["1"], ["1"], ["1"], ["2", "3", "4"], ["2", "3", "4"], ["2", "3", "4"],
                         ["5", "6", "7"]][step]  # fmt: skip
    assert (ours.batches, ours.batch_inputs) == (3, 7)


def test_a_step_waits_for_inputs_where_nobody_decodes() -> None:
    ours = engine(overlapped=(99,))
    ours.submit(Job("first", 0, key=0, encoder_length=2, max_tokens=3), 0.0)
    ours.step(0.0)
    ours.submit(Job("second", 1, key=1, encoder_length=2, max_tokens=3), 0.0)
    ours.step(0.0)
    ours.step(0.0)
    assert [life.job.name for life in ours.ended] == ["first"]
    assert ours.lives["second"].computed == 0
    ours.step(0.0)
    assert ours.lives["second"].computed == 1


def test_nobody_waits_longer_than_so_many_steps() -> None:
    ours = engine(pages=64, overlapped=(99,))
    ours.submit(Job("first", 0, key=0, encoder_length=2, max_tokens=40), 0.0)
    ours.step(0.0)
    ours.submit(Job("second", 1, key=1, encoder_length=2), 0.0)
    for _ in range(1 + MAX_OVERLAP_STEPS):
        assert not ours.lives["second"].computed
        ours.step(0.0)
    ours.step(0.0)
    assert ours.lives["second"].computed
    assert ours.overdue == 1


# -- why one waits


@pytest.mark.parametrize(
    ("reason", "sizes", "second"),
    [
        ("slots", {"max_num_seqs": 1}, {}),
        ("pages", {"pages": 9}, {"encoder_length": 12}),
        ("tokens", {"max_batched_tokens": 5}, {}),
        ("encoder", {"max_encoder_tokens": 6}, {}),
    ],
)
def test_what_the_first_that_waits_lacks_is_counted(
    reason: str, sizes: dict[str, int], second: dict[str, int]
) -> None:
    """Once a step, however many wait."""
    ours = engine(**sizes)
    ours.submit(Job("first", 0, key=0, encoder_length=4, prefix=5), 0.0)
    for number in (1, 2):
        ours.submit(Job(str(number), number, key=number, **({"encoder_length": 4} | second)), 0.0)
    ours.step(0.0)
    waiting_for = ours.scheduler.stats().waiting_for
    assert waiting_for == {one.value: int(one.value == reason) for one in WaitingFor}


def test_a_preempted_one_waits_for_its_tokens() -> None:
    ours = engine(pages=9, depth=2)
    for number in (0, 1):
        ours.submit(Job(str(number), number, key=0, encoder_length=2, prefix=3, max_tokens=9), 0.0)
    while ours.lives:
        ours.step(0.0)
    waiting_for = ours.scheduler.stats().waiting_for
    assert ours.preemptions > 0
    assert waiting_for["in_flight"] + waiting_for["pages"] > 0


# -- fairness


def engine(**sizes: Any) -> Simulator:
    defaults: dict[str, Any] = {
        "pages": 16, "page_size": 2, "max_num_seqs": 4, "max_batched_tokens": 8, "max_encoder_tokens": 16,
    }  # fmt: skip
    return Simulator(**{**defaults, **sizes})


@pytest.mark.parametrize("depth", [1, 2])
def test_a_long_request_is_not_starved_by_an_endless_stream_of_short_ones(depth: int) -> None:
    simulator = engine(depth=depth)
    numbers = itertools.count(1)

    def short() -> None:
        number = next(numbers)
        simulator.submit(Job(str(number), number, number, encoder_length=2, max_tokens=2), 0.0)

    for _ in range(6):
        short()
    simulator.step(0.0)
    # Takes all pages but one: it can only run while hardly anything else does.
    long = simulator.submit(Job("long", 0, 0, encoder_length=8, prefix=3, max_tokens=19), 0.0)
    assert long is not None
    for _ in range(60):
        short()
        short()
        simulator.step(0.0)
    assert long.reason == "length"
    assert long.steps <= 2 * 3 + 19 + 4 * depth  # those before it, its own tokens, pipeline


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("priority", [1, 3])
def test_waiting_outweighs_priority(priority: int, depth: int) -> None:
    """Ten important requests are always there. The unimportant one starts when it has waited PRIORITY_S
    seconds for each level, and the ten that came before that are done."""
    simulator = engine(depth=depth)
    numbers = itertools.count(1)
    humble = simulator.submit(Job("humble", 0, 0, encoder_length=4, max_tokens=6), 0.0)
    assert humble is not None
    for step in itertools.count():
        now = step * 0.25
        while len(simulator.lives) < 11:
            number = next(numbers)
            job = Job(str(number), number, number, encoder_length=4, max_tokens=6, priority=priority)
            simulator.submit(job, now)
        simulator.step(now)
        if humble.running:
            break
        assert now < 100
    # Each takes 6 steps and what lies between being sampled and being applied; two at a time at least.
    assert priority * PRIORITY_S <= now <= priority * PRIORITY_S + 0.25 * 10 * (6 + depth) / 2


def test_equals_start_in_the_order_of_their_arrival() -> None:
    simulator = engine(max_num_seqs=2)
    for number in range(8):
        simulator.submit(Job(str(number), number, number, encoder_length=3, max_tokens=4 - number % 3), 1.0)
    while simulator.lives:
        simulator.step(1.0)
    assert [life.job.number for life in simulator.started] == list(range(8))


def test_priority_goes_first() -> None:
    simulator = engine(max_num_seqs=1)
    for number, priority in enumerate([0, 0, 2, -1, 1]):
        simulator.submit(Job(str(number), number, 0, encoder_length=2, priority=priority), 5.0)
    while simulator.lives:
        simulator.step(5.0)
    assert [life.job.number for life in simulator.started] == [2, 4, 0, 1, 3]


def test_a_request_that_has_waited_elsewhere_keeps_its_place() -> None:
    simulator = engine(max_num_seqs=1)
    for number, waited_s in enumerate([0.0, 1.0, 3.0]):
        simulator.submit(Job(str(number), number, 0, encoder_length=2, waited_s=waited_s), 5.0 + number)
    while simulator.lives:
        simulator.step(8.0)
    assert [life.job.number for life in simulator.started] == [2, 0, 1]


def test_the_first_token_says_how_long_a_request_has_queued() -> None:
    scheduler = Scheduler(Resources(PagePool(100, 4), 1), max_batched_tokens=8, max_encoder_tokens=100)
    for number, waited_s in enumerate([0.0, 0.5]):
        job = Job(str(number), number, 0, encoder_length=2, max_tokens=2, waited_s=waited_s)
        scheduler.submit(job.request(), 10.0)
    queued = []
    for now in (11.0, 12.0, 13.0, 14.0):
        queued += [delta.queued_s for delta in scheduler.apply(scheduler.plan(now), StepResult([9]))]
    assert queued == [1.5, None, 3.0, None]


# -- single promises


@pytest.mark.parametrize("depth", [1, 2])
def test_beams_come_and_go_together(depth: int) -> None:
    simulator = engine(depth=depth, pages=30)
    simulator.submit(Job("three", 0, 0, encoder_length=4, prefix=3, max_tokens=5, width=3), 0.0)
    simulator.submit(Job("two", 1, 1, encoder_length=4, max_tokens=5, width=2), 0.0)
    running = []
    while simulator.lives:
        simulator.step(0.0)
        running.append(simulator.scheduler.stats().running)
    assert set(running) == {3, 2, 0}  # never four: the two wait until both have a slot
    assert simulator.generated == 3 * 5 + 2 * 5
    assert simulator.encoded == 8


def test_a_cancelled_search_frees_all_it_holds() -> None:
    simulator = engine(pages=30, depth=2)
    simulator.submit(Job("beams", 0, 0, encoder_length=4, max_tokens=9, width=4), 0.0)
    for _ in range(3):
        simulator.step(0.0)
    assert simulator.scheduler.stats().running == 4
    simulator.cancel("beams")
    assert (simulator.scheduler.stats().running, simulator.scheduler.stats().free_pages) == (0, 30)
    while simulator.lives or simulator.launched:
        simulator.step(0.0)
    assert [life.reason for life in simulator.ended] == ["cancelled"]


def test_more_beams_than_slots_are_refused_by_name() -> None:
    assert engine(max_num_seqs=2).submit(Job("wide", 0, 0, encoder_length=2, width=3), 0.0) is None


def test_beams_do_not_go_on_from_tokens() -> None:
    moved = Job("moved", 0, 0, encoder_length=2, width=3, resumed=1).request()
    with pytest.raises(InvalidRequest, match="generated_ids"):
        engine().scheduler.submit(moved, 0.0)


def test_readers_of_one_input_share_its_pages() -> None:
    simulator = engine()
    for number in range(4):
        simulator.submit(Job(str(number), number, key=0, encoder_length=7), 0.0)
    simulator.step(0.0)
    stats = simulator.scheduler.stats()
    assert (stats.running, stats.cross_pages, stats.encoded_tokens) == (4, 4, 7)


def test_a_long_prompt_delays_no_decode() -> None:
    """While 30 tokens are prefilled, 8 a step, the others get their token at every step."""
    simulator = engine(pages=40)
    for number in range(3):
        simulator.submit(Job(str(number), number, number, encoder_length=2, max_tokens=9), 0.0)
    simulator.step(0.0)
    simulator.submit(Job("long", 9, 9, encoder_length=2, prefix=30, max_tokens=1), 0.0)
    for done in range(2, 9):
        simulator.step(0.0)
        assert [len(simulator.lives[str(n)].out) for n in range(3)] == [done] * 3


def test_an_encoder_input_beyond_the_step_budget_goes_alone() -> None:
    simulator = engine(pages=40, max_encoder_tokens=4)
    for number, length in enumerate([3, 9, 3, 1]):
        simulator.submit(Job(str(number), number, number, encoder_length=length, max_tokens=20), 0.0)
    started = []
    for _ in range(3):
        simulator.step(0.0)
        started.append(sum(life.running for life in simulator.lives.values()))
    assert started == [1, 2, 4]


def test_requests_that_can_never_fit_are_refused_by_name() -> None:
    simulator = engine(pages=4, page_size=2)
    assert simulator.submit(Job("too long", 0, 0, encoder_length=3, prefix=1, max_tokens=4), 0.0) is None
    fits = simulator.submit(Job("fits", 1, 0, encoder_length=3, prefix=1, max_tokens=3), 0.0)
    assert fits is not None
    while simulator.lives:
        simulator.step(0.0)
    assert fits.reason == "length"


def test_what_is_complete_when_it_comes_ends_without_a_step() -> None:
    simulator = engine()
    simulator.submit(Job("full", 0, 0, encoder_length=2, max_tokens=3, resumed=3), 0.0)
    simulator.submit(Job("ended", 1, 0, encoder_length=2, max_tokens=9, stops=((1, EOS),), resumed=2), 0.0)
    simulator.step(0.0)
    assert [life.reason for life in simulator.ended] == ["length", "stop"]
    assert simulator.encoded == 0


def test_an_input_that_cannot_be_read_ends_its_readers_only() -> None:
    simulator = engine(failing=[1])
    for number, key in enumerate([0, 1, 1, 2]):
        simulator.submit(Job(str(number), number, key, encoder_length=3), 0.0)
    simulator.step(0.0)
    assert [(life.job.number, life.reason) for life in simulator.ended] == [(1, "error"), (2, "error")]
    simulator.submit(Job("again", 4, 1, encoder_length=3), 0.0)
    while simulator.lives:
        simulator.step(0.0)
    assert [life.reason for life in simulator.ended[2:]] == ["length"] * 3


def test_unknown_ids_are_not_cancelled_twice() -> None:
    simulator = engine()
    simulator.submit(Job("a", 0, 0, encoder_length=2), 0.0)
    simulator.cancel("nobody")
    simulator.cancel("a")
    simulator.cancel("a")
    simulator.step(0.0)
    assert [life.reason for life in simulator.ended] == ["cancelled"]


@pytest.mark.parametrize("timeout_s", [1e6, None])
def test_ended_requests_are_kept_neither_until_their_deadline_nor_after_one_that_waits(
    timeout_s: float | None,
) -> None:
    def remembered() -> int:
        gc.collect()
        return sum(type(thing) is EngineRequest for thing in gc.get_objects())

    before = remembered()
    simulator = engine(max_num_seqs=1, pages=600)
    for number, name in enumerate(("running", "waiting"), 1000):
        simulator.submit(Job(name, number, 0, encoder_length=2, max_tokens=1000), 0.0)
    for number in range(200):
        simulator.submit(Job(str(number), number, 0, encoder_length=2, timeout_s=timeout_s), 0.0)
        simulator.cancel(str(number))
        simulator.step(0.0)
    simulator.ended.clear()
    assert remembered() - before < 100


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="max_batched_tokens 3 < 4 slots"):
        engine(max_batched_tokens=3)


def test_a_request_without_an_encoder_input_needs_neither_pages_nor_an_admission() -> None:
    """A decoder-only model has such requests."""
    scheduler = Scheduler(Resources(PagePool(9, 2), 2), max_batched_tokens=16, max_encoder_tokens=16)
    for number in range(3):
        scheduler.submit(Job(str(number), number, 0, encoder_length=0, prefix=3).request(), 0.0)
    plan = scheduler.plan(0.0)
    assert [row.count for row in plan.rows] == [3, 3]
    assert not plan.admissions
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.cross_pages, stats.encoded_tokens) == (2, 1, 0, 0)
    scheduler.check()
