"""Where a decode step's rows read and write: compiled and in PyTorch the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tandem.kernels import DecodeTables, cpu_ops, lay_out

SLOTS, PAGE, PAGES = 5, 4, 6


def tables(seed: int, beams: bool) -> DecodeTables:
    rng = torch.Generator().manual_seed(seed)

    def numbers(*shape: int, below: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.randint(0, below, shape, generator=rng, dtype=dtype)

    return DecodeTables(
        page_size=PAGE,
        self_pages=numbers(SLOTS, PAGES, below=90),
        last_tokens=numbers(SLOTS, below=1000, dtype=torch.int64),
        cross_pages=numbers(SLOTS, PAGES, below=90),
        cross_lengths=numbers(SLOTS, below=PAGE * PAGES + 1),
        beam_cells=numbers(SLOTS, PAGE * PAGES, below=360) if beams else None,
    )


def test_a_row() -> None:
    given_tables = tables(0, beams=False)
    rows = torch.tensor([[3], [9], [2], [-1]])
    placed = lay_out(rows, given_tables, beams=False)
    assert placed.token_ids.tolist() == [given_tables.last_tokens[3]]
    assert placed.write_slots.tolist() == [given_tables.self_pages[3, 2] * PAGE + 1]
    assert placed.lengths.tolist() == [10]
    assert torch.equal(placed.history[0, :3], given_tables.self_pages[3, :3])
    assert placed.cross_lengths.tolist() == [given_tables.cross_lengths[2]]
    rows[3] = 77
    assert lay_out(rows, given_tables, beams=False).token_ids.tolist() == [77]


def test_a_beam_notes_where_its_position_goes() -> None:
    given_tables = tables(0, beams=True)
    assert given_tables.beam_cells is not None
    before = given_tables.beam_cells.clone()
    placed = lay_out(torch.tensor([[1], [6], [0], [5]]), given_tables, beams=True)
    assert torch.equal(placed.history[0, :6], before[1, :6])
    assert placed.history[0, 6] == given_tables.beam_cells[1, 6] == placed.write_slots[0]
    before[1, 6] = placed.write_slots[0]
    assert torch.equal(given_tables.beam_cells, before)


@pytest.mark.skipif(not cpu_ops.COMPILED, reason="Tandem was installed without a compiler")
@given(
    st.lists(
        st.tuples(
            st.integers(0, SLOTS - 1), st.integers(0, PAGE * PAGES - 1), st.integers(0, SLOTS - 1),
            st.integers(-1, 50),
        ),
        min_size=1,
        unique_by=lambda row: row[0],
    ),
    st.booleans(),
    st.integers(0, 5),
)  # fmt: skip
def test_compiled_and_plain_are_the_same(
    listed: list[tuple[int, int, int, int]], beams: bool, seed: int
) -> None:
    rows = torch.tensor(listed, dtype=torch.int64).reshape(-1, 4).t().contiguous()
    used = [tables(seed, beams) for _ in range(2)]
    compiled = lay_out(rows, used[0], beams=beams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_ops, "COMPILED", False)
        plain = lay_out(rows, used[1], beams=beams)
    for name in ("token_ids", "write_slots", "lengths", "cross_lengths"):
        assert torch.equal(getattr(compiled, name), getattr(plain, name)), name
    for row in range(len(listed)):
        positions = int(plain.lengths[row])
        read = positions if beams else -(-positions // PAGE)
        assert torch.equal(compiled.history[row, :read], plain.history[row, :read])
        read = -(-int(plain.cross_lengths[row]) // PAGE)
        assert torch.equal(compiled.cross_pages[row, :read], plain.cross_pages[row, :read])
    if beams:
        assert used[0].beam_cells is not None
        assert used[1].beam_cells is not None
        assert torch.equal(used[0].beam_cells, used[1].beam_cells)
