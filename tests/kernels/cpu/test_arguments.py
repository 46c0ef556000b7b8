"""What the C++ extension is given, it checks before it reads any memory, and names what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import paged

from tandem import kernels
from tandem.kernels import RowGroups, Scores
from tandem.kernels.cpu import ops as cpu_ops

pytestmark = pytest.mark.skipif(not cpu_ops.COMPILED, reason="Tandem was installed without a compiler")


def norm(**changes: Any) -> dict[str, Any]:
    """The arguments of `add_norm` for rows [3, 8], with changes."""
    x = torch.ones(3, 8)
    return {
        "x": x, "residual": x, "weight": torch.ones(8), "bias": None, "eps": 1e-6, "out": torch.empty(3, 8),
        "sum": torch.empty(3, 8), "threads": 1,
    } | changes  # fmt: skip


def test_any_order() -> None:
    arguments = norm()
    cpu_ops._cpu.add_norm(**dict(reversed(arguments.items())))
    torch.testing.assert_close(arguments["out"], torch.ones(3, 8))
    assert torch.equal(arguments["sum"], torch.full((3, 8), 2.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(8, dtype=torch.bfloat16)}, r"weight must be .* float32 \[8\], not of bfloat"),
        ({"weight": torch.ones(8).double()}, "weight must be .*, not of float64"),
        ({"x": torch.ones(3, 8, dtype=torch.int64)}, "x must be .*, not of int64"),
        ({"weight": torch.ones(9)}, r"weight must be .* \[8\], not of float32 \[9\]"),
        ({"residual": torch.ones(2, 8)}, r"residual must be .* \[3, 8\], not of float32 \[2, 8\]"),
        ({"out": torch.ones(24)}, r"out must be .* \[3, 8\], not of float32 \[24\]"),
        ({"out": torch.ones(8, 3).t()}, r"out must be a dense .* with strides \[1, 3\]"),
        ({"sum": torch.ones(3, 16)[:, :8]}, "sum must be a dense"),
        ({"weight": torch.ones(8, device="meta")}, "weight must be"),
        ({"x": 7}, "x must be a tensor, not int"),
        ({"x": None}, "x must be a tensor, not NoneType"),
        ({"eps": torch.ones(1)}, "eps must be a float, not Tensor"),
        ({"threads": 1.0}, "threads must be an int, not float"),
        ({"threads": True}, "threads must be an int, not bool"),
        ({"threads": 2**70}, "threads must be an int of 64 bits"),
        ({"width": 8}, "takes no argument width"),
        ({"sum": None}, "residual and sum must come together"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    arguments = norm(**changes)
    with pytest.raises(TypeError, match=message):
        cpu_ops._cpu.add_norm(**arguments)


def test_arguments_are_named_and_complete() -> None:
    arguments = norm()
    with pytest.raises(TypeError, match="takes keyword arguments only"):
        cpu_ops._cpu.add_norm(*arguments.values())
    del arguments["eps"]
    with pytest.raises(TypeError, match="needs the argument eps"):
        cpu_ops._cpu.add_norm(**arguments)


def test_rows_may_lie_apart_where_an_op_reads_rows() -> None:
    wide = torch.randn(3, 16)
    assert torch.equal(kernels.argmax(wide[:, 8:]), wide[:, 8:].argmax(1))
    out = torch.empty(3, dtype=torch.int64)
    with pytest.raises(TypeError, match="x must be a dense"):
        cpu_ops._cpu.argmax(x=wide[:, ::2], out=out, threads=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": torch.int64}, "table must be .* int32"),
        ({"lengths": torch.int64}, "lengths must be .* int32"),
        ({"v": torch.bfloat16}, "v must be .* float32"),
    ],
)
def test_attention_of_other_dtypes_is_refused(change: dict[str, torch.dtype], message: str) -> None:
    case = paged([5, 20], [1, 1])
    [(name, dtype)] = change.items()
    kv = case.kv._replace(**{name: getattr(case.kv, name).to(dtype)})
    with pytest.raises(TypeError, match=message):
        kernels.paged_cross_attention(case.q, kv, case.groups, Scores(1.0))


def test_attention_of_other_sizes_is_refused() -> None:
    case = paged([5, 20], [1, 1])
    groups = RowGroups(case.groups.cu_rows[:2], 1)
    with pytest.raises(TypeError, match=r"cu_rows must be .* \[3\], not of int32 \[2\]"):
        kernels.paged_cross_attention(case.q, case.kv, groups, Scores(1.0))
    with pytest.raises(TypeError, match=r"bias_table must be .* \[2, 9\], not of float32 \[3, 9\]"):
        kernels.paged_self_attention(case.q, case.kv, case.groups, Scores(1.0, torch.zeros(3, 9)))
    with pytest.raises(TypeError, match="sums must be a dense"):
        kernels.paged_cross_attention(*case.inputs(), Scores(1.0), torch.empty(2, 2).t())
    with pytest.raises(TypeError, match="heads of q must share"):
        kernels.paged_cross_attention(torch.ones(2, 3, 64), case.kv, case.groups, Scores(1.0))


def test_a_weight_packed_for_other_sizes_is_refused() -> None:
    packed = torch.zeros(16 * 8)
    with pytest.raises(TypeError, match="packed must be"):
        cpu_ops.float_linear(torch.ones(2, 8), packed, 17, None)


def test_large_results_may_be_anywhere_in_huge_pages() -> None:
    """The advice to the system names whole huge pages within the memory, of which there may be none."""
    for size in (0, 1, 2**20, 5 * 2**20):
        x = cpu_ops.in_huge_pages(torch.empty(size))
        x.fill_(1.0)
        assert x.sum() == size
    with pytest.raises(TypeError, match="address must be an int"):
        cpu_ops._cpu.prefer_huge_pages(address=1.5, bytes=8)
