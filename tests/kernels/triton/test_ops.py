"""The Triton kernels against row-by-row implementations: on CUDA, or under the interpreter (conftest.py)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from kernel_cases import TOLERANCE, assert_close, bias_table, packed, paged, scattered, summarized

from tandem.kernels import Scores, reference, values, windowed_bias_table

pytest.importorskip("triton")

from tandem.kernels.triton import attention_paged, decode_rows
from tandem.kernels.triton import ops as triton_ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("width", [1, 72, 512])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype: torch.dtype, width: int, device: str) -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(3, 2 * width).to(dtype).to(device)[:, :width] for _ in range(2))
    for weight_dtype in {dtype, torch.float32}:
        weight = torch.rand(width).to(weight_dtype).to(device)
        out = triton_ops.rms_norm(x, weight, 1e-6)
        assert out.dtype == weight_dtype
        assert_close(out, reference.rms_norm(x, weight, 1e-6), TOLERANCE[dtype])
        out, total = triton_ops.add_rms_norm(x, residual, weight, 1e-6)
        expected, expected_total = reference.add_rms_norm(x, residual, weight, 1e-6)
        assert_close(total, expected_total)
        assert_close(out, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("width", [1, 72, 512])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_layer_norm(dtype: torch.dtype, width: int, device: str) -> None:
    torch.manual_seed(0)
    # Far from zero, where the mean of the squares alone would lose the variance.
    x, residual = ((torch.randn(3, 2 * width) + 4).to(dtype).to(device)[:, :width] for _ in range(2))
    weight, bias = (torch.randn(width).to(dtype).to(device) for _ in range(2))
    out, total = triton_ops.add_layer_norm(x, residual, weight, bias, 1e-5)
    assert out.dtype == total.dtype == dtype
    assert_close(total, x + residual)
    # Of the sum as it was rounded, which the interpreter does differently.
    assert_close(out, reference.layer_norm(total, weight, bias, 1e-5), TOLERANCE[dtype])


@pytest.mark.parametrize("width", [1, 33, 1500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_gelu(dtype: torch.dtype, width: int, device: str) -> None:
    torch.manual_seed(0)
    x = (torch.randn(3, 2 * width) * 3).to(dtype).to(device)
    # The sigmoid saturates without overflow.
    x[0, 0], x[1, 0] = 50.0, -50.0
    assert_close(
        triton_ops.activate(x, "gelu_new", gated=True), reference.activate(x, "gelu_new", gated=True)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_write_kv(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    fused = torch.randn(4, 3, 3, 40).to(dtype).to(device)
    slots = torch.tensor([23, 0, 6, 5], device=device)
    pools = [torch.zeros(4, 3, 6, 40, dtype=dtype, device=device) for _ in range(4)]
    triton_ops.write_kv(fused[:, 1], fused[:, 2], pools[0], pools[1], slots)
    reference.write_kv(fused[:, 1], fused[:, 2], pools[2], pools[3], slots)
    assert torch.equal(pools[0], pools[2])
    assert torch.equal(pools[1], pools[3])


# A reach below the length leaves tiles on both sides of the diagonal where the bias is one number.
@pytest.mark.parametrize("reach", [None, 5, 40, 128])
@pytest.mark.parametrize(("lengths", "dim"), [((1, 0, 200), 64), ((33,), 32), ((129, 2), 128), ((17,), 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_encoder_attention(
    dtype: torch.dtype, lengths: tuple[int, ...], dim: int, reach: int | None, device: str
) -> None:
    case = packed(lengths, dim=dim, dtype=dtype, device=device)
    table = None if reach is None else bias_table(2, 2 * reach + 1, device)
    out = triton_ops.encoder_attention(*case.inputs(), Scores(0.7, table))
    assert out.dtype == dtype
    # Half precision rounds the bias too.
    assert_close(out, case.expected(table, 0.7), 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoder_attention_with_summaries(dtype: torch.dtype, windowed: bool, device: str) -> None:
    case = packed((8, 3, 150), dtype=dtype, device=device)
    table = bias_table(2, 25, device)
    if windowed:
        table = windowed_bias_table(table, 9, 6)
    summaries = summarized(case, 4)
    out = triton_ops.encoder_attention(*case.inputs(), Scores(0.7, table), windowed, summaries)
    assert_close(out, case.expected(table, 0.7, summaries), 2 * TOLERANCE[dtype])


def test_encoder_attention_in_bfloat16(device: str) -> None:
    case = packed((5, 80), dtype=torch.bfloat16, device=device)
    table = bias_table(2, 41, device)
    out = triton_ops.encoder_attention(*case.inputs(), Scores(0.7, table))
    assert_close(out, case.expected(table, 0.7), 2 * TOLERANCE[torch.bfloat16])


CASES = [
    pytest.param([1], [1], 64, 16, id="one token"),
    pytest.param([64, 65, 16, 17], [1, 1, 1, 1], 64, 16, id="page borders"),
    pytest.param([64, 65, 63, 0], [1, 1, 1, 1], 64, 64, id="a sequence without keys"),
    pytest.param([70, 3], [1, 1], 32, 128, id="a page of two tiles"),
    pytest.param([40], [1], 128, 24, id="an odd page size"),
    pytest.param([50], [1], 80, 32, id="an odd head dim"),
    pytest.param([33, 150, 8], [2, 1, 5], 64, 16, id="several rows"),
    pytest.param([33, 70, 8], [0, 1, 2], 64, 64, id="a sequence without rows"),
    pytest.param([80, 16], [67, 1], 32, 16, id="a prefill among decode steps"),
    pytest.param([12, 3], [12, 5], 128, 16, id="more rows than keys"),
    pytest.param([16, 32, 48], [1, 17, 16], 32, 16, id="as many rows as a block has, and one more"),
]


@pytest.mark.parametrize(("lengths", "rows", "dim", "page"), CASES)
@pytest.mark.parametrize(("dtype", "splits"), [(torch.float32, None), (torch.float16, 2)])
def test_paged_attention(
    dtype: torch.dtype,
    splits: int | None,
    lengths: list[int],
    rows: list[int],
    dim: int,
    page: int,
    device: str,
) -> None:
    case = paged(lengths, rows, dim=dim, page=page, dtype=dtype, device=device)
    table = bias_table(2, 19, device)
    out = attention_paged._launch(*case.inputs(), Scores(0.8, table), causal=True, splits=splits)
    assert out.dtype == dtype
    assert_close(out, case.expected(table, 0.8, causal=True))
    out = attention_paged._launch(*case.inputs(), Scores(0.8), causal=False, splits=splits)
    assert_close(out, case.expected(None, 0.8, causal=False))


@pytest.mark.parametrize("rows", [[1, 1, 1], [1, 1, 2]])
def test_splits_that_get_no_keys(rows: list[int], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long one among short ones, all split alike, as in a graph: nobody reads what is left there."""
    case = paged([520, 1, 65], rows, dim=32, page=64, device=device)
    table = bias_table(2, 19, device)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", partial(torch.full, fill_value=float("nan")))
        out = attention_paged._launch(*case.inputs(), Scores(0.8, table), causal=True, splits=8)
    assert_close(out, case.expected(table, 0.8, causal=True))


@pytest.mark.parametrize(("lengths", "page"), [([1, 1], 16), ([40, 40, 33], 16), ([3, 70, 64, 2], 64)])
@pytest.mark.parametrize(("dtype", "splits"), [(torch.float32, None), (torch.float16, 2)])
def test_beam_attention(
    lengths: list[int], page: int, dtype: torch.dtype, splits: int | None, device: str
) -> None:
    case = paged(lengths, [1] * len(lengths), page=page, dtype=dtype, device=device)
    scattered(case, lengths)
    table = bias_table(2, 19, device)
    scores = Scores(0.8, table)
    out = attention_paged._launch(*case.inputs(), scores, causal=True, splits=splits, by_cell=True)
    assert_close(out, case.expected(table, 0.8, causal=True))
    if splits is None:
        assert torch.equal(triton_ops.paged_beam_attention(case.q, case.kv, scores), out)


@pytest.mark.parametrize("cap", [None, 0.5])
def test_encoder_attention_of_shared_keys(cap: float | None, device: str) -> None:
    case = packed((8, 3, 150), heads=4, dim=32, device=device, group=2)
    table = windowed_bias_table(bias_table(4, 25, device), 6, 6)
    summaries = summarized(case, 4)
    out = triton_ops.encoder_attention(*case.inputs(), Scores(0.7, table, cap), True, summaries)
    assert_close(out, case.expected(table, 0.7, summaries, cap))


@pytest.mark.parametrize("rows", [[1, 1, 1], [1, 12, 3]])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("cap", [None, 0.5])
def test_paged_attention_of_shared_keys(cap: float | None, splits: int, rows: list[int], device: str) -> None:
    """Over a sequence's own keys, over another's, and over both at once."""
    own = paged([40, 33, 5], rows, heads=4, dim=32, device=device, group=2)
    other = paged([7, 1, 130], rows, heads=4, dim=32, device=device, group=2, seed=1)
    other.q = own.q
    table, sums = bias_table(4, 19, device), torch.empty(2, sum(rows), 4, device=device)
    one = attention_paged._launch(*own.inputs(), Scores(0.7, table, cap), sums[0], causal=True, splits=splits)
    assert_close(one, own.expected(table, 0.7, causal=True, cap=cap))
    two = attention_paged._launch(
        *other.inputs(), Scores(0.7, None, cap), sums[1], causal=False, splits=splits
    )
    merged = reference.merge_attention(one, sums[0], two, sums[1])
    assert_close(merged, own.expected(table, 0.7, causal=True, cap=cap, more=other))


@pytest.mark.parametrize("rows", [[1, 1], [1, 3]])
def test_paged_attention_in_bfloat16(rows: list[int], device: str) -> None:
    case = paged([33, 7], rows, dtype=torch.bfloat16, device=device)
    table = bias_table(2, 19, device)
    out = triton_ops.paged_self_attention(*case.inputs(), Scores(0.8, table))
    assert_close(out, case.expected(table, 0.8, causal=True))
    out = triton_ops.paged_cross_attention(*case.inputs(), Scores(0.8))
    assert_close(out, case.expected(None, 0.8, causal=False))


@pytest.mark.parametrize("rows", [[1, 1, 1, 1], [1, 20, 3, 0]])
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("page", [24, 64])
def test_cross_attention_may_begin_anywhere(rows: list[int], splits: int, page: int, device: str) -> None:
    case = paged([200, 70, 0, 130], rows, page=page, dim=32, heads=4, group=2, device=device)
    for begins in ([130, 69, 0, 64], [0, 3, 0, 63], [199, 64, 0, 0]):
        case.kv = case.kv._replace(begins=torch.tensor(begins, dtype=torch.int32, device=device))
        out = attention_paged._launch(*case.inputs(), Scores(0.8), causal=False, splits=splits)
        assert_close(out, case.expected(None, 0.8, causal=False))


@pytest.mark.parametrize(("beams", "spans"), [(False, False), (True, False), (False, True), (True, True)])
def test_gather_rows(beams: bool, spans: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the host knows, and rows that the device does; tables of several blocks."""
    monkeypatch.setattr(decode_rows, "_BLOCK", 16)
    torch.manual_seed(0)
    slots, pages, page = 7, 70, 4

    def tables(state: torch.Tensor, device: str) -> values.DecodeTables:
        rng = torch.Generator().manual_seed(1)
        numbers = [torch.randint(0, 90, shape, generator=rng, dtype=torch.int32) for shape in (
            (slots, pages), (slots, pages), (slots,), (slots, pages * page), (slots, 2))]  # fmt: skip
        self_pages, cross_pages, cross_lengths, cells, seen = (one.to(device) for one in numbers)
        return values.DecodeTables(
            page,
            self_pages,
            state.to(device, copy=True),
            cross_pages,
            cross_lengths,
            cells if beams else None,
            seen if spans else None,
        )

    state = torch.randint(0, 1000, (slots, values.SOURCE + 9))
    for column, below in (("POSITION", pages * page - 8), ("RUN", 3), ("PLACE", 9), ("LENGTH", 10)):
        state[:, getattr(values, column)] %= below
    ours, theirs = tables(state, device), tables(state, "cpu")
    for count in (1, 5, 20):
        which = torch.randperm(slots)[:count] if beams else torch.randint(0, slots, (count,))
        rows = torch.stack(
            [
                which,
                *(
                    torch.randint(low, high, which.shape)
                    for low, high in ((-8, pages * page), (0, slots), (-8, 50))
                ),
            ]
        )
        expected = reference.gather_rows(rows, theirs, beams=beams)
        found = triton_ops.gather_rows(rows.to(device), ours, beams=beams)
        assert (found.cross_begins is None) == (not spans)
        for name, one, other in zip(expected._fields, found, expected, strict=True):
            if one is None:
                continue
            assert one.dtype == other.dtype
            assert torch.equal(one.cpu(), other), name
    if beams:
        assert torch.equal(ours.beam_cells.cpu(), theirs.beam_cells)


@pytest.mark.parametrize("block", [4, 1024])
def test_match_prompt_tokens(block: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that say what follows in their sources, or anything; sources of all lengths up to two blocks
    and more."""
    monkeypatch.setattr(decode_rows, "_BLOCK", block)
    torch.manual_seed(0)
    lengths = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 9, 12])
    state = torch.randint(0, 3, (len(lengths), values.SOURCE + 12))
    state[:, values.POSITION : values.LENGTH] = 0
    state[:, values.LENGTH] = lengths
    ours, theirs = state.to(device), state.clone()
    copied = 0
    for step in range(12):
        slots = torch.randperm(len(lengths))[: 1 + step % len(lengths)]
        samples = torch.randint(1, 5, slots.shape)
        firsts = samples.cumsum(0) - samples
        starts = torch.where(slots % 3 == 0, 40 + step, -1)
        tokens = torch.randint(0, 3, (int(samples.sum()),))
        for slot, first, count in zip(slots.tolist(), firsts.tolist(), samples.tolist(), strict=True):
            run, place, length = theirs[slot, values.RUN : values.SOURCE].tolist()
            if run and step % 4:
                right = min(count, length - place, 1 + step % 5)
                source = theirs[slot, values.SOURCE + place :]
                tokens[first : first + right] = source[:right]
        rows = torch.stack([slots, starts, samples, firsts])
        seen = reference.match_prompt_tokens(tokens, rows, theirs)
        copied += int(seen[:, 0].sum())
        found = triton_ops.match_prompt_tokens(tokens.to(device), rows.to(device), ours)
        assert torch.equal(found.cpu(), seen)
        known = theirs[:, values.RUN] > 0
        assert torch.equal(ours.cpu()[known], theirs[known])
        assert torch.equal(ours.cpu()[:, : values.PLACE], theirs[:, : values.PLACE])
    assert copied > 20


def test_no_rows(device: str) -> None:
    case = paged([5], [1], device=device)
    empty = case.q[:0]
    assert triton_ops.paged_self_attention(empty, *case.inputs()[1:], Scores(1.0)).shape == empty.shape
    out = triton_ops.encoder_attention(empty, empty, empty, case.kv.lengths[:0], 0, Scores(1.0))
    assert out.shape == empty.shape
    assert triton_ops.rms_norm(empty[:, 0], torch.ones(64, device=device), 1e-6).shape == (0, 64)
    assert triton_ops.activate(empty[:, 0], "gelu_new", gated=True).shape == (0, 32)
    ones = torch.ones(64, device=device)
    for part in triton_ops.add_layer_norm(empty[:, 0], empty[:, 0], ones, ones, 1e-5):
        assert part.shape == (0, 64)
    for part in triton_ops.add_rms_norm(empty[:, 0], empty[:, 0], ones, 1e-6):
        assert part.shape == (0, 64)
    nothing = torch.empty(4, 0, dtype=torch.int64, device=device)
    assert triton_ops.match_prompt_tokens(nothing[0], nothing, nothing.T).shape == (0, 3)
    triton_ops.write_kv(empty, empty, *case.kv[:2], torch.empty(0, dtype=torch.int64, device=device))
