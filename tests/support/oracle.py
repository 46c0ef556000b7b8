"""The matrix's answers: transformers', one request at a time, and Tandem's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import Asked
from models import EOS, decoding, load_reference

from tandem.workers.engine import Engine
from tandem.workers.models.families import spec_of
from tandem.workers.models.model_folder import read_json
from tandem.workers.request import EncoderInput, EngineRequest

# Where two tokens, or two hypotheses, score within rounding of each other, either choice is right: such
# prompts are left out.
CLEAR = 1e-4
TRIES = 100  # prompts
# The tolerance of scores, relative where they exceed 1: float32's rounding grows with the logits.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Answer:
    token_ids: list[int]
    finish_reason: str
    score: float = 0.0  # of a beam

    def same(self, other: Answer) -> bool:
        return self == replace(other, score=self.score) and self.score == pytest.approx(
            other.score, abs=TOLERANCE, rel=TOLERANCE
        )


Found = dict[str, list[Answer]]  # by request


@dataclass(frozen=True)
class Case:
    request: EngineRequest
    answers: list[Answer]


def answered(engine: Engine, requests: list[EngineRequest]) -> Found:
    """Tandem's answers; all requests are there at once."""
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    found: Found = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None
            tokens[delta.request_id] += delta.token_ids
            if delta.last:
                assert delta.request_id not in found
                assert delta.finish_reason is not None
                found[delta.request_id] = (
                    [Answer(tokens[delta.request_id], delta.finish_reason)]
                    if delta.hypotheses is None
                    else [Answer(h.token_ids, h.finish_reason, h.score) for h in delta.hypotheses]
                )
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
    return found


class Oracle:
    """transformers with one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._model, self._rng, self._count = load_reference(folder), random.Random(3), 0
        self.start = spec_of(read_json(folder, "config.json")).decoder_start_id

    def case(self, asked: Asked) -> Case:
        """A case with a prompt whose answer is clear and, if greedy, changed by the options."""
        for _ in range(TRIES):
            prompt = tuple(self._rng.randrange(2, 100) for _ in range(asked.length))
            if self.start is None:  # the prompt is the decoder's, and is not to seem complete
                encoder, prefix = EncoderInput("", ()), prompt
            else:
                prompt = (*prompt, EOS)
                encoder, prefix = EncoderInput(str(prompt), prompt), (self.start, *asked.decoder_prompt)
            ours, theirs = dict(asked.ours), dict(asked.theirs)
            if asked.ban:
                plain = self._answers(prompt, prefix, replace(asked, beams=None), {})[0][0].token_ids
                if len(plain) <= asked.ban:  # as EOS alone is no bad word
                    continue
                word = plain[: asked.ban]
                ours["bad_words"], theirs["bad_words_ids"] = (tuple(word),), [word]
            answers, clear, bitten = self._answers(prompt, prefix, asked, theirs)
            if not clear or (theirs and not bitten):
                continue
            self._count += 1
            how = decoding(**{"max_tokens": asked.max_tokens, "beams": asked.beams, **ours})
            return Case(EngineRequest(str(self._count), encoder, prefix, how), answers)
        raise AssertionError(f"no clear answer in {TRIES} prompts: {asked}")

    def _answers(
        self, prompt: tuple[int, ...], prefix: tuple[int, ...], asked: Asked, theirs: dict[str, Any]
    ) -> tuple[list[Answer], bool, bool]:
        """The answers; whether they are clear; whether, of a greedy one, some token is not the likeliest."""
        beams = asked.beams
        how = {} if beams is None else {
            "num_beams": beams.num_beams,
            "num_return_sequences": beams.num_return_sequences,
            "length_penalty": beams.length_penalty,
            "early_stopping": beams.early_stopping,
            "renormalize_logits": beams.renormalize,
        }  # fmt: skip
        if self.start is not None:
            how["decoder_input_ids"] = torch.tensor([prefix])
        with _leads(0 if beams is None else beams.num_beams) as leads:
            out = self._model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=asked.max_tokens,
                do_sample=False,
                # transformers 5.23 sizes the cache by the encoder and breaks on a deeper decoder.
                use_cache=False,
                return_dict_in_generate=True,
                output_scores=True,
                output_logits=True,
                **how,
                **theirs,
            )
        bitten = True
        scores = [0.0]
        if beams is None:
            chosen = torch.cat(out.scores)
            leads += (-chosen.topk(2).values.diff()).flatten().tolist()
            bitten = not chosen.argmax(-1).equal(torch.cat(out.logits).argmax(-1))
        else:
            scores = out.sequences_scores.tolist()
            leads += [a - b for a, b in pairwise(scores)]
        stops = theirs.get("eos_token_id", [EOS])
        answers = []
        for row, score in zip(out.sequences.tolist(), scores, strict=True):
            ids = row[len(prefix) :]
            end = next((at + 1 for at, token in enumerate(ids) if token in stops), len(ids))
            answers.append(Answer(ids[:end], "stop" if ids[end - 1] in stops else "length", score))
        return answers, min(leads) > CLEAR, bitten


@contextmanager
def _leads(width: int) -> Iterator[list[float]]:
    """The smallest lead among the candidates of every step of a beam search."""
    leads: list[float] = []

    def watch(scores: torch.Tensor, k: int, **kwargs: Any) -> Any:
        if scores.dim() == 2 and scores.shape[1] > 3 * width:  # the candidates' choice
            real = scores[scores > -1e8]
            best = topk(real, k=min(k + 1, len(real))).values
            leads.append(float(-best.diff().max()) if len(best) > 1 else 1.0)
        return topk(scores, k=k, **kwargs)

    topk = torch.topk
    with pytest.MonkeyPatch.context() as patch:
        if width:
            patch.setattr(torch, "topk", watch)
        yield leads
