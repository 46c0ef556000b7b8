"""Packed projections equal the plain ones, and a row's result does not depend on who is with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tandem.kernels import Linear

DTYPES = [torch.float32, torch.bfloat16]


def packed(dtype: torch.dtype, inputs: int, outputs: int, bias: bool) -> tuple[Linear, torch.Tensor]:
    """And what it is to compute, for inputs x, in float64."""
    torch.manual_seed(0)
    weight, added = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
    linear = Linear(weight.clone(), added.clone() if bias else None)
    linear.pack()
    return linear, torch.cat(
        [weight, added.unsqueeze(1) if bias else torch.zeros(outputs, 1)], dim=1
    ).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 5), (64, 96), (33, 200)])
def test_equals_the_product(dtype: torch.dtype, bias: bool, inputs: int, outputs: int) -> None:
    linear, expected = packed(dtype, inputs, outputs, bias)
    for rows in (0, 1, 3, 40, 300):
        x = torch.randn(rows, inputs).to(dtype)
        out = linear(x)
        assert out.dtype == dtype
        wanted = F.linear(x.double(), expected[:, :-1], expected[:, -1])
        tolerance = {torch.float32: 1e-4, torch.bfloat16: 2**-7}[dtype]
        torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance * inputs**0.5)


def test_takes_rows_that_are_part_of_a_wider_tensor() -> None:
    linear, expected = packed(torch.float32, 24, 16, False)
    x = torch.randn(5, 48)[:, 24:]
    torch.testing.assert_close(linear(x), F.linear(x, expected[:, :-1].float()))


def test_the_weight_is_let_go() -> None:
    weight = torch.randn(16, 24)
    linear = Linear(weight)
    linear.pack()
    weight.zero_()
    assert linear(torch.ones(1, 24)).abs().sum() > 0
    with pytest.raises(AssertionError, match="packed"):
        linear.pack()
