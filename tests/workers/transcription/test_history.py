"""What comes before a window's start token, held to transformers'."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transcribing import ASKED, BEFORE, FIRST_TIME
from transformers import WhisperForConditionalGeneration

from tandem.workers.transcription.history import history_of

POSITIONS = 24
MOST = POSITIONS // 2 - 1
times = st.integers(FIRST_TIME, FIRST_TIME + 5)
segments = st.lists(st.integers(0, 20) | times, min_size=1, max_size=6)
windows = st.lists(
    st.tuples(st.lists(segments, max_size=2), st.sampled_from([0.0, 0.4, 0.5, 0.8])), max_size=4
)


@settings(max_examples=60)
@given(
    windows=windows,
    prompt=st.lists(st.integers(0, 20), max_size=5).map(tuple),
    condition=st.booleans(),
    each=st.booleans(),
)
def test_as_transformers(
    windows: list[tuple[list[list[int]], float]], prompt: tuple[int, ...], condition: bool, each: bool
) -> None:
    each = each and condition
    history = history_of(replace(ASKED, prompt_ids=prompt, condition=condition, prompt_each=each), MOST)
    kind: Any = WhisperForConditionalGeneration
    config = SimpleNamespace(
        prev_sot_token_id=BEFORE, prompt_condition_type="all-segments" if each else "first-segment",
        pad_token_id=90, cache_implementation=None,
    )  # fmt: skip
    prompt_ids = torch.tensor([BEFORE, *prompt]) if prompt else None
    (said,) = kind._prepare_segments(prompt_ids, 1, config)
    conditioned = condition
    for of_window, temperature in [*windows, ([], 0.0)]:
        ids, _ = kind._prepare_decoder_input_ids(
            cur_bsz=1, init_tokens=torch.tensor([[91]]), current_segments=[said], batch_idx_map=[0],
            do_condition_on_prev_tokens=[conditioned], prompt_ids=prompt_ids, generation_config=config,
            config=SimpleNamespace(max_target_positions=POSITIONS), device="cpu", suppress_tokens=None,
            timestamp_begin=FIRST_TIME, kwargs={},
        )  # fmt: skip
        assert history.before() == ids[0, :-1].tolist()
        said += [{"tokens": torch.tensor(segment)} for segment in of_window]
        conditioned = condition and temperature < 0.5
        if of_window:
            history.extend(of_window, temperature)
        else:
            history.left_out(temperature)


@pytest.mark.parametrize("condition", [True, False])
def test_as_openai_whisper(condition: bool) -> None:
    """The prompt is the beginning of what was said, and goes with it."""
    history = history_of(replace(ASKED, openai=True, prompt_ids=(7, 8), condition=condition), MOST)
    assert history.before() == [BEFORE, 7, 8]
    history.left_out(0.8)
    assert history.before() == [BEFORE, 7, 8]
    history.extend([[101, 1, 103], [103, 2, 104]], 0.5)
    assert history.before() == ([BEFORE, 7, 8, 101, 1, 103, 103, 2, 104] if condition else [])
    history.extend([list(range(20))], 0.0)
    assert history.before() == ([BEFORE, *range(20 - MOST, 20)] if condition else [])
    history.extend([[5]], 0.6)
    assert history.before() == []
