"""Logits warpers: temperature, top-k, top-p, min-p and typical-p, which change the scores that tokens are
drawn from, on the device and for all rows at once. A batch in which no request asks for a warper does not pay
for it.

Meaning and order are those of transformers' warpers.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from tandem.workers.request import Decoding
from tandem.workers.sampling.slot_tables import Columns
from tandem.workers.sampling.to_device import to_device
from tandem.workers.scheduling.plan import Sequence


class Warpers:
    """Every slot's warper parameters."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self._floats = Columns(slots, ("temperature", "top_p", "min_p", "typical_p"), torch.float32, device)
        self._ints = Columns(slots, ("top_k", "keep"), torch.int64, device)
        self.temperature = self._floats["temperature"]  # float32 [slots]
        self._greedy = [False] * slots  # whether the slot holds the parameters of a greedy request

    def start(self, sequences: Seq[Sequence]) -> None:
        """Takes in the parameters of sequences that got slots."""
        # Only the temperature of a greedy request is read, so another greedy request's parameters may stay.
        sequences = [
            sequence
            for sequence in sequences
            if not sequence.request.decoding.greedy or not all(self._greedy[slot] for slot in sequence.slots)
        ]
        if not sequences:
            return
        floats, ints = [], []
        for sequence in sequences:
            d = sequence.request.decoding
            keep = _keep(d)
            top_k = max(d.top_k, keep) if d.top_k > 0 else self.vocab_size
            floats += [(d.temperature, d.top_p, d.min_p, d.typical_p)] * len(sequence.slots)
            ints += [(top_k, keep)] * len(sequence.slots)
            for slot in sequence.slots:
                self._greedy[slot] = d.greedy
        slots = to_device([slot for s in sequences for slot in s.slots], self.device)
        self._floats.put(slots, floats)
        self._ints.put(slots, ints)

    def __call__(self, scores: torch.Tensor, slots: torch.Tensor, decodings: Seq[Decoding]) -> torch.Tensor:
        """Warps scores, float32 [R, vocabulary], of rows in these slots, int64 [R]; returns the same shape.
        Rows of temperature 0 get arbitrary scores. decodings: what any of the rows' requests asks for."""
        temperature, keep = self.temperature[slots, None], self._ints["keep"][slots, None]
        scores = scores / torch.where(temperature > 0, temperature, 1.0)
        place = torch.arange(self.vocab_size, device=self.device)
        if any(d.top_k > 0 or d.top_p < 1 for d in decodings):
            ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
            probs = ordered.softmax(-1)
            drop = place >= self._ints["top_k"][slots, None]
            kept = probs.masked_fill(drop, 0)
            kept /= kept.sum(-1, keepdim=True)
            # A token is dropped where the likelier tokens alone make up top_p.
            top_p = self._floats["top_p"][slots, None]
            drop |= (kept.cumsum(-1) - kept >= top_p) & (top_p < 1)
            drop &= place >= keep
            scores = scores.scatter(1, ids, ordered.masked_fill(drop, -torch.inf))
        if any(d.min_p > 0 for d in decodings):
            probs = scores.softmax(-1)
            floor = probs.amax(-1, keepdim=True) * self._floats["min_p"][slots, None]
            most = min(max(_keep(d) for d in decodings), self.vocab_size)
            least = probs.topk(most, dim=-1).values.gather(1, keep.clamp(max=most) - 1)
            scores = scores.masked_fill((probs < floor) & (probs < least), -torch.inf)
        if any(d.typical_p < 1 for d in decodings):
            scores = self._typical(scores, self._floats["typical_p"][slots, None], place >= keep)
        return scores

    def _typical(self, scores: torch.Tensor, mass: torch.Tensor, may_drop: torch.Tensor) -> torch.Tensor:
        """Keeps the tokens whose surprise is nearest to the entropy, until they make up `mass` [R, 1]; 1
        keeps all (Meister et al., "Locally Typical Sampling", 2022)."""
        logprobs = scores.log_softmax(-1)
        entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
        surprise, ids = (-logprobs - entropy).abs().sort(dim=-1)
        likely = scores.gather(1, ids).softmax(-1).cumsum(-1) < mass
        last = likely.sum(-1, keepdim=True).clamp_(max=scores.shape[1] - 1)
        drop = (surprise > surprise.gather(1, last)) & (mass < 1) & may_drop
        return scores.masked_fill(drop.scatter(1, ids, drop), -torch.inf)


def _keep(decoding: Decoding) -> int:
    """How many tokens are always kept: for beams one for each way to end, and one to go on with."""
    return 1 if decoding.beams is None else max(2, 1 + len(decoding.stop_ids))
