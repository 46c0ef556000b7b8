"""transformers' transcriptions of recordings of any length, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, WhisperForConditionalGeneration
from whisper import EOS, RATE, Reference

from tandem.transcription import Transcription
from tandem.workers.requests.prompts.tokenizer import read_tokenizer

Samples = np.ndarray[Any, np.dtype[np.float32]]


class _Lead(LogitsProcessor):
    """The smallest lead of a likeliest token over the next, after all processors."""

    def __init__(self) -> None:
        self.least = torch.inf

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        leads = -scores.topk(2).values.diff()
        self.least = min(self.least, float(leads.nan_to_num(torch.inf).min()))
        return scores


@dataclass
class Expected:
    segments: list[tuple[float, float, list[int]]]  # start, end, tokens
    text: str
    lead: float  # see `_Lead`
    avg_logprobs: list[float] = field(default_factory=list)  # of every attempt, where it is looked at
    no_speech_probs: list[float] = field(default_factory=list)
    token_ends: list[list[float]] = field(default_factory=list)  # of each segment's tokens, where asked for


class Transcripts:
    def __init__(self, folder: Path) -> None:
        self.reference = Reference(folder)
        self.model: Any = self.reference.model
        self.tokenizer = read_tokenizer(folder)

    def features(self, samples: Samples) -> torch.Tensor:
        """[1, mel bins, frames]: a window's, or those of all of a longer recording."""
        extractor = self.reference.extractor
        how: Any = {"truncation": False, "padding": "longest"} if len(samples) > extractor.n_samples else {}
        made: torch.Tensor = extractor(samples, sampling_rate=RATE, return_tensors="pt", **how).input_features
        return made

    @torch.no_grad()
    def generate(
        self, samples: Samples, features: torch.Tensor | None = None, *, prompt: list[int] | None = None,
        **options: Any,
    ) -> Expected:  # fmt: skip
        """features: those of a part. prompt: ids of its text."""
        if prompt is not None:
            before = self.reference.config["prev_sot_token_id"]
            options["prompt_ids"] = torch.tensor([before, *prompt])
        lead = _Lead()
        options = {"temperature": 0.0, **options}
        with _recorded() as (avg_logprobs, no_speech_probs):
            made = self.model.generate(
                self.features(samples) if features is None else features,
                return_segments=True,
                logits_processor=[lead],
                **options,
            )
        segments = [
            (float(one["start"]), float(one["end"]), one["tokens"].tolist()) for one in made["segments"][0]
        ]
        said = [token for _, _, ids in segments for token in ids if token < EOS]
        text = self.tokenizer.decode(said).strip()
        ends = [one["token_timestamps"].tolist() for one in made["segments"][0] if "token_timestamps" in one]
        return Expected(segments, text, lead.least, avg_logprobs, no_speech_probs, ends)


@contextmanager
def _recorded() -> Iterator[tuple[list[float], list[float]]]:
    """What transformers finds of each attempt."""
    kind: Any = WhisperForConditionalGeneration
    avg_logprobs: list[float] = []
    no_speech_probs: list[float] = []
    average, need = kind._retrieve_avg_logprobs, kind._need_fallback

    def recorded(scores: Any, tokens: Any, temperature: Any) -> Any:
        found = average(scores, tokens, temperature)
        avg_logprobs.append(float(found))
        return found

    def asked(self: Any, *arguments: Any) -> Any:
        detectors = [one for one in arguments[3] or () if hasattr(one, "no_speech_prob")]
        no_speech_probs.extend(float(one.no_speech_prob[0]) for one in detectors)
        return need(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "_retrieve_avg_logprobs", staticmethod(recorded))
        patch.setattr(kind, "_need_fallback", asked)
        yield avg_logprobs, no_speech_probs


def found(transcription: Transcription) -> list[tuple[float, float, list[int]]]:
    return [(one.start_s, one.end_s, one.token_ids) for one in transcription.segments]


def near(transcription: Transcription) -> Any:
    """Equal to the `asdict` of every transcription that differs in rounding alone: probabilities depend on a
    batch's shape in their last digits."""

    def nearly(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: nearly(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(nearly(one) for one in value)
        return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value

    return nearly(asdict(transcription))
