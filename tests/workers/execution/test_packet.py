"""A step as integers: what rank 0 sends is what the others read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from simulator import EOS, Job, Simulator

from tandem.kernels.values import EARLIER, LENGTH, RUN, SOURCE
from tandem.workers.execution.packet import (
    ANY_ID,
    BEAM,
    CLOSE,
    ENCODE_HERE,
    ENCODED_ASYNC,
    FIRST_BEAM,
    NO_TOP,
    SINGLE,
    EncodePacket,
    Ints,
    Packet,
    Rows,
    Table,
)
from tandem.workers.request import NO_KEY, Alignment, CrossSpan, EncoderInput
from tandem.workers.scheduling.pages import PagePool
from tandem.workers.scheduling.plan import ON_DEVICE, DraftOutcome, StepPlan, StepResult
from tandem.workers.scheduling.resources import Resources
from tandem.workers.scheduling.scheduler import Scheduler


@dataclass
class Elsewhere:
    """Hidden states that another worker has."""

    handle: int

    def __call__(self) -> torch.Tensor:
        raise AssertionError("packets do not read them")


def scheduler(**options: Any) -> Scheduler:
    resources = Resources(PagePool(32, 4), 4)
    return Scheduler(resources, max_batched_tokens=16, max_encoder_tokens=64, **options)


def arrive(
    to: Scheduler, job: Job, token_ids: tuple[int, ...], handle: int | None = None,
    spans: tuple[CrossSpan, ...] = (),
) -> None:  # fmt: skip
    hidden = None if handle is None else Elsewhere(handle)
    encoder = EncoderInput(f"key {job.key}", token_ids, hidden)
    to.submit(replace(job.request(), encoder=encoder, cross_spans=spans), 0.0)


def there_and_back(packet: Packet) -> Packet:
    values = packet.to_ints()
    assert values.dtype == np.int64
    assert values.tolist() != CLOSE
    # As it travels, see Group.send_integers.
    return Packet.from_ints(torch.tensor(values.tolist()).numpy())


def values_of(part: Table | Ints) -> Ints:
    return part.values if isinstance(part, Table) else part


def assert_same(one: Packet, other: Packet) -> None:
    for part in fields(Packet):
        ours, theirs = (values_of(getattr(packet, part.name)) for packet in (one, other))
        assert ours.shape == theirs.shape, part.name
        assert (ours == theirs).all(), part.name


def test_a_first_step() -> None:
    """Two inputs to be encoded here, one that is elsewhere, a reader that shares, a prompt."""
    ours = scheduler()
    arrive(ours, Job("a", 0, key=0, encoder_length=5), (11, 12, 13, 14, 1))
    arrive(ours, Job("b", 1, key=1, encoder_length=2), (21, 1), handle=77)
    arrive(ours, Job("c", 2, key=2, encoder_length=3, prefix=3), (31, 32, 1))
    arrive(ours, Job("d", 3, key=0, encoder_length=5), (11, 12, 13, 14, 1))
    plan = ours.plan(0.0)
    packet = there_and_back(Packet.of(plan))
    entries = [admission.entry for admission in plan.admissions]
    # By length, so that the encoder finds neighbours of equal length.
    assert packet.admissions.values.tolist() == [
        [entries[1].index, 2, 1, 77],
        [entries[2].index, 3, 1, ENCODE_HERE],
        [entries[0].index, 5, 2, ENCODE_HERE],
    ]
    assert packet.admission_pages.tolist() == [
        *entries[1].pages, *entries[2].pages, *entries[0].pages,
    ]  # fmt: skip
    assert packet.admission_tokens.tolist() == [31, 32, 1, 11, 12, 13, 14, 1]
    rows = {row.sequence.request.request_id: row.sequence for row in plan.rows}
    order = [row.sequence.request.request_id for row in plan.rows]
    assert order[-1] == "c"
    by_row = dict(zip(order, packet.rows.values.tolist(), strict=True))
    for name, (start, count, entry) in {
        "a": (0, 1, 0), "b": (0, 1, 1), "c": (0, 3, 2), "d": (0, 1, 0),
    }.items():  # fmt: skip
        assert by_row[name] == [rows[name].slots[0], start, count, entries[entry].index, 1, SINGLE, 0]
    assert packet.row_tokens.tolist() == [token for name in order for token in rows[name].tokens]
    assert {tuple(new) for new in packet.new_pages.values.tolist()} == {
        (sequence.slots[0], 0, sequence.pages[0]) for sequence in rows.values()
    }


def test_keys_of_media_travel_in_the_order_of_their_positions() -> None:
    """An item without one has the key of no other."""
    ours = scheduler()
    keys = ((-(2**63), 2**63 - 1), (5, -6))
    inputs = [
        EncoderInput("longer", (7, 7, 7, 1), features=torch.zeros(2, 3), media_keys=keys),
        EncoderInput("shorter", (7, 1), features=torch.zeros(1, 3)),
        EncoderInput("text", (1,)),
    ]
    for number, encoder in enumerate(inputs):
        length = len(encoder.token_ids)
        request = Job(str(number), number, key=number, encoder_length=length).request()
        ours.submit(replace(request, encoder=encoder), 0.0)
    packet = there_and_back(Packet.of(ours.plan(0.0)))
    assert packet.admission_media.keys == [NO_KEY, *keys]
    encoding = EncodePacket.of(inputs)
    read = EncodePacket.from_ints(torch.tensor(encoding.to_ints().tolist()).numpy())
    assert read.media.keys == [*keys, NO_KEY]
    assert (read.lengths.tolist(), read.token_ids.tolist()) == ([4, 2, 1], [7, 7, 7, 1, 7, 1, 1])


def test_a_token_that_only_the_device_knows() -> None:
    ours = scheduler()
    arrive(ours, Job("a", 0, key=0, encoder_length=2, prefix=2), (11, 1))
    first = ours.plan(0.0)
    ahead = there_and_back(Packet.of(ours.plan(0.0)))
    assert ahead.row_tokens.tolist() == [ON_DEVICE]
    assert (ahead.rows.start.tolist(), ahead.rows.count.tolist()) == ([2], [1])
    assert len(ahead.admissions) == len(ahead.new_pages) == 0
    ours.apply(first, StepResult([99]))


def test_draft_tokens_are_rows_whose_tokens_only_the_device_knows() -> None:
    """Only the device knows where the next row begins, too, until their step is applied."""
    ours = scheduler(draft_tokens=3)
    source = tuple(range(20, 30))
    arrive(ours, Job("a", 0, key=0, encoder_length=10, prefix=2, max_tokens=30), source)
    arrive(ours, Job("b", 1, key=1, encoder_length=1, max_tokens=30, sampled=True), (9,))
    first = ours.plan(0.0)
    packet = there_and_back(Packet.of(first))
    copier = next(row.sequence for row in first.rows if row.count == 2)
    other = next(row.sequence for row in first.rows if row.count == 1)
    assert packet.sources.values.tolist() == [[copier.slots[0], SOURCE + 10], [other.slots[0], SOURCE]]
    columns = packet.source_columns.tolist()
    *columns, last, _, _, _, _, _, length = columns
    assert (last, length) == (other.tokens[-1], 0)  # who draws has nothing to copy
    assert columns[: EARLIER + 1] == [*copier.tokens[::-1], -1]
    assert (columns[RUN], columns[LENGTH], columns[SOURCE:]) == (0, 10, list(source))
    ours.apply(first, StepResult([99, 21], drafts=[DraftOutcome(0, 0, 0), DraftOutcome(0, 3, 8)]))

    packet = there_and_back(Packet.of(ours.plan(0.0)))
    assert len(packet.sources) == 0
    assert copier.cross is not None
    assert packet.rows.values[-1].tolist() == [copier.slots[0], 2, 2, copier.cross.index, 2, SINGLE, 0]
    assert packet.row_tokens[-2:].tolist() == [21, ON_DEVICE - 1]
    packet = there_and_back(Packet.of(ours.plan(0.0)))
    assert packet.rows.values[-1].tolist() == [copier.slots[0], 3, 2, copier.cross.index, 2, SINGLE, 1]
    assert packet.row_tokens[-2:].tolist() == [ON_DEVICE, ON_DEVICE - 1]


def test_beams_are_rows_of_one_request() -> None:
    """The first computes the prefix; from then on each has a row, and reads the same encoder input."""
    ours = scheduler()
    arrive(ours, Job("a", 0, key=0, encoder_length=2, prefix=2, width=3), (11, 1))
    arrive(ours, Job("b", 1, key=1, encoder_length=2, max_tokens=9), (12, 1))
    plan = ours.plan(0.0)
    first = there_and_back(Packet.of(plan))
    slots = plan.rows[-1].sequence.slots
    assert first.rows.values[1].tolist() == [slots[0], 0, 2, 0, 1, FIRST_BEAM, 0]
    assert first.beam_slots.tolist() == slots
    second = there_and_back(Packet.of(ours.plan(0.0)))
    assert second.rows.values[1:].tolist() == [[slot, 2, 1, 0, 1, BEAM, 0] for slot in slots]
    assert second.row_tokens.tolist() == [ON_DEVICE] * 4
    assert second.beam_slots.tolist() == slots


def test_each_beam_has_its_requests_spans() -> None:
    spans = (CrossSpan(0, 0, 2, own=False), CrossSpan(1, 0, 1, own=True))
    ours = scheduler()
    arrive(ours, Job("a", 0, key=0, encoder_length=2, prefix=2, width=2), (11, 1), spans=spans)
    arrive(ours, Job("b", 1, key=1, encoder_length=2, prefix=2), (12, 1), spans=spans[1:])
    plan = ours.plan(0.0)
    packet = there_and_back(Packet.of(plan))
    beams, alone = (sequence.slots for sequence in plan.started)
    assert packet.cross_spans.values.tolist() == [
        *([slot, *of] for slot in beams for of in ([0, 0, 2, 0], [1, 0, 1, 1])),
        [alone[0], 1, 0, 1, 1],
    ]
    assert len(there_and_back(Packet.of(ours.plan(0.0))).cross_spans) == 0


def test_an_unfinished_prefill_does_not_sample() -> None:
    ours = scheduler()
    arrive(ours, Job("a", 0, key=0, encoder_length=2, prefix=20), (11, 1))
    plans = [there_and_back(Packet.of(ours.plan(0.0))) for _ in range(2)]
    assert [plan.rows.values[0, 1:].tolist() for plan in plans] == [
        [0, 16, 0, 0, SINGLE, 0],
        [16, 4, 0, 1, SINGLE, 0],
    ]
    assert [len(plan.new_pages) for plan in plans] == [4, 1]


def test_targets_follow_the_last_positions_of_their_row() -> None:
    """The prefix's last position is the first that one follows."""
    ours = scheduler()
    job = Job("a", 0, key=0, encoder_length=2, prefix=14, max_tokens=7, scored=True)
    arrive(ours, job, (11, 1))
    target = job.request().target_ids
    packets = [there_and_back(Packet.of(ours.plan(0.0))) for _ in range(2)]
    assert [packet.rows.values[0, 1:].tolist() for packet in packets] == [
        [0, 16, 0, 0, SINGLE, 0],
        [16, 4, 0, 0, SINGLE, 0],
    ]
    assert [packet.targets.values.tolist() for packet in packets] == [
        [[13 + at, token, NO_TOP, ANY_ID] for at, token in enumerate(target[:3])],
        [[at, token, NO_TOP, ANY_ID] for at, token in enumerate(target[3:])],
    ]
    assert packets[1].row_tokens.tolist() == list(target[2:6])


def test_a_prompts_tokens_are_scored_up_to_its_last() -> None:
    """After another request's position, and the last one samples."""
    ours = scheduler()
    arrive(ours, Job("a", 0, key=0, encoder_length=2), (11, 1))
    job = Job("b", 1, key=0, encoder_length=2, prefix=4, prompted=True)
    arrive(ours, job, (11, 1))
    packet = there_and_back(Packet.of(ours.plan(0.0)))
    assert packet.targets.values.tolist() == [
        [1 + at, token, 0, ANY_ID] for at, token in enumerate(job.prefix_ids[1:])
    ]
    assert packet.rows.samples.tolist() == [1, 1]


def test_columns_are_views_by_name() -> None:
    rows = Rows.of([(4, 0, 3, 1, 1, SINGLE, 0), (5, 7, 1, 2, 0, BEAM, 2)])
    assert Rows.columns == ("slot", "start", "count", "entry", "samples", "kind", "uncertain")
    assert [getattr(rows, name).tolist() for name in Rows.columns] == rows.values.T.tolist()
    assert rows.start.base is not None
    assert rows[rows.kind == BEAM].slot.tolist() == [5]
    assert rows[:1].count.tolist() == [3]
    with pytest.raises(ValueError, match="reshape"):
        Rows.of([(4, 0, 3)])


def test_an_empty_step() -> None:
    empty = there_and_back(Packet.of(StepPlan()))
    assert [values_of(getattr(empty, part.name)).shape for part in fields(Packet)] == [
        (0, 4), (0,), (0,), (0, 2), (0, 3), (0, 7), (0,), (0,), (0, 4), (0, 9), (0,), (0, 2), (0,),
        (0, 2), (0, 5), (0, 2), (0,),
    ]  # fmt: skip


def test_inputs_encoded_alongside_steps() -> None:
    """They begin with one step, shortest first, and are admitted by another: without the one that was
    cancelled meanwhile."""
    ours = scheduler(async_encode=True)
    arrive(ours, Job("a", 0, key=0, encoder_length=1, max_tokens=9), (1,))
    packets = [there_and_back(Packet.of(ours.plan(0.0)))]
    arrive(ours, Job("b", 1, key=1, encoder_length=5), (11, 12, 13, 14, 1))
    arrive(ours, Job("c", 2, key=2, encoder_length=2), (21, 1), handle=77)
    arrive(ours, Job("d", 3, key=3, encoder_length=3), (31, 32, 1))
    packets += [there_and_back(Packet.of(ours.plan(0.0, encoded=encoded))) for encoded in (True, False)]
    ours.cancel("b")
    packets.append(there_and_back(Packet.of(ours.plan(0.0))))
    assert [packet.admissions.values.tolist() for packet in packets] == [
        [[0, 1, 1, ENCODE_HERE]], [[2, 2, 1, 77]], [], [[3, 3, 1, ENCODED_ASYNC]],
    ]  # fmt: skip
    assert [packet.overlapped.values.tolist() for packet in packets] == [[], [[3, 3], [1, 5]], [], []]
    assert packets[1].overlapped_tokens.tolist() == [31, 32, 1, 11, 12, 13, 14, 1]
    assert [len(packet.rows) for packet in packets] == [1, 2, 2, 3]


@pytest.mark.parametrize("overlapped", [(), (1,)])
def test_every_step_of_busy_traffic_comes_back_the_same(overlapped: tuple[int, ...]) -> None:
    plans = []

    class Listener(Simulator):
        def _execute(self, plan: StepPlan):  # type: ignore[no-untyped-def]
            packet = Packet.of(plan)
            assert_same(packet, there_and_back(packet))
            plans.append(plan)
            return super()._execute(plan)

    simulator = Listener(
        pages=30, page_size=2, max_num_seqs=4, max_batched_tokens=9, max_encoder_tokens=12, depth=2,
        overlapped=overlapped,
    )  # fmt: skip
    for number in range(40):
        job = Job(
            str(number), number, key=number % 7, encoder_length=1 + number % 7, prefix=1 + number % 5,
            max_tokens=1 + number % 11, stops=((number % 13, EOS),), width=1 + 2 * (number % 5 == 0),
            prompted=number % 5 == 3,
        )  # fmt: skip
        simulator.submit(job, 0.0)
    while simulator.lives:
        simulator.step(0.0)
    assert len(plans) > 40


def test_what_is_aligned_has_an_item_in_every_step() -> None:
    """The last row says so; the scores are among the ids below."""
    ours = scheduler()
    request = Job("a", 0, key=0, encoder_length=2, prefix=14, max_tokens=7, scored=True).request()
    how = Alignment(
        ((1, 3), (0, 2)), compared_from=2, first=3, stop=19, input_length=9, cropped=True, filter_width=7
    )
    decoding = replace(request.decoding, alignment=how, score_below=50)
    ours.submit(replace(request, decoding=decoding, encoder=EncoderInput("key", (11, 1))), 0.0)
    packets = [there_and_back(Packet.of(ours.plan(0.0))) for _ in range(2)]
    assert [packet.alignments.values.tolist() for packet in packets] == [
        [[0, last, 2, 3, 19, 9, 1, 7, 2]] for last in (0, 1)
    ]
    assert [packet.alignment_heads.tolist() for packet in packets] == [[1, 3, 0, 2]] * 2
    assert {below for packet in packets for below in packet.targets.below.tolist()} == {50}
