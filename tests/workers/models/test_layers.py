"""Layers: the ranks' parts together are the whole layer. Ranks are played one after another by groups that
only note what they would send."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tandem.errors import ModelLoadError
from tandem.workers.distributed import Group
from tandem.workers.models.layers import (
    ColumnParallel,
    HeadTable,
    Norm,
    Placement,
    RowParallel,
    Vocabulary,
    VocabularyBias,
    WeightSlot,
)
from tandem.workers.models.spec import NormKind

CPU = torch.device("cpu")
SIZES = [1, 2, 4]


@dataclass(frozen=True)
class Part(Group):
    """A rank alone: what the ranks would sum up or put side by side comes back as its own part."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor | None:
        return x


def places(size: int) -> list[Placement]:
    return [Placement(CPU, torch.float32, Part(rank=rank, size=size)) for rank in range(size)]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def fill(layer: Any, weights: dict[str, torch.Tensor]) -> None:
    """Loads a layer as `Checkpoint.load` does."""
    slots: Iterable[WeightSlot] = layer.slots()
    for slot in slots:
        whole = weights[slot.name]
        assert tuple(whole.shape) == slot.shape
        if slot.dim is not None:
            whole = whole.narrow(slot.dim, slot.start, slot.into.shape[slot.dim])
        slot.into.copy_(whole)


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_column_parallel(size: int, bias: bool) -> None:
    """Every rank has its share of every part, in the parts' order."""
    widths = [8, 4, 12]
    names = ["q", "k", "v"]
    weights = {name: randn(width, 6) for name, width in zip(names, widths, strict=True)}
    biases = {f"{name}.bias": randn(width) for name, width in zip(names, widths, strict=True)}
    x = randn(5, 6)
    outputs = []
    for place in places(size):
        layer = ColumnParallel(names, widths, 6, "heads", place, bias=bias)
        fill(layer, weights | biases)
        outputs.append(layer(x).split([width // size for width in widths], dim=-1))
    for part, name in enumerate(names):
        expected = F.linear(x, weights[name], biases[f"{name}.bias"] if bias else None)
        close(torch.cat([output[part] for output in outputs], dim=-1), expected)


@pytest.mark.parametrize("size", SIZES)
def test_row_parallel(size: int) -> None:
    weight, x = randn(6, 8), randn(5, 8)
    total = torch.zeros(5, 6)
    for rank, place in enumerate(places(size)):
        layer = RowParallel("down", 8, 6, "d_ff", place)
        fill(layer, {"down": weight})
        total += layer(x.chunk(size, dim=-1)[rank])
    close(total, F.linear(x, weight))


@dataclass(frozen=True)
class Doubling(Group):
    """As if another rank had the same part."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_the_bias_of_a_row_parallel_projection_counts_once() -> None:
    weight, bias, x = randn(6, 8), randn(6), randn(5, 8)
    for group, times in ((Group(), 1), (Doubling(rank=1, size=2), 2)):
        layer = RowParallel("down", 8, 6, "d_ff", Placement(CPU, torch.float32, group), bias=True)
        fill(layer, {"down": weight, "down.bias": bias})
        share = 8 // group.size
        part = slice(group.rank * share, (group.rank + 1) * share)
        close(layer(x[:, part]), times * F.linear(x[:, part], weight[:, part]) + bias)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("vocabulary", [12, 13, 15])
def test_vocabulary(vocabulary: int, size: int) -> None:
    weight, x = randn(vocabulary, 6), randn(5, 6)
    ids = torch.arange(vocabulary)
    embedded = torch.zeros(vocabulary, 6)
    logits = []
    for place in places(size):
        layer = Vocabulary("embedding", vocabulary, 6, place)
        fill(layer, {"embedding": weight})
        embedded += layer.embed(ids)
        part = F.linear(x, layer.weight)
        assert part.shape == (5, -(-vocabulary // size))
        logits.append(part)
    assert torch.equal(embedded, weight)
    close(torch.cat(logits, dim=-1)[:, :vocabulary], F.linear(x, weight))


def test_logits_are_float32_and_end_with_the_vocabulary() -> None:
    place = Placement(CPU, torch.bfloat16, Group())
    layer = Vocabulary("embedding", 13, 6, place)
    fill(layer, {"embedding": randn(13, 6)})
    layer.prepare_logits(None, embeds=True)
    logits = layer.logits(randn(5, 6).bfloat16())
    assert logits is not None
    assert logits.dtype == torch.float32
    assert logits.shape == (5, 13)


@pytest.mark.parametrize("size", SIZES)
def test_a_bias_on_the_logits_is_split_as_they_are(size: int) -> None:
    weight, bias, x = randn(13, 6), randn(13), randn(5, 6)
    logits = []
    for place in places(size):
        layer, added = Vocabulary("output", 13, 6, place), VocabularyBias("bias", 13, place)
        fill(layer, {"output": weight})
        fill(added, {"bias": bias})
        layer.prepare_logits(added, embeds=False)
        assert not layer.weight.numel()
        part = layer.logits(x)
        assert part is not None
        logits.append(part)
    close(torch.cat(logits, dim=-1)[:, :13], F.linear(x, weight, bias))


@pytest.mark.parametrize("size", SIZES)
def test_head_table(size: int) -> None:
    table = randn(32, 8)
    parts = []
    for place in places(size):
        layer = HeadTable("bias", 32, 8, place)
        fill(layer, {"bias": table})
        parts.append(layer.weight)
    assert torch.equal(torch.cat(parts, dim=1), table)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm_is_the_same_on_every_rank(kind: NormKind) -> None:
    scale, shift, x, residual = randn(6), randn(6), randn(5, 6), randn(5, 6)
    for place in places(2):
        layer = Norm("norm", 6, kind, 1e-6, place)
        fill(layer, {"norm": scale, "norm.bias": shift})
        assert torch.equal(layer.weight, scale)
        out, total = layer.add(x, residual)
        assert torch.equal(total, x + residual)
        assert torch.equal(out, layer(total))
        expected = F.layer_norm(total, (6,), scale, shift, 1e-6)
        assert torch.allclose(out, expected, rtol=1e-5, atol=1e-6) == (kind == "layer")


@pytest.mark.parametrize("widths", [[7], [8, 6]])
def test_what_cannot_be_split_is_refused(widths: Sequence[int]) -> None:
    place = Placement(CPU, torch.float32, Group(rank=0, size=4))
    with pytest.raises(
        ModelLoadError, match=r"d_ff = \d is not divisible by tensor_parallel_size = 4"
    ) as caught:
        ColumnParallel(["a", "b"][: len(widths)], widths, 6, "d_ff", place)
    assert caught.value.field == "tensor_parallel_size"
