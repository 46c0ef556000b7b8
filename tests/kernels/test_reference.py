"""The CPU's ops, plain and compiled, against transformers and against row-by-row implementations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import assert_close, bias_table, packed, paged, scattered, summarized
from transformers import PhiConfig, T5Config
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

from tandem import kernels
from tandem.kernels import PagedKV, RowGroups, Scores, sparse_attention
from tandem.kernels.cpu import ops as cpu_ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True, params=["plain", "compiled"])
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs on both."""
    if request.param == "plain":
        monkeypatch.setattr(cpu_ops, "COMPILED", False)
    elif not cpu_ops.COMPILED:
        pytest.skip("there was no compiler when Tandem was installed")
    return str(request.param)


def test_layer_norm() -> None:
    torch.manual_seed(0)
    x, residual, weight, bias = torch.randn(5, 24), torch.randn(5, 24), torch.randn(24), torch.randn(24)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(kernels.layer_norm(x, weight, bias, 1e-5), expected)
    out, total = kernels.add_layer_norm(x - residual, residual, weight, bias, 1e-5)
    torch.testing.assert_close(total, x)
    torch.testing.assert_close(out, expected)


def test_rotary_is_gpt_neoxs() -> None:
    """Half of each head's dimensions are rotated, as Phi's."""
    torch.manual_seed(0)
    positions = torch.tensor([[0, 1, 2, 7, 300]])
    q, k = torch.randn(5, 3, 16), torch.randn(5, 3, 16)
    config = PhiConfig(hidden_size=48, num_attention_heads=3, partial_rotary_factor=0.5)
    cosines, sines = PhiRotaryEmbedding(config)(q, positions)
    expected = [
        torch.cat([part[0].transpose(0, 1), x[..., 8:]], dim=-1)
        for part, x in zip(
            apply_rotary_pos_emb(
                q[None, ..., :8].transpose(1, 2), k[None, ..., :8].transpose(1, 2), cosines, sines
            ),
            (q, k),
            strict=True,
        )
    ]
    out = kernels.rotary(torch.stack([q, k], dim=1), cosines[0, :, :4], sines[0, :, :4])
    torch.testing.assert_close(out, torch.stack(expected, dim=1))


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_is_t5_layer_norm(dtype: torch.dtype, weight_dtype: torch.dtype, ops: str) -> None:
    torch.manual_seed(0)
    norm = T5LayerNorm(72, eps=1e-5).to(weight_dtype).requires_grad_(False)
    norm.weight.uniform_(0.5, 2)
    x, residual = torch.randn(5, 72).to(dtype) * 3, torch.randn(5, 72).to(dtype)
    out = kernels.rms_norm(x, norm.weight, 1e-5)
    assert out.dtype == norm(x).dtype
    # The compiled one sums in another order, which may tip a rounding.
    tolerance = 0.0 if ops == "plain" else 2 * torch.finfo(out.dtype).eps
    torch.testing.assert_close(out, norm(x), rtol=tolerance, atol=0.0)
    out, total = kernels.add_rms_norm(x, residual, norm.weight, 1e-5)
    assert torch.equal(total, residual + x)
    torch.testing.assert_close(out, norm(residual + x), rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gated_gelu_is_new_gelu_times_the_linear_half(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(7, 2 * 33) * 3).to(dtype)
    gate, linear = x[:, :33], x[:, 33:]
    # transformers rounds after each operation of the formula; one rounding is the more exact.
    expected = NewGELUActivation()(gate.float()) * linear.float()
    out = kernels.activate(x, "gelu_new", gated=True)
    assert out.dtype == dtype
    assert_close(out, expected, {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu"])
def test_activations_are_transformers(activation: str, gated: bool) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(7, 36) * 3, torch.full((1, 36), 50.0), torch.full((1, 36), -50.0)])
    x[0, :3] = torch.tensor([0.0, 1e-30, -1e-30])
    expected = ACT2FN[activation](x)
    if gated:
        expected = expected[:, :18] * x[:, 18:]
    torch.testing.assert_close(kernels.activate(x, activation, gated=gated), expected, rtol=2e-6, atol=3e-6)
    x[1, 1] = float("nan")
    assert kernels.activate(x, activation, gated=gated)[1, 1].isnan()


def test_argmax_is_the_first_of_several() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 50, (40, 3000)).float()
    out = kernels.argmax(x[:, 5:])
    assert torch.equal(out, (x[:, 5:] == 49).int().argmax(-1))
    assert kernels.argmax(torch.full((2, 7), -torch.inf)).tolist() == [0, 0]
    assert kernels.argmax(torch.empty(0, 7)).tolist() == []


def test_embedding_and_scale() -> None:
    torch.manual_seed(0)
    table, onto, ids = torch.randn(9, 5), torch.randn(4, 5), torch.tensor([3, 0, 8, 3])
    assert torch.equal(kernels.embed(ids, table), table[ids])
    assert torch.equal(kernels.embed(ids, table, onto), onto + table[ids])
    assert torch.equal(kernels.scale(onto, 0.3), onto * 0.3)
    assert kernels.scale(onto, 1.0) is onto


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("lengths", [(1,), (7, 7, 7), (1, 40, 40, 3, 0, 9)])
@pytest.mark.parametrize("dim", [32, 64, 80])
def test_encoder_attention(lengths: tuple[int, ...], dim: int, biased: bool) -> None:
    case = packed(lengths, heads=3, dim=dim)
    table = bias_table(3, 2 * 12 + 1) if biased else None
    out = kernels.encoder_attention(*case.inputs(), Scores(0.7, table))
    assert out.shape == case.q.shape
    assert_close(out, case.expected(table, 0.7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_encoder_attention_in_half_precision(dtype: torch.dtype) -> None:
    case = packed((5, 21), dtype=dtype)
    table = bias_table(2, 9)
    out = kernels.encoder_attention(*case.inputs(), Scores(1.0, table))
    assert out.dtype == dtype
    assert_close(out, case.expected(table, 1.0))


PAGED_CASES = [
    pytest.param([1], [1], id="one token"),
    pytest.param([16], [1], id="a full page"),
    pytest.param([17], [1], id="one past a page"),
    pytest.param([33, 16, 1, 48], [1, 1, 1, 1], id="unequal lengths"),
    pytest.param([40, 40, 40], [1, 1, 1], id="equal lengths"),
    pytest.param([500, 1, 2, 3, 2, 1, 2, 3, 5, 1], [1] * 10, id="one long among short"),
    pytest.param([20, 0, 5], [1, 1, 1], id="a sequence without keys"),
    pytest.param([0, 0], [1, 1], id="no keys at all"),
    pytest.param([33, 16, 70], [2, 1, 5], id="several rows"),
    pytest.param([33, 16, 70], [0, 1, 2], id="a sequence without rows"),
    pytest.param([33, 16, 70, 8], [20, 1, 2, 8], id="a prefill among decode steps"),
    pytest.param([12, 3], [12, 5], id="more rows than keys"),
    pytest.param([30, 2], [12, 12], id="prefills with more rows than keys"),
]


@pytest.mark.parametrize(("lengths", "rows"), PAGED_CASES)
@pytest.mark.parametrize("page", [16, 24, 64])
def test_paged_attention(lengths: list[int], rows: list[int], page: int) -> None:
    case = paged(lengths, rows, page=page)
    table = bias_table(2, 19)
    for bias in (table, None):
        out = kernels.paged_self_attention(*case.inputs(), Scores(0.8, bias))
        assert_close(out, case.expected(bias, 0.8, causal=True))
    out = kernels.paged_cross_attention(*case.inputs(), Scores(0.8))
    assert_close(out, case.expected(None, 0.8, causal=False))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 12)), min_size=1, max_size=6),
    dim=st.sampled_from([32, 64, 128]),
    page=st.sampled_from([16, 32]),
    stored=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_paged_attention_of_any_shape(
    shapes: list[tuple[int, int]], dim: int, page: int, stored: torch.dtype, seed: int
) -> None:
    case = paged([n for n, _ in shapes], [r for _, r in shapes], dim=dim, page=page, dtype=stored, seed=seed)
    case.q = case.q.float()
    table = bias_table(2, 40)
    out = kernels.paged_self_attention(*case.inputs(), Scores(1.0, table))
    assert_close(out, case.expected(table, 1.0, causal=True))
    out = kernels.paged_cross_attention(*case.inputs(), Scores(1.0))
    assert_close(out, case.expected(None, 1.0, causal=False))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 12), st.floats(0, 1, exclude_max=True)),
        min_size=1, max_size=6,
    ),
    dim=st.sampled_from([8, 32]),
    group=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_cross_attention_may_begin_anywhere(
    shapes: list[tuple[int, int, float]], dim: int, group: int, dtype: torch.dtype
) -> None:
    case = paged([n for n, _, _ in shapes], [r for _, r, _ in shapes], dim=dim, dtype=dtype, group=group)
    begins = torch.tensor([int(n * share) for n, _, share in shapes], dtype=torch.int32)
    case.kv = case.kv._replace(begins=begins)
    out = kernels.paged_cross_attention(*case.inputs(), Scores(1.0))
    assert_close(out, case.expected(None, 1.0, causal=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "rows", "dim", "group", "cap"),
    [
        ([70], [40], 64, 1, None),
        ([130, 3, 64, 90, 33], [17, 20, 1, 0, 70], 64, 1, None),
        ([97, 40], [33, 16], 80, 2, None),
        ([50, 21], [18, 19], 32, 4, 3.0),
        ([20, 0, 30], [18, 20, 2], 32, 1, None),
    ],
)
def test_cross_attention_of_many_rows(
    lengths: list[int], rows: list[int], dim: int, group: int, cap: float | None, dtype: torch.dtype
) -> None:
    """Next to sequences of few rows, of none and without keys."""
    case = paged(lengths, rows, heads=4, dim=dim, group=group, dtype=dtype)
    for q in (case.q, case.q.float()):
        case.q = q
        out = kernels.paged_cross_attention(*case.inputs(), Scores(0.8, None, cap))
        assert out.dtype == q.dtype
        assert_close(out, case.expected(None, 0.8, causal=False, cap=cap))


def test_keep_rows() -> None:
    x = torch.tensor([[1.0, 2.0], [float("nan"), float("inf")], [3.0, 4.0]])
    kept = kernels.keep_rows(x, torch.tensor([7, 0, 1], dtype=torch.int32))
    assert kept.tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]


@pytest.mark.parametrize("lengths", [[1, 1], [40, 40, 40, 40], [3, 70, 64, 65, 2]])
@pytest.mark.parametrize("page", [1, 16, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beams_read_their_ancestors(lengths: list[int], page: int, dtype: torch.dtype) -> None:
    case = paged(lengths, [1] * len(lengths), page=page, dtype=dtype)
    scattered(case, lengths)
    for bias in (bias_table(2, 19), None):
        out = kernels.paged_beam_attention(case.q, case.kv, Scores(0.8, bias))
        assert out.dtype == dtype
        assert_close(out, case.expected(bias, 0.8, causal=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_paged_attention_in_half_precision(dtype: torch.dtype) -> None:
    case = paged([33, 7], [1, 3], dtype=dtype)
    table = bias_table(2, 19)
    out = kernels.paged_self_attention(*case.inputs(), Scores(0.8, table))
    assert out.dtype == dtype
    assert_close(out, case.expected(table, 0.8, causal=True))


def test_infinities_in_unused_cells_do_no_harm() -> None:
    for lengths, rows in (([5, 20], [1, 1]), ([5, 20], [1, 12])):
        case = paged(lengths, rows)
        for pages in case.kv[:2]:
            pages[pages.isnan()] = float("inf")
        out = kernels.paged_self_attention(*case.inputs(), Scores(1.0))
        assert_close(out, case.expected(None, 1.0, causal=True))


def test_a_page_table_changed_in_place_is_noticed() -> None:
    """The index of the cells is kept between calls; the calls of the next step must not get the old one."""
    case = paged([20, 30], [1, 1])
    shuffled = torch.randperm(len(case.kv.k))
    first = kernels.paged_cross_attention(*case.inputs(), Scores(1.0))
    # The same content in other pages gives the same answer only if the new table is read.
    case.kv = case.kv._replace(k=case.kv.k[shuffled], v=case.kv.v[shuffled])
    case.kv.table.copy_(torch.argsort(shuffled)[case.kv.table.long()])
    assert torch.equal(kernels.paged_cross_attention(*case.inputs(), Scores(1.0)), first)
    case.kv.lengths.copy_(torch.tensor([20, 11]))
    out = kernels.paged_cross_attention(*case.inputs(), Scores(1.0))
    case.k[1], case.v[1] = case.k[1][:11], case.v[1][:11]
    assert_close(out, case.expected(None, 1.0, causal=False))
    table = bias_table(2, 8)
    for bias in (table, table.flip(1), None):
        out = kernels.paged_self_attention(*case.inputs(), Scores(1.0, bias))
        assert_close(out, case.expected(bias, 1.0, causal=True))


def test_rows_of_very_unequal_lengths_are_not_padded_to_the_longest() -> None:
    lengths = [2000] + [8] * 63
    groups = sparse_attention._split(list(range(64)), lengths)
    assert sorted(r for g in groups for r in g) == list(range(64))
    assert sum(max(lengths[r] for r in g) * len(g) for g in groups) < 2 * sum(lengths)


def test_attention_is_that_of_a_t5_layer() -> None:
    """The packed encoder and the paged decoder, token by token, against the layers they replace."""
    torch.manual_seed(0)
    length, heads, dim = 37, 3, 16
    x = torch.randn(1, length, 24)
    for decoder in (False, True):
        config = T5Config(d_model=24, d_kv=dim, num_heads=heads, is_decoder=decoder)
        config._attn_implementation = "eager"
        layer = (
            T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval().requires_grad_(False)
        )
        # The T5 initialization leaves next to no differences between positions.
        for part in (layer.q, layer.k, layer.relative_attention_bias):
            part.weight.normal_(std=0.5)
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None] if decoder else None
        expected = layer(x, mask=mask)[0][0]
        q, k, v = (part(x[0]).view(length, heads, dim) for part in (layer.q, layer.k, layer.v))
        table = kernels.relative_bias_table(layer.relative_attention_bias.weight, not decoder, 128)
        if not decoder:
            cu_seqlens = torch.tensor([0, length], dtype=torch.int32)
            out = kernels.encoder_attention(q, k, v, cu_seqlens, length, Scores(1.0, table))
        else:
            pool = torch.full((4, heads, 16, dim), float("nan"))
            k_pages, v_pages = pool.clone(), pool.clone()
            page_table = torch.tensor([[2, 0, 3]], dtype=torch.int32)
            groups = RowGroups(torch.tensor([0, 1], dtype=torch.int32), 1)
            rows = []
            for t in range(length):
                slot = page_table[0, t // 16].long() * 16 + t % 16
                kernels.write_kv(k[t : t + 1], v[t : t + 1], k_pages, v_pages, slot[None])
                kv = PagedKV(k_pages, v_pages, page_table, torch.tensor([t + 1], dtype=torch.int32))
                rows.append(kernels.paged_self_attention(q[t : t + 1], kv, groups, Scores(1.0, table)))
            out = torch.cat(rows)
        assert_close(layer.o(out.reshape(length, -1)), expected, 2e-5)


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_write_kv(tokens: int, given: torch.dtype, stored: torch.dtype) -> None:
    fused = torch.randn(tokens, 3, 2, 8).to(given)
    k_pages = torch.full((4, 2, 6, 8), 9.0, dtype=stored)
    v_pages = k_pages.clone()
    expected_k, expected_v = k_pages.clone(), v_pages.clone()
    slots = torch.tensor([23, 0, 6, 5, 14])[:tokens]
    for n, slot in enumerate(slots.tolist()):
        expected_k[slot // 6, :, slot % 6] = fused[n, 1]
        expected_v[slot // 6, :, slot % 6] = fused[n, 2]
    kernels.write_kv(fused[:, 1], fused[:, 2], k_pages, v_pages, slots)
    assert torch.equal(k_pages, expected_k)
    assert torch.equal(v_pages, expected_v)


@pytest.mark.parametrize("rows", [[1] * 40, [3, 16, 1]])
def test_half_precision_over_float32_pages(rows: list[int]) -> None:
    """Large enough for threads."""
    case = paged([60 + 5 * i for i in range(len(rows))], rows, heads=4, page=32)
    case.q = case.q.bfloat16()
    table = bias_table(4, 40)
    out = kernels.paged_self_attention(*case.inputs(), Scores(0.8, table))
    assert out.dtype == torch.bfloat16
    assert_close(out, case.expected(table, 0.8, causal=True))
    assert_close(
        kernels.paged_cross_attention(*case.inputs(), Scores(0.8)), case.expected(None, 0.8, causal=False)
    )


def test_a_row_does_not_depend_on_its_batch() -> None:
    case = paged([33, 70, 5, 64], [1, 1, 1, 1])
    together = kernels.paged_cross_attention(*case.inputs(), Scores(0.8))
    for s in range(4):
        alone = RowGroups(torch.tensor([0, 1], dtype=torch.int32), 1)
        kv = case.kv._replace(table=case.kv.table[s : s + 1], lengths=case.kv.lengths[s : s + 1])
        out = kernels.paged_cross_attention(case.q[s : s + 1], kv, alone, Scores(0.8))
        torch.testing.assert_close(out, together[s : s + 1], rtol=1e-6, atol=1e-6)


# -- windows and blocks of the encoder


@pytest.mark.parametrize("lengths", [(1, 3), (130, 130, 7, 0, 65), (300,)])
def test_windowed_encoder_attention_reads_only_what_is_near(lengths: tuple[int, ...]) -> None:
    """The table hides the rest: whether it is read makes no difference, even where it is not a number."""
    case = packed(lengths, heads=3, dim=16)
    table = kernels.windowed_bias_table(bias_table(3, 2 * 12 + 1), 9, 4)
    out = kernels.encoder_attention(*case.inputs(), Scores(0.7, table), windowed=True)
    assert_close(out, case.expected(table, 0.7))
    if lengths == (300,):
        case.k[299] = case.v[299] = float("nan")
        again = kernels.encoder_attention(*case.inputs(), Scores(0.7, table), windowed=True)
        assert torch.equal(again[:64], out[:64])


@pytest.mark.parametrize("windowed", [True, False])
def test_summaries_are_more_keys(windowed: bool) -> None:
    """Sequences of two blocks, of none, of one and a bit, of many."""
    lengths, block = (8, 3, 5, 150), 4
    case = packed(lengths, heads=2, dim=16)
    table = bias_table(2, 2 * 12 + 1)
    if windowed:
        table = kernels.windowed_bias_table(table, 6, 6)
    summaries = summarized(case, block)
    out = kernels.encoder_attention(*case.inputs(), Scores(0.7, table), windowed, summaries)
    assert_close(out, case.expected(table, 0.7, summaries))


def test_blocks() -> None:
    blocks = kernels.Blocks.of([8, 3, 0, 5], 4, torch.clone)
    assert blocks.cu_seqlens.tolist() == [0, 2, 2, 2, 3]
    x = torch.arange(32.0).view(16, 2)
    expected = torch.stack([x[:4].sum(0), x[4:8].sum(0), x[11:].sum(0)])
    assert torch.equal(blocks.sums(x), expected)
    assert blocks.sums(x.bfloat16()).dtype == torch.bfloat16
    assert kernels.Blocks.of([3], 4, torch.clone).sums(x[:3]).shape == (0, 2)


# -- soft caps, heads that share keys, and two attentions as one


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("windowed", [True, False])
def test_encoder_attention_of_shared_keys(windowed: bool, cap: float | None) -> None:
    case = packed((8, 3, 150), heads=4, dim=16, group=2)
    table = kernels.windowed_bias_table(bias_table(4, 25), 6, 6) if windowed else bias_table(4, 25)
    summaries = summarized(case, 4)
    out = kernels.encoder_attention(*case.inputs(), Scores(0.7, table, cap), windowed, summaries)
    assert_close(out, case.expected(table, 0.7, summaries, cap))


@pytest.mark.parametrize("rows", [[1, 1, 1], [1, 12, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [None, 0.5])
def test_paged_attention_of_shared_keys(cap: float | None, dtype: torch.dtype, rows: list[int]) -> None:
    """Over a sequence's own keys, over another's, and over both at once."""
    own = paged([40, 33, 5], rows, heads=4, dim=32, dtype=dtype, group=2)
    other = paged([7, 1, 300], rows, heads=4, dim=32, dtype=dtype, group=2, seed=1)
    other.q = own.q
    table, sums = bias_table(4, 19), torch.empty(2, sum(rows), 4)
    one = kernels.paged_self_attention(*own.inputs(), Scores(0.7, table, cap), sums[0])
    assert_close(one, own.expected(table, 0.7, causal=True, cap=cap))
    two = kernels.paged_cross_attention(*other.inputs(), Scores(0.7, None, cap), sums[1])
    assert_close(two, other.expected(None, 0.7, causal=False, cap=cap))
    merged = kernels.merge_attention(one, sums[0], two, sums[1])
    assert_close(merged, own.expected(table, 0.7, causal=True, cap=cap, more=other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beam_attention_of_shared_keys(dtype: torch.dtype) -> None:
    lengths = [40, 40, 33]
    case = paged(lengths, [1] * 3, heads=4, dim=32, dtype=dtype, group=2)
    scattered(case, lengths)
    table, sums = bias_table(4, 19), torch.empty(3, 4)
    out = kernels.paged_beam_attention(case.q, case.kv, Scores(0.7, table, 0.5), sums)
    assert_close(out, case.expected(table, 0.7, causal=True, cap=0.5))
    # Of keys that are all zero the softmax's denominator is their number.
    kv = case.kv._replace(k=torch.zeros_like(case.kv.k))
    kernels.paged_beam_attention(case.q, kv, Scores(0.7, None, 0.5), sums)
    assert_close(sums.exp(), kv.lengths.unsqueeze(1).expand(3, 4), 1e-5)
