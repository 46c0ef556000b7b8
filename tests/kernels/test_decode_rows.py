"""Where a decode step's rows read and write, and how sequences go on: compiled and in PyTorch the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tandem.kernels import DecodeTables, decode_rows, gather_rows, match_prompt_tokens
from tandem.kernels.cpu import ops as cpu_ops
from tandem.kernels.values import LAST, LENGTH, PLACE, POSITION, RUN, SOURCE

SLOTS, PAGE, PAGES, LONGEST_SOURCE = 5, 4, 6, 9


def tables(seed: int, beams: bool, spans: bool = False) -> DecodeTables:
    rng = torch.Generator().manual_seed(seed)

    def numbers(*shape: int, below: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.randint(0, below, shape, generator=rng, dtype=dtype)

    sequences = numbers(SLOTS, SOURCE + LONGEST_SOURCE, below=1000, dtype=torch.int64)
    for column, below in ((POSITION, 16), (RUN, 3), (PLACE, LONGEST_SOURCE), (LENGTH, LONGEST_SOURCE + 1)):
        sequences[:, column] %= below
    return DecodeTables(
        page_size=PAGE,
        self_pages=numbers(SLOTS, PAGES, below=90),
        sequences=sequences,
        cross_pages=numbers(SLOTS, PAGES, below=90),
        cross_lengths=numbers(SLOTS, below=PAGE * PAGES + 1),
        beam_cells=numbers(SLOTS, PAGE * PAGES, below=360) if beams else None,
        cross_spans=numbers(SLOTS, 2, below=PAGE * PAGES + 1) if spans else None,
    )


def test_a_row() -> None:
    given_tables = tables(0, beams=False)
    rows = torch.tensor([[3], [9], [2], [-1]])
    placed = gather_rows(rows, given_tables, beams=False)
    assert placed.token_ids.tolist() == [given_tables.sequences[3, LAST]]
    assert placed.positions.tolist() == [9]
    assert placed.write_slots.tolist() == [given_tables.self_pages[3, 2] * PAGE + 1]
    assert placed.lengths.tolist() == [10]
    assert torch.equal(placed.history[0, :3], given_tables.self_pages[3, :3])
    assert placed.cross_lengths.tolist() == [given_tables.cross_lengths[2]]
    rows[3] = 77
    assert gather_rows(rows, given_tables, beams=False).token_ids.tolist() == [77]


def test_a_slot_may_see_a_span_of_its_entry() -> None:
    given_tables = tables(0, beams=False, spans=True)
    given_tables.cross_spans = torch.tensor([[0, 0], [0, 9], [5, 8], [2, 7], [1, 3]], dtype=torch.int32)
    placed = gather_rows(torch.tensor([[3, 0], [9, 2], [2, 2], [-1, -1]]), given_tables, beams=False)
    assert placed.cross_begins is not None
    assert (placed.cross_begins.tolist(), placed.cross_lengths.tolist()) == ([2, 0], [7, 0])
    assert torch.equal(placed.cross_pages[0, :2], given_tables.cross_pages[2, :2])


def test_the_device_knows_where_a_sequence_goes_on() -> None:
    given_tables = tables(0, beams=False)
    given_tables.sequences[3, [POSITION, RUN, PLACE, LENGTH]] = torch.tensor([7, 2, 4, 6])
    rows = torch.tensor([[3, 3, 3, 3], [-1, -2, -3, -4], [0, 0, 0, 0], [-1, -2, -3, -4]])
    placed = gather_rows(rows, given_tables, beams=False)
    assert placed.positions.tolist() == [7, 8, 9, 10]
    assert placed.lengths.tolist() == [8, 9, 10, 11]
    sequence = given_tables.sequences[3].tolist()
    # Behind its source nothing is known.
    assert placed.token_ids.tolist() == [
        sequence[LAST], sequence[SOURCE + 4], sequence[SOURCE + 5], sequence[LAST]
    ]  # fmt: skip
    given_tables.sequences[3, RUN] = 0
    assert gather_rows(rows, given_tables, beams=False).token_ids.tolist() == [sequence[LAST]] * 4


def test_a_beam_notes_where_its_position_goes() -> None:
    given_tables = tables(0, beams=True)
    assert given_tables.beam_cells is not None
    before = given_tables.beam_cells.clone()
    placed = gather_rows(torch.tensor([[1], [6], [0], [5]]), given_tables, beams=True)
    assert torch.equal(placed.history[0, :6], before[1, :6])
    assert placed.history[0, 6] == given_tables.beam_cells[1, 6] == placed.write_slots[0]
    before[1, 6] = placed.write_slots[0]
    assert torch.equal(given_tables.beam_cells, before)


@pytest.mark.skipif(not cpu_ops.COMPILED, reason="Tandem was installed without a compiler")
@given(
    st.lists(
        st.tuples(
            st.integers(0, SLOTS - 1), st.integers(-8, PAGE * PAGES - 1), st.integers(0, SLOTS - 1),
            st.integers(-8, 50),
        ),
        min_size=1,
        unique_by=lambda row: row[0],
    ),
    st.booleans(),
    st.booleans(),
    st.integers(0, 5),
)  # fmt: skip
def test_compiled_and_plain_are_the_same(
    listed: list[tuple[int, int, int, int]], beams: bool, spans: bool, seed: int
) -> None:
    rows = torch.tensor(listed, dtype=torch.int64).reshape(-1, 4).t().contiguous()
    used = [tables(seed, beams, spans) for _ in range(2)]
    compiled = gather_rows(rows, used[0], beams=beams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_ops, "COMPILED", False)
        plain = gather_rows(rows, used[1], beams=beams)
    for name in ("token_ids", "positions", "write_slots", "lengths", "cross_lengths"):
        assert torch.equal(getattr(compiled, name), getattr(plain, name)), name
    for row in range(len(listed)):
        positions = int(plain.lengths[row])
        read = positions if beams else -(-positions // PAGE)
        assert torch.equal(compiled.history[row, :read], plain.history[row, :read])
        read = -(-int(plain.cross_lengths[row]) // PAGE)
        assert torch.equal(compiled.cross_pages[row, :read], plain.cross_pages[row, :read])
    if spans:
        assert compiled.cross_begins is not None
        assert plain.cross_begins is not None
        assert torch.equal(compiled.cross_begins, plain.cross_begins)
    if beams:
        assert used[0].beam_cells is not None
        assert used[1].beam_cells is not None
        assert torch.equal(used[0].beam_cells, used[1].beam_cells)


# -- how sequences go on


def sequence(source: list[int], said: list[int] = []) -> torch.Tensor:  # noqa: B006
    """A sequence of one token, -7, and its source; then it said these, without a guess."""
    state = torch.zeros(1, SOURCE + LONGEST_SOURCE, dtype=torch.int64)
    state[0, :POSITION] = torch.tensor([-7, -1, -1])
    state[0, LENGTH] = len(source)
    state[0, SOURCE : SOURCE + len(source)] = torch.tensor(source)
    for token in said:
        follow(state, [token])
    return state


def follow(state: torch.Tensor, said: list[int]) -> list[int]:
    seen: list[list[int]] = match_prompt_tokens(
        torch.tensor(said), torch.tensor([[0], [-1], [len(said)], [0]]), state
    ).tolist()
    return seen[0]


def guesses(state: torch.Tensor) -> list[int]:
    run, place, length = (int(state[0, column]) for column in (RUN, PLACE, LENGTH))
    return state[0, SOURCE + place : SOURCE + length].tolist() if run else []


def test_what_follows_in_the_source() -> None:
    assert guesses(sequence([1, 2, 3, 4])) == []
    assert guesses(sequence([1, 2, 3, 4], [9])) == []
    assert guesses(sequence([1, 2, 3, 4], [2])) == [3, 4]
    assert guesses(sequence([1, 2, 3, 4], [4])) == []
    assert guesses(sequence([], [4])) == []


def test_the_longest_match_counts_and_of_those_the_last() -> None:
    source = [2, 3, 4, 2, 5, 3, 4, 6, 4]
    assert guesses(sequence(source, [4])) == [6, 4]
    assert guesses(sequence(source, [2])) == [5, 3, 4, 6, 4]
    assert guesses(sequence(source, [2, 3])) == [4, 2, 5, 3, 4, 6, 4]
    assert guesses(sequence(source, [9, 3, 4])) == [6, 4]
    assert guesses(sequence(source, [2, 9, 3, 4])) == [6, 4]


def test_a_copy_goes_on_where_it_is() -> None:
    """Though the same stands behind it, too."""
    state = sequence([1, 2, 3, 1, 2, 4], [1, 2])
    assert guesses(state) == [4]
    state = sequence([5, 1, 2, 3, 1, 2, 4], [5, 1, 2])
    assert guesses(state) == [3, 1, 2, 4]
    assert int(state[0, RUN]) == 3


def test_guesses_are_right_up_to_the_first_that_is_not() -> None:
    for said, right, new in (
        ([3], 1, 1),
        ([9], 0, 1),
        ([3, 4, 5], 3, 3),
        ([3, 4, 9], 2, 3),
        ([3, 9, 5], 1, 2),
        ([9, 4, 5], 0, 1),
        ([3, 4, 5, 6, 7], 4, 5),  # the source ends with 6: the last one was no guess
    ):
        state = sequence([1, 2, 3, 4, 5, 6], [1, 2])
        assert follow(state, said)[0] == right
        assert int(state[0, POSITION]) == 2 + new
        tokens = [-7, 1, 2, *said[:new]]
        assert state[0, : LAST + 3].tolist() == tokens[:-4:-1]


def test_what_is_seen() -> None:
    state = sequence([1, 2, 3, 4, 5, 6], [1, 2])
    assert follow(state, [3]) == [1, 3, 3]
    assert follow(state, [4, 5]) == [2, 5, 1]
    assert follow(state, [6]) == [1, 0, 0]
    assert follow(state, [1]) == [0, 1, 5]


def test_a_position_that_is_known_counts() -> None:
    state = sequence([1, 2, 3])
    match_prompt_tokens(torch.tensor([1]), torch.tensor([[0], [40], [1], [0]]), state)
    assert int(state[0, POSITION]) == 41


@given(st.data())
def test_sequences_go_on_the_same_everywhere(data: st.DataObject) -> None:
    """Compiled, in PyTorch, and by looking at everything there is."""
    token = st.integers(0, 2)
    sources = [data.draw(st.lists(token, max_size=LONGEST_SOURCE)) for _ in range(3)]
    states = torch.cat([sequence(source) for source in sources])
    plain = states.clone()
    tokens: list[list[int]] = [[-7], [-7], [-7]]
    followed: list[list[int]] = [[], [], []]  # what each expected next
    for _ in range(data.draw(st.integers(1, 8))):
        slots = data.draw(st.lists(st.sampled_from(range(3)), min_size=1, unique=True))
        said = [data.draw(st.lists(token, min_size=1, max_size=5)) for _ in slots]
        ends = [0]
        for one in said:
            ends.append(ends[-1] + len(one))
        rows = torch.tensor([slots, [-1] * len(slots), [len(one) for one in said], ends[:-1]])
        flat = torch.tensor([one for of_slot in said for one in of_slot])
        seen = match_prompt_tokens(flat, rows, states)
        assert torch.equal(decode_rows.match_prompt_tokens(flat, rows, plain), seen)
        for slot, one, (right, run, left) in zip(slots, said, seen.tolist(), strict=True):
            expected = followed[slot]
            hits = 0
            while hits < min(len(one), len(expected)) and one[hits] == expected[hits]:
                hits += 1
            assert right == hits
            tokens[slot] += one[: hits + 1]
            followed[slot] = expected[hits:] if hits == len(one) else []
            followed[slot] = followed[slot] or behind(sources[slot], tokens[slot])
            assert (left, bool(run)) == (len(followed[slot]), bool(followed[slot]))
            assert guesses(states[slot : slot + 1]) == followed[slot]
            assert states[slot, POSITION] == len(tokens[slot]) - 1
    known = states[:, RUN] > 0
    assert torch.equal(states[known], plain[known])
    assert torch.equal(states[:, : RUN + 1], plain[:, : RUN + 1])


def behind(source: list[int], tokens: list[int]) -> list[int]:
    """What follows the longest end of these tokens in the source, where it stands last."""
    for size in (3, 2, 1):
        for place in range(len(source) - 1, size - 1, -1):
            if source[place - size : place] == tokens[-size:]:
                return source[place:]
    return []
