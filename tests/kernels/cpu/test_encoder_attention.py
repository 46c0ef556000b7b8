"""Encoder attention in C++ equals the reference, on every level of the instruction set that this machine has,
and holds no scores of all queries with all keys."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from kernel_cases import Packed, assert_close, bias_table, packed, summarized

from tandem import kernels
from tandem.kernels import Scores, Summaries, reference
from tandem.kernels.cpu import ops as cpu_ops

pytestmark = pytest.mark.skipif(not cpu_ops.COMPILED, reason="Tandem was installed without a compiler")

LANES = [lanes for lanes in (4, 8, 16) if lanes <= cpu_ops.LANES]


def check(
    case: Packed, scores: Scores, windowed: bool = False, summaries: Summaries | None = None,
    tolerance: float = 1e-5,
) -> None:  # fmt: skip
    q, k, v, cu_seqlens, longest = case.inputs()
    expected = reference.encoder_attention(
        q.float(), k.float(), v.float(), cu_seqlens, longest, scores, windowed, summaries
    )
    for lanes in LANES:
        out = cpu_ops.attend_inputs(q, k, v, cu_seqlens, scores, windowed, summaries, lanes)
        assert out.shape == q.shape
        assert out.dtype == q.dtype
        assert_close(out, expected, tolerance)


@pytest.mark.parametrize("dim", [1, 8, 24, 31, 40, 64, 80, 104, 128, 200])
def test_head_dimensions(dim: int) -> None:
    for length in (1, 5, 17, 63, 64, 65, 130):
        case = packed((length,), heads=2, dim=dim)
        check(case, Scores(dim**-0.5, bias_table(2, 33)))


@pytest.mark.parametrize("seed", range(6))
def test_inputs_of_any_lengths_packed(seed: int) -> None:
    rng = random.Random(seed)
    lengths = tuple(rng.choice((0, 1, rng.randint(1, 20), rng.randint(1, 300))) for _ in range(12))
    heads, group = rng.choice(((3, 1), (4, 2), (6, 3)))
    case = packed(lengths, heads, rng.choice((8, 16, 48, 64)), group=group)
    table = rng.choice((None, bias_table(heads, 2 * rng.randint(1, 140) + 1)))
    check(case, Scores(0.3, table, rng.choice((None, 0.5, 50.0))))


@pytest.mark.parametrize("seed", range(6))
def test_windows_and_summaries(seed: int) -> None:
    rng = random.Random(seed)
    lengths = tuple(rng.randint(1, 300) for _ in range(4))
    case = packed(lengths, heads=4, dim=24, group=rng.choice((1, 2)))
    before, after = rng.randint(0, 90), rng.randint(0, 90)
    table = kernels.windowed_bias_table(bias_table(4, 2 * 40 + 1), before, after)
    summaries = summarized(case, rng.choice((3, 16))) if seed % 2 else None
    check(case, Scores(0.5, table), True, summaries)
    check(case, Scores(0.5, bias_table(4, 9)), False, summaries)


def test_inputs_too_short_for_a_summary() -> None:
    case = packed((3, 2), heads=2, dim=8)
    check(case, Scores(1.0, bias_table(2, 9)), False, summarized(case, 4))


def test_half_precision_in_and_out() -> None:
    case = packed((5, 70, 130), heads=2, dim=40, dtype=torch.bfloat16)
    check(case, Scores(0.5, bias_table(2, 9)), tolerance=1e-2)


def test_scores_far_apart() -> None:
    """Weights from 1 down to nothing, and one key that outweighs all, at either end."""
    case = packed((200,), heads=2, dim=16)
    for at in (0, 100, 199):
        k = case.k.clone()
        k[at] *= 80
        check(Packed(case.q, k, case.v, case.cu_seqlens, 200), Scores(3.0))


@pytest.mark.parametrize("dim", [2, 32, 64, 80, 128, 200, 31])
@pytest.mark.parametrize("biased", [False, True])
def test_products_of_integers(dim: int, biased: bool) -> None:
    """Nearer than bfloat16's, even where some dimensions are far larger than others; short inputs are
    exact."""
    case = packed((300, 5, 64, 97, 63, 1), heads=4, dim=dim, group=2)
    case.k[:, :, 0] += 40  # the same for all keys: it changes no weight
    case.v[:, :, dim // 2] *= 30
    scores = Scores(dim**-0.5, bias_table(4, 33) if biased else None, integers=True)
    expected = reference.encoder_attention(*case.inputs(), scores)
    out = cpu_ops.encoder_attention(*case.inputs(), scores)
    sizes = expected.abs().amax(0)  # of each head's dimensions
    assert ((out - expected).abs() / sizes).max() < 0.02
    assert ((out - expected) / sizes).square().mean().sqrt() < 0.002
    for start, end in ((300, 305), (466, 530)):
        assert_close(out[start:end], expected[start:end], 1e-4)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_windows_summaries_and_caps_are_of_floats(cap: float | None) -> None:
    case = packed((200, 90), heads=2, dim=16)
    table = kernels.windowed_bias_table(bias_table(2, 81), 30, 20)
    check(case, Scores(0.5, table, cap, integers=True), True, summarized(case, 16))
    check(case, Scores(0.5, table, cap, integers=True), True)
    if cap is not None:
        check(case, Scores(0.5, None, cap, integers=True))


@pytest.mark.parametrize("integers", [False, True])
def test_a_row_depends_on_its_own_input_alone(integers: bool) -> None:
    """To the last bit, whatever is packed around it and however many threads there are."""
    case = packed((37, 200, 64), heads=3, dim=32)
    scores = Scores(0.5, bias_table(3, 65), integers=integers)
    together = kernels.encoder_attention(*case.inputs(), scores)
    threads = torch.get_num_threads()
    for start, end in ((0, 37), (37, 237), (237, 301)):
        rows, cu_seqlens = slice(start, end), torch.tensor([0, end - start], dtype=torch.int32)
        for count in (1, 3):
            torch.set_num_threads(count)
            alone = kernels.encoder_attention(
                case.q[rows], case.k[rows], case.v[rows], cu_seqlens, end - start, scores
            )
            assert torch.equal(alone, together[rows])
    torch.set_num_threads(threads)


@pytest.mark.parametrize("integers", [False, True])
def test_what_is_not_a_number_stays_so(integers: bool) -> None:
    case, scores = packed((70, 80), heads=2, dim=16), Scores(1.0, integers=integers)
    for x in (case.k, case.v):
        kept = x[3].clone()
        x[3] = float("nan")
        out = kernels.encoder_attention(*case.inputs(), scores)
        assert out[:70].isnan().all()
        assert not out[70:].isnan().any()
        x[3] = kept
    case.q[75] = float("nan")
    out = kernels.encoder_attention(*case.inputs(), scores)
    assert out[75].isnan().all()
    assert not out[:70].isnan().any()
    assert not out[134:].isnan().any()  # another block of queries


def test_no_inputs() -> None:
    for borders in ([0], [0, 0, 0]):
        q = torch.empty(0, 2, 16)
        out = kernels.encoder_attention(q, q, q, torch.tensor(borders, dtype=torch.int32), 0, Scores(1.0))
        assert out.shape == (0, 2, 16)


def test_memory_is_a_few_rows() -> None:
    """8,000 positions of two heads need megabytes; a score or a bias for each pair would need 512 MB."""
    code = """
import resource, torch
from tandem import kernels
torch.set_num_threads(1)
q = torch.ones(8000, 2, 8)
borders = torch.tensor([0, 8000], dtype=torch.int32)
table = torch.zeros(2, 257)
few, scores = q[:64], kernels.Scores(1.0, table)
kernels.encoder_attention(few, few, few, torch.tensor([0, 64], dtype=torch.int32), 64, scores)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kernels.encoder_attention(q, q, q, borders, 8000, scores)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, capture_output=True, text=True
    )
    assert int(run.stdout) < 16 * 1024  # KB


def inputs(**changes: object) -> dict[str, object]:
    """The arguments of `attend_inputs`, with changes."""
    q = torch.ones(6, 2, 8)
    borders = torch.tensor([0, 6], dtype=torch.int32)
    arguments = {
        "q": q, "k": q, "v": q, "cu_seqlens": borders, "cu_rows": borders, "bias_table": None,
        "windowed": False, "summary_k": None, "summary_v": None, "summary_cu_seqlens": None,
        "summary_bias_table": None, "block": 0, "scale": 1.0, "softcap": 0.0, "integers": False,
        "out": torch.empty(6, 2, 8), "lanes": 4, "threads": 1,
    }  # fmt: skip
    return arguments | changes


BORDERS = torch.tensor([0, 1], dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v": torch.ones(5, 2, 8)}, r"v must be .* \[6, 2, 8\]"),
        ({"k": torch.ones(5, 2, 8), "v": torch.ones(5, 2, 8)}, "cu_seqlens must run from 0 to 5"),
        ({"cu_rows": torch.tensor([0, 5], dtype=torch.int32)}, "cu_rows must run from 0 to 6"),
        ({"cu_rows": torch.tensor([0, 5, 6], dtype=torch.int32)}, r"cu_rows must be .* \[2\]"),
        (
            {
                "k": torch.ones(5, 2, 8), "v": torch.ones(5, 2, 8), "bias_table": torch.ones(2, 5),
                "cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
            },
            "cu_rows must be cu_seqlens where biases",
        ),
        ({"k": torch.ones(6, 2, 8).bfloat16()}, "k must be .* float32"),
        ({"q": torch.ones(6, 3, 8), "out": torch.ones(6, 3, 8)}, "heads of q must share"),
        ({"cu_seqlens": torch.tensor([0, 6])}, "cu_seqlens must be .* int32"),
        ({"cu_seqlens": BORDERS[:0]}, "cu_seqlens must have a border"),
        ({"cu_seqlens": torch.tensor([0, 7], dtype=torch.int32)}, "cu_seqlens must run from 0 to"),
        (
            dict.fromkeys(("cu_seqlens", "cu_rows"), torch.tensor([0, 7, 6], dtype=torch.int32)),
            "cu_seqlens must run from 0 to",
        ),
        ({"cu_seqlens": torch.tensor([1, 6], dtype=torch.int32)}, "cu_seqlens must run from 0 to"),
        ({"bias_table": torch.ones(2, 4)}, "odd number of distances"),
        ({"bias_table": torch.ones(3, 5)}, r"bias_table must be .* \[2, 5\]"),
        ({"windowed": True}, "windowed needs a bias_table"),
        ({"summary_k": torch.ones(1, 2, 8)}, "must come together"),
        ({"lanes": 32}, "lanes must be"),
        ({"lanes": 5}, "lanes must be"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    cpu_ops._cpu.attend_inputs(**inputs())
    with pytest.raises(TypeError, match=message):
        cpu_ops._cpu.attend_inputs(**inputs(**changes))
