"""Ops on the scores of a vocabulary, held to torch's and to transformers' timestamp rules."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, WhisperTimeStampLogitsProcessor

from tandem.kernels import TimeIds, token_scores
from tandem.kernels.cpu import ops as cpu_ops

BACKENDS = [token_scores, *([cpu_ops] if cpu_ops.COMPILED else [])]
VOCABULARY, TEXT_END, FIRST = 9000, 8000, 8101
IDS = TimeIds(FIRST, TEXT_END, FIRST - 1)


@pytest.mark.parametrize("ops", BACKENDS)
def test_logsumexp(ops: Any) -> None:
    torch.manual_seed(1)
    wide = 5 * torch.randn(12, 2 * VOCABULARY)
    x = wide[:, VOCABULARY:]  # rows lie apart
    x[0, 1:] = -torch.inf
    x[1, ::2] = -torch.inf
    x[2] += 1000
    expected = x.double().logsumexp(1, keepdim=True).float()
    torch.testing.assert_close(ops.logsumexp(x), expected, rtol=1e-6, atol=1e-5)
    assert ops.logsumexp(torch.full((2, 7), -torch.inf)).isnan().all()


@pytest.mark.parametrize("ops", BACKENDS)
def test_logsumexp_of_some(ops: Any) -> None:
    torch.manual_seed(2)
    x, stops = torch.randn(4, 100), [1, 17, 100, 2**31 - 1]
    expected = [x[row, :stop].logsumexp(0) for row, stop in enumerate(stops)]
    found = ops.logsumexp(x, torch.tensor(stops))
    torch.testing.assert_close(found, torch.stack(expected).unsqueeze(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ops", BACKENDS)
def test_banned_tokens(ops: Any) -> None:
    torch.manual_seed(3)
    wide = torch.randn(5, 60)
    scores, before = wide[:, 20:50], wide.clone()
    ids, rows = torch.tensor([[3, -1, 29], [-1, -1, -1], [0, 1, 2]]), torch.tensor([2, 0, -1, 1, 0])
    ops.ban_tokens(scores, ids, rows)
    for row, tokens in enumerate([[0, 1, 2], [3, 29], [], [], [3, 29]]):
        before[row, [20 + token for token in tokens]] = -torch.inf
    assert torch.equal(wide, before)
    ops.ban_tokens(scores, ids[:, :0], rows)
    assert torch.equal(wide, before)


def said(rng: random.Random) -> list[int]:
    """Some tokens: text, special ones and times, which need not keep to the rules."""
    kinds = [rng.choice("tT.") for _ in range(rng.randrange(7))]
    of_kind = {"t": range(TEXT_END), ".": range(TEXT_END, FIRST), "T": range(FIRST, FIRST + 60)}
    return [rng.choice(of_kind[kind]) for kind in kinds]


@pytest.mark.parametrize("ops", BACKENDS)
@pytest.mark.parametrize("last_initial", [None, FIRST + 20])
def test_timestamp_rules(ops: Any, last_initial: int | None) -> None:
    """Rows of many lengths; where a time is decided by what all of them add up to, and where it is not."""
    rng = random.Random(4)
    torch.manual_seed(4)
    config = GenerationConfig(
        no_timestamps_token_id=FIRST - 1,
        eos_token_id=TEXT_END,
        max_initial_timestamp_index=None if last_initial is None else last_initial - FIRST,
    )
    prefixes = [[7] * rng.randrange(1, 4) for _ in range(120)]
    each = [said(rng) for _ in prefixes]
    history = torch.full((121, 12), FIRST + 90)  # what is beyond a row's length does not count
    scores = torch.randn(len(each), VOCABULARY)
    scores[:, FIRST:] += 3 * torch.rand(len(each), 1) - 2
    expected = scores.clone()
    for row, (prefix, tokens) in enumerate(zip(prefixes, each, strict=True)):
        ids = prefix + tokens
        history[row + 1, : len(ids)] = torch.tensor(ids)
        rules = WhisperTimeStampLogitsProcessor(config, len(prefix))
        expected[row] = rules(torch.tensor([ids]), scores[row : row + 1].clone())[0]
    begins = torch.tensor([[len(prefix)] for prefix in prefixes])
    begins[::11], expected[::11] = -1, scores[::11]  # rows without rules
    ops.apply_timestamp_rules(
        scores, history, torch.arange(len(each)) + 1, begins, torch.tensor([[len(one)] for one in each]),
        torch.full((len(each), 1), 2**31 - 1 if last_initial is None else last_initial), IDS,
    )  # fmt: skip
    assert torch.equal(scores, expected)
    bans_text = expected[:, :TEXT_END].isinf().all(1)
    assert bans_text.any()
    assert not bans_text.all()


def test_ids_that_are_no_vocabularys_are_refused() -> None:
    if not cpu_ops.COMPILED:
        pytest.skip("Tandem was installed without a compiler")
    one = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(TypeError, match="must be tokens in this order"):
        cpu_ops.apply_timestamp_rules(torch.zeros(1, 9), one, one[0], one, one, one, TimeIds(10, 3, 9))
