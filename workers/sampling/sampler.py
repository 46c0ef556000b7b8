"""From logits to tokens, on the device and for all rows at once. Rank 0 only."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from tandem import kernels
from tandem.outputs import TokenLogprobs
from tandem.workers.device import HostCopy
from tandem.workers.models.head import TargetScores
from tandem.workers.sampling.beams import Beams, BeamStep
from tandem.workers.sampling.noise import uniform
from tandem.workers.sampling.processors import Processors
from tandem.workers.sampling.slot_tables import Columns
from tandem.workers.sampling.to_device import to_device
from tandem.workers.sampling.warpers import Warpers
from tandem.workers.scheduling.plan import DraftOutcome, Row, Sequence, StepResult
from tandem.workers.scheduling.processor_flags import ProcessorFlags


class Scored:
    """The scores of a step's target tokens, and what goes together in the targets that it completes."""

    def __init__(self, rows: Seq[Row], scores: TargetScores) -> None:
        self._rows = rows
        *parts, attention = scores
        self._host = HostCopy(*(part for part in parts if part is not None), *attention)
        self._aligned = len(attention)

    def wait(self) -> tuple[list[TokenLogprobs], list[list[int]]]:
        """See `StepResult.scores` and `StepResult.alignments`."""
        parts = self._host.wait()
        scored = len(parts) - self._aligned
        alignments = [kernels.time_warp(attention).tolist() for attention in parts[scored:]]
        return self._logprobs(parts[:scored]), alignments

    def _logprobs(self, parts: list[torch.Tensor]) -> list[TokenLogprobs]:
        logprobs, *others = (part.tolist() for part in parts)
        targets = (
            (token_id, row.sequence.request.decoding.prompt_logprobs)
            for row in self._rows
            for token_id in row.target_ids
        )
        if not others:
            return [TokenLogprobs(i, logprob, []) for (i, _), logprob in zip(targets, logprobs, strict=True)]
        return [
            TokenLogprobs(token_id, logprob, [])
            if k is None
            else TokenLogprobs(token_id, logprob, list(zip(ids[:k], top[:k], strict=True)), rank)
            for (token_id, k), logprob, rank, top, ids in zip(targets, logprobs, *others, strict=True)
        ]


class Sampled:
    """The outcome of one step."""

    def __init__(
        self,
        tokens: torch.Tensor,  # int64 [positions]: the sampled positions of rows without beams
        wants_logprobs: list[int | None],  # for each position the number of alternatives asked for
        logprobs: torch.Tensor | None = None,  # float32 [positions, 1 + k]: the token's, the k likeliest's
        top_ids: torch.Tensor | None = None,  # int64 [positions, k]
        beams: BeamStep | None = None,
        chosen_logprobs: torch.Tensor | None = None,  # float32 [positions]: see `Delta.sum_logprob`
    ) -> None:
        # What every rank must know, int64: the tokens, the beams' tokens, the slots of the beams' parents.
        self.choice = tokens if beams is None else torch.cat([tokens, beams.tokens, beams.parents])
        self._wants, self._beams = wants_logprobs, beams
        self._host = HostCopy(*(part for part in (tokens, logprobs, top_ids) if part is not None))
        self._chosen = None if chosen_logprobs is None else HostCopy(chosen_logprobs)
        # Each sampling sequence's draft outcome, beams excluded, int64 [sequences, 3]: see `Runner.finish`.
        # None: nothing drafts. The engine sets it.
        self.drafts: HostCopy | None = None

    def wait(self) -> StepResult:
        drafts = [] if self.drafts is None else [DraftOutcome(*of) for of in self.drafts.wait()[0].tolist()]
        chosen = None if self._chosen is None else self._chosen.wait()[0].tolist()
        return self._without_drafts()._replace(drafts=drafts, chosen_logprobs=chosen)

    def _without_drafts(self) -> StepResult:
        tokens, *of_tokens = self._host.wait()
        beams = [] if self._beams is None else self._beams.found()
        if not of_tokens:
            return StepResult(tokens.tolist(), None, beams)
        logprobs, top_ids = of_tokens
        entries: list[TokenLogprobs | None] = []
        for token, k, values, ids in zip(
            tokens.tolist(), self._wants, logprobs.tolist(), top_ids.tolist(), strict=True
        ):
            entries.append(
                None
                if k is None
                else TokenLogprobs(token, values[0], list(zip(ids[:k], values[1 : k + 1], strict=True)))
            )
        return StepResult(tokens.tolist(), entries, beams)


class Sampler:
    """The decoding parameters of every slot, on the device."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self._processors = Processors(slots, vocab_size, device)
        self._warpers = Warpers(slots, vocab_size, device)
        self._beams = Beams(slots, self._processors, self._warpers, device)
        self._ints = Columns(slots, ("seed",), torch.int64, device)

    @torch.inference_mode()
    def start(self, sequences: Seq[Sequence]) -> None:
        """Takes in the parameters of sequences that got slots."""
        if not sequences:
            return
        self._processors.start(sequences)
        self._warpers.start(sequences)
        self._beams.start(sequences)
        drawn = [s for s in sequences if s.width == 1 and not s.request.decoding.greedy]
        if drawn:
            slots = to_device([sequence.slots[0] for sequence in drawn], self.device)
            self._ints.put(slots, [(sequence.request.decoding.seed,) for sequence in drawn])

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, rows: Seq[Row], positions: torch.Tensor | None = None) -> Sampled:
        """The tokens after these rows' sampled positions, of which each beam has one.

        logits: float32 [positions, vocabulary], consumed. positions: `Runner.positions`, which uncertain rows
        need. The order is transformers': the processors, then temperature, top-k, top-p, min-p, typical-p.
        """
        beams = [row for row in rows if row.sequence.width > 1]
        if not beams:
            return self._sample(logits, rows, positions, None)
        of_beams = [row.sequence.width > 1 for row in rows for _ in range(row.samples * row.width)]
        if all(of_beams):
            step = self._beams.step(logits, beams)
            return Sampled(step.tokens[:0], [], None, None, step)
        at = [
            to_device([place for place, one in enumerate(of_beams) if one == wanted], self.device)
            for wanted in (True, False)
        ]
        step = self._beams.step(logits[at[0]], beams)
        singles = [row for row in rows if row.sequence.width == 1]
        return self._sample(logits[at[1]], singles, positions, step)

    def _sample(
        self, logits: torch.Tensor, rows: Seq[Row], positions: torch.Tensor | None, beams: BeamStep | None
    ) -> Sampled:
        by_position = [(row, step) for row in rows for step in row.steps]
        decodings = [row.sequence.request.decoding for row, _ in by_position]
        numbers = [row.sequence.slots[0] for row, _ in by_position]
        slots, steps = to_device([numbers, [step for _, step in by_position]], self.device)
        if any(row.uncertain for row in rows):
            assert positions is not None
            starts = to_device([row.start if row.uncertain else -1 for row, _ in by_position], self.device)
            steps += torch.where(starts < 0, 0, positions[slots] - starts)
        wants = [d.logprobs for d in decodings]
        raw = logits.log_softmax(-1) if any(k is not None for k in wants) else None
        need = self._processors.need_of(numbers)
        logits = self._processors(logits, slots, steps, need)
        tokens, warped = kernels.argmax(logits), None
        if not all(d.greedy for d in decodings):
            # With the maximum subtracted, a small temperature overflows to -inf, probability 0, and not NaN.
            warped = self._warpers(logits - logits.amax(-1, keepdim=True), slots, decodings)
            temperature = self._warpers.temperature[slots, None]
            tokens = torch.where(temperature[:, 0] > 0, self._draw(warped, slots, steps), tokens)
        chosen = None
        if any(d.sum_logprobs for d in decodings):
            if warped is not None:
                logits = torch.where(temperature > 0, warped * temperature, logits)
            chosen = (logits.gather(1, tokens.unsqueeze(1)) - kernels.logsumexp(logits)).squeeze(1)
        if need & ProcessorFlags.HISTORY:
            self._processors.append(slots, steps, tokens)
        if raw is None:
            return Sampled(tokens, wants, beams=beams, chosen_logprobs=chosen)
        top, top_ids = raw.topk(max(k or 0 for k in wants), dim=-1)
        own = raw.gather(1, tokens.unsqueeze(1))
        return Sampled(tokens, wants, torch.cat([own, top], dim=1), top_ids, beams, chosen)

    def _draw(self, warped: torch.Tensor, slots: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        probs = warped.softmax(-1)
        # Inverse CDF in float64, in the vocabulary's order.
        cdf = probs.double().cumsum(-1)
        noise = uniform(self._ints["seed"][slots], steps)
        target = noise.unsqueeze(1) * cdf[:, -1:]
        chosen = torch.searchsorted(cdf, target, right=True).squeeze(1)
        # Rounding may put the target on the total itself; the last token with any probability is taken then.
        last = (cdf < cdf[:, -1:]).sum(-1)
        return torch.minimum(chosen, last)
