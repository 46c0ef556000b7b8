"""Whisper's front, held to transformers' module."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import gelu
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tandem.workers.distributed import Group
from tandem.workers.models.families import spec_of
from tandem.workers.models.fronts import make_front
from tandem.workers.models.layers import Placement


@pytest.mark.parametrize(("mels", "positions", "items"), [(80, 50, 1), (128, 7, 3)])
@torch.no_grad()
def test_convolutions(mels: int, positions: int, items: int) -> None:
    config = WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        num_mel_bins=mels, max_source_positions=positions,
    )  # fmt: skip
    encoder = WhisperEncoder(config)
    stack = spec_of(config.to_dict()).encoder
    assert stack is not None
    assert stack.front is not None
    assert stack.front.features == (mels, 2 * positions)
    front = make_front("encoder.front", stack, Placement(torch.device("cpu"), torch.float32, Group()))
    assert front is not None
    theirs = dict(encoder.named_parameters())
    for slot in front.slots():
        number, _, bias = slot.name.removeprefix("encoder.front.").partition(".")
        weight = theirs[f"{number}.{bias or 'weight'}"]
        assert tuple(weight.shape) == slot.shape
        slot.into.copy_(weight)
    features = torch.randn(items, mels, 2 * positions)
    expected = gelu(encoder.conv2(gelu(encoder.conv1(features)))).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(front(features), expected)
    assert front(features).shape == (items * positions, 32)


def test_a_stack_of_tokens_has_no_front() -> None:
    stack = spec_of(WhisperConfig().to_dict()).decoder
    place = Placement(torch.device("cpu"), torch.float32, Group())
    assert make_front("decoder.front", dataclasses.replace(stack, front=None), place) is None
