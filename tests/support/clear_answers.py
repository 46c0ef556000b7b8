"""Answers of the bundled model that are the same in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tandem import LLM, SamplingParams
from tandem.outputs import CompletionOutput

# Batches and tensor-parallel sizes differ by rounding errors. Answers in which the likeliest token is never
# ahead of the next by less than this (in natural-log probability) do not.
CLEAR = 1e-3


def clear_answers(prompts: Sequence[str], **params: Any) -> dict[str, CompletionOutput]:
    """By prompt, of the prompts whose answer no rounding error changes."""
    with LLM(dtype="float32") as llm:
        outputs = llm.generate(list(prompts), SamplingParams(**params, logprobs=2), use_tqdm=False)
    return {
        prompt: output.outputs[0]
        for prompt, output in zip(prompts, outputs, strict=True)
        if all(p.top[0][1] - p.top[1][1] > CLEAR for p in output.outputs[0].logprobs or [])
    }
