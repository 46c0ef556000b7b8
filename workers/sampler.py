"""Logits to tokens, on the device and for all rows at once. Rank 0 only.

Noise comes from a counter, not from a generator's state: it is a hash of (seed, tokens generated so
far), so a sequence's samples depend neither on its batch nor on having been preempted or moved.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from tandem.outputs import TokenLogprobs
from tandem.workers.beams import Beams, BeamStep
from tandem.workers.model import TargetScores
from tandem.workers.processors import Need, Processors
from tandem.workers.request import Decoding
from tandem.workers.slot_tables import Columns
from tandem.workers.step_plan import Row, Sequence, StepResult


class HostCopy:
    """Tensors on their way to the host, perhaps still being computed. The copy starts at once and waits for
    nothing that is launched later."""

    def __init__(self, *parts: torch.Tensor) -> None:
        self._parts = [part.to("cpu", non_blocking=True) for part in parts]
        self._copied = torch.cuda.Event() if parts[0].is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> list[torch.Tensor]:
        if self._copied is not None:
            self._copied.synchronize()
        return self._parts


class Scored:
    """The scores of a step's targets."""

    def __init__(self, rows: Seq[Row], scores: TargetScores) -> None:
        self._rows = rows
        self._host = HostCopy(*(part for part in scores if part is not None))

    def wait(self) -> list[TokenLogprobs]:
        logprobs, *others = (part.tolist() for part in self._host.wait())
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
        tokens: torch.Tensor,  # int64 [rows without beams]
        wants_logprobs: list[int | None],  # alternatives asked for, by row
        logprobs: torch.Tensor | None = None,  # float32 [rows, 1 + k]: the token's, then the k likeliest
        top_ids: torch.Tensor | None = None,  # int64 [rows, k]
        beams: BeamStep | None = None,
    ) -> None:
        # What every rank has to know, int64: tokens, the beams' tokens, the slots of the beams' parents.
        self.choice = tokens if beams is None else torch.cat([tokens, beams.tokens, beams.parents])
        self._wants, self._beams = wants_logprobs, beams
        self._host = HostCopy(*(part for part in (tokens, logprobs, top_ids) if part is not None))

    def wait(self) -> StepResult:
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
        self._beams = Beams(slots, self._processors, device)
        self._floats = Columns(slots, ("temperature", "top_p", "min_p", "typical_p"), torch.float32, device)
        self._ints = Columns(slots, ("top_k", "seed"), torch.int64, device)

    @torch.inference_mode()
    def start(self, sequences: Seq[Sequence]) -> None:
        """Takes in the parameters of sequences that got slots."""
        if not sequences:
            return
        self._processors.start(sequences)
        self._beams.start(sequences)
        floats, ints, numbers = [], [], []
        for sequence in sequences:
            if sequence.width == 1:
                d = sequence.request.decoding
                numbers.append(sequence.slots[0])
                floats.append((d.temperature, d.top_p, d.min_p, d.typical_p))
                ints.append((d.top_k if d.top_k > 0 else self.vocab_size, d.seed))
        if numbers:
            slots = torch.tensor(numbers, device=self.device)
            self._floats.put(slots, floats)
            self._ints.put(slots, ints)

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, rows: Seq[Row]) -> Sampled:
        """What follows in each of these rows. logits float32 [rows, vocabulary], consumed; of a row of beams
        there is one for each.

        In transformers' order: the processors, then temperature, top-k, top-p, min-p, typical-p.
        """
        beams = [row for row in rows if row.sequence.width > 1]
        if not beams:
            return self._sample(logits, [row.sequence for row in rows], None)
        of_beams = [row.sequence.width > 1 for row in rows for _ in range(row.width)]
        if all(of_beams):
            step = self._beams.step(logits, beams)
            return Sampled(step.tokens[:0], [], None, None, step)
        mask = torch.tensor(of_beams)
        at = mask.nonzero().squeeze(1).to(self.device), (~mask).nonzero().squeeze(1).to(self.device)
        step = self._beams.step(logits[at[0]], beams)
        return self._sample(logits[at[1]], [row.sequence for row in rows if row.sequence.width == 1], step)

    def _sample(self, logits: torch.Tensor, sequences: Seq[Sequence], beams: BeamStep | None) -> Sampled:
        decodings = [s.request.decoding for s in sequences]
        numbers = [s.slots[0] for s in sequences]
        slots = torch.tensor(numbers, device=self.device)
        wants = [d.logprobs for d in decodings]
        raw = logits.log_softmax(-1) if any(k is not None for k in wants) else None
        need = self._processors.need_of(numbers)
        logits = self._processors(logits, slots, need)
        tokens = logits.argmax(-1)
        if any(d.temperature > 0 for d in decodings):
            drawn = self._draw(logits, slots, decodings)
            tokens = torch.where(self._floats["temperature"][slots] > 0, drawn, tokens)
        self._processors.append(slots, tokens, history=bool(need & Need.HISTORY))
        if raw is None:
            return Sampled(tokens, wants, beams=beams)
        top, top_ids = raw.topk(max(k or 0 for k in wants), dim=-1)
        own = raw.gather(1, tokens.unsqueeze(1))
        return Sampled(tokens, wants, torch.cat([own, top], dim=1), top_ids, beams)

    def _draw(self, logits: torch.Tensor, slots: torch.Tensor, decodings: list[Decoding]) -> torch.Tensor:
        temperature = self._floats["temperature"][slots, None]
        # Less the maximum, a small temperature overflows to -inf, which is no probability, not to NaN.
        logits = logits - logits.amax(-1, keepdim=True)
        logits = logits / torch.where(temperature > 0, temperature, 1.0)
        if any(d.top_k > 0 or d.top_p < 1 for d in decodings):
            ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
            probs = ordered.softmax(-1)
            drop = torch.arange(self.vocab_size, device=self.device) >= self._ints["top_k"][slots, None]
            kept = probs.masked_fill(drop, 0)
            kept /= kept.sum(-1, keepdim=True)
            # Dropped where the likelier tokens alone make up top_p; the likeliest always stays.
            top_p = self._floats["top_p"][slots, None]
            drop |= (kept.cumsum(-1) - kept >= top_p) & (top_p < 1)
            drop[:, 0] = False
            logits = logits.scatter(1, ids, ordered.masked_fill(drop, -torch.inf))
        if any(d.min_p > 0 for d in decodings):
            probs = logits.softmax(-1)
            floor = probs.amax(-1, keepdim=True) * self._floats["min_p"][slots, None]
            logits = logits.masked_fill(probs < floor, -torch.inf)
        if any(d.typical_p < 1 for d in decodings):
            logits = _typical(logits, self._floats["typical_p"][slots, None])
        probs = logits.softmax(-1)
        # Inverse CDF in float64, over the vocabulary's own order.
        cdf = probs.double().cumsum(-1)
        noise = uniform(self._ints["seed"][slots], self._processors.step[slots])
        target = noise.unsqueeze(1) * cdf[:, -1:]
        chosen = torch.searchsorted(cdf, target, right=True).squeeze(1)
        # Rounding may put the target on the total itself: then the last token with any probability.
        last = (cdf < cdf[:, -1:]).sum(-1)
        return torch.minimum(chosen, last)


def _typical(logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Keeps the tokens whose surprise is nearest the entropy, until they make up `mass` [R, 1]; 1 keeps all
    (Meister et al., "Locally Typical Sampling", 2022)."""
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
    surprise, ids = (-logprobs - entropy).abs().sort(dim=-1)
    likely = logits.gather(1, ids).softmax(-1).cumsum(-1) < mass
    last = likely.sum(-1, keepdim=True).clamp_(max=logits.shape[1] - 1)
    drop = (surprise > surprise.gather(1, last)) & (mass < 1)
    drop[:, 0] = False
    return logits.masked_fill(drop.scatter(1, ids, drop), -torch.inf)


def uniform(seed: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Counter-based noise: float64 in [0, 1), a SplitMix64 hash of (seed, step), both int64 [N].

    SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    x = _mix(seed) + (step + 1) * _GOLDEN
    return _shift(_mix(x), 11).double() * 2.0**-53


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as a signed 64-bit integer


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
