"""Where a window is split, held to transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperForConditionalGeneration

from tandem.workers.transcription.segments import Piece, split

FIRST = 20  # the time 0


@settings(max_examples=100)
@given(
    ids=st.lists(st.integers(0, FIRST - 1) | st.integers(FIRST, FIRST + 30), min_size=1, max_size=14),
    seek=st.integers(0, 400_000),
    frames=st.integers(1, 3000),
)
def test_as_transformers(ids: list[int], seek: int, frames: int) -> None:
    kind: Any = WhisperForConditionalGeneration
    segments, advance = kind._retrieve_segment(
        seek_sequence=torch.tensor(ids), seek_outputs=[None],
        time_offset=torch.tensor([seek]).to(torch.float64) * 0.02 / 2, timestamp_begin=FIRST,
        seek_num_frames=torch.tensor([frames]), time_precision=0.02, time_precision_features=0.01,
        input_stride=2, prev_idx=0, idx=0, return_token_timestamps=False,
        decoder_input_ids=torch.zeros(1, 1),
    )  # fmt: skip
    found = split(ids, seek, frames, FIRST, openai=False)
    assert found.advance == int(advance)
    assert found.pieces == [
        Piece(float(one["start"]), float(one["end"]), one["tokens"].tolist()) for one in segments
    ]


@pytest.mark.parametrize(
    ("ids", "pieces", "advance"),
    [
        ([20, 1, 25], [(1.0, 1.1, [20, 1, 25])], 77),  # one time at the end: nothing comes after
        ([20, 1, 25, 25, 2, 30, 30], [(1.0, 1.1, [20, 1, 25]), (1.1, 1.2, [25, 2, 30])], 20),
        ([20, 1, 25, 25, 2, 3], [(1.0, 1.1, [20, 1, 25])], 10),  # the rest is decoded anew
        ([20, 1, 25, 25, 2, 30], [(1.0, 1.1, [20, 1, 25]), (1.1, 1.2, [25, 2, 30])], 77),
        ([20, 1, 2], [(1.0, 1.77, [20, 1, 2])], 77),  # whole, to half a step
        ([1, 22, 2], [(1.0, 1.04, [1, 22, 2])], 77),
    ],
)
def test_as_openai_whisper(ids: list[int], pieces: list[Any], advance: int) -> None:
    found = split(ids, 100, 77, FIRST, openai=True)
    assert found.advance == advance
    assert [piece.token_ids for piece in found.pieces] == [ids_ for *_, ids_ in pieces]
    times = [time for piece in found.pieces for time in piece[:2]]
    assert times == pytest.approx([time for *both, _ in pieces for time in both])
