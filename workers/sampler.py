"""Logits to tokens, on the device and for all rows at once. Rank 0 only.

Noise comes from a counter, not from a generator's state: it is a hash of (seed, tokens generated so
far), so a sequence's samples depend neither on its batch nor on having been preempted or moved.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from tandem.outputs import TokenLogprobs
from tandem.workers.request import Decoding
from tandem.workers.step_plan import Sequence


class Sampled:
    """The tokens of one step, perhaps still being computed. The copy to the host starts at once and
    waits for nothing that is launched later."""

    def __init__(
        self,
        tokens: torch.Tensor,  # int64 [rows]
        wants_logprobs: list[int | None],  # alternatives asked for, by row
        logprobs: torch.Tensor | None = None,  # float32 [rows, 1 + k]: the token's, then the k likeliest
        top_ids: torch.Tensor | None = None,  # int64 [rows, k]
    ) -> None:
        self.tokens, self._wants = tokens, wants_logprobs
        parts = (tokens, logprobs, top_ids)
        self._host = [None if part is None else part.to("cpu", non_blocking=True) for part in parts]
        self._copied = torch.cuda.Event() if tokens.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> tuple[list[int], list[TokenLogprobs | None] | None]:
        """The tokens, and their logprobs where any row asked for them."""
        if self._copied is not None:
            self._copied.synchronize()
        host_tokens, logprobs, top_ids = self._host
        assert host_tokens is not None
        tokens: list[int] = host_tokens.tolist()
        if logprobs is None or top_ids is None:
            return tokens, None
        entries: list[TokenLogprobs | None] = []
        for token, k, values, ids in zip(
            tokens, self._wants, logprobs.tolist(), top_ids.tolist(), strict=True
        ):
            entries.append(
                None
                if k is None
                else TokenLogprobs(token, values[0], list(zip(ids[:k], values[1 : k + 1], strict=True)))
            )
        return tokens, entries


class Sampler:
    """The decoding parameters of every slot, on the device."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device

        def column(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(slots, dtype=dtype, device=device)

        self._temperature = column(torch.float32)
        self._top_k = column(torch.int64)
        self._top_p = column(torch.float32)
        self._min_p = column(torch.float32)
        self._penalty = column(torch.float32)
        self._seed = column(torch.int64)
        self._step = column(torch.int64)  # tokens generated so far
        self._min_tokens = column(torch.int64)
        # [slots, vocabulary]; made when the first request needs them.
        self._seen: torch.Tensor | None = None  # tokens in the decoder's prefix or output
        self._stops: torch.Tensor | None = None  # tokens that end the sequence

    @torch.inference_mode()
    def start(self, sequences: Seq[Sequence]) -> None:
        """Takes in the parameters of sequences that got a slot."""
        if not sequences:
            return
        slots = torch.tensor([s.slot for s in sequences], device=self.device)
        decodings = [s.request.decoding for s in sequences]

        def put(column: torch.Tensor, values: list[float] | list[int]) -> None:
            column[slots] = torch.tensor(values, dtype=column.dtype, device=self.device)

        put(self._temperature, [d.temperature for d in decodings])
        put(self._top_k, [d.top_k if d.top_k > 0 else self.vocab_size for d in decodings])
        put(self._top_p, [d.top_p for d in decodings])
        put(self._min_p, [d.min_p for d in decodings])
        put(self._penalty, [d.repetition_penalty for d in decodings])
        put(self._seed, [d.seed for d in decodings])
        put(self._step, [s.generated for s in sequences])
        put(self._min_tokens, [d.min_tokens for d in decodings])
        for sequence in sequences:
            decoding = sequence.request.decoding
            if decoding.repetition_penalty != 1:
                self._seen = self._mark(self._seen, sequence.slot, sequence.tokens)
            if decoding.min_tokens > 0:
                self._stops = self._mark(self._stops, sequence.slot, sorted(decoding.stop_ids))

    def _mark(self, table: torch.Tensor | None, slot: int, ids: list[int]) -> torch.Tensor:
        if table is None:
            shape = (len(self._seed), self.vocab_size)
            table = torch.zeros(shape, dtype=torch.bool, device=self.device)
        table[slot] = False
        table[slot, torch.tensor(ids, dtype=torch.int64, device=self.device)] = True
        return table

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> Sampled:
        """The next token of each sequence. logits float32 [rows, vocabulary], consumed.

        In transformers' order: repetition penalty, minimum length, temperature, top-k, top-p, min-p.
        """
        decodings = [s.request.decoding for s in sequences]
        slots = torch.tensor([s.slot for s in sequences], device=self.device)
        wants = [d.logprobs for d in decodings]
        raw = logits.log_softmax(-1) if any(k is not None for k in wants) else None
        penalized = any(d.repetition_penalty != 1 for d in decodings)
        if penalized:
            assert self._seen is not None
            penalty = self._penalty[slots, None]
            changed = torch.where(logits < 0, logits * penalty, logits / penalty)
            logits = torch.where(self._seen[slots] & (penalty != 1), changed, logits)
        if any(d.min_tokens > 0 for d in decodings):
            assert self._stops is not None
            early = (self._step[slots] < self._min_tokens[slots]).unsqueeze(1)
            logits = logits.masked_fill(self._stops[slots] & early, -torch.inf)
        tokens = logits.argmax(-1)
        if any(d.temperature > 0 for d in decodings):
            temperature = self._temperature[slots]
            tokens = torch.where(temperature > 0, self._draw(logits, slots, decodings), tokens)
        self._step[slots] += 1
        if penalized:
            assert self._seen is not None
            self._seen[slots, tokens] = True
        if raw is None:
            return Sampled(tokens, wants)
        top, top_ids = raw.topk(max(k or 0 for k in wants), dim=-1)
        own = raw.gather(1, tokens.unsqueeze(1))
        return Sampled(tokens, wants, torch.cat([own, top], dim=1), top_ids)

    def _draw(self, logits: torch.Tensor, slots: torch.Tensor, decodings: list[Decoding]) -> torch.Tensor:
        temperature = self._temperature[slots, None]
        # Less the maximum, a small temperature overflows to -inf, which is no probability, not to NaN.
        logits = logits - logits.amax(-1, keepdim=True)
        logits = logits / torch.where(temperature > 0, temperature, 1.0)
        if any(d.top_k > 0 or d.top_p < 1 for d in decodings):
            ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
            probs = ordered.softmax(-1)
            drop = torch.arange(self.vocab_size, device=self.device) >= self._top_k[slots, None]
            kept = probs.masked_fill(drop, 0)
            kept /= kept.sum(-1, keepdim=True)
            # Dropped where the likelier tokens alone make up top_p; the likeliest always stays.
            top_p = self._top_p[slots, None]
            drop |= (kept.cumsum(-1) - kept >= top_p) & (top_p < 1)
            drop[:, 0] = False
            logits = logits.scatter(1, ids, ordered.masked_fill(drop, -torch.inf))
        probs = logits.softmax(-1)
        if any(d.min_p > 0 for d in decodings):
            floor = probs.amax(-1, keepdim=True) * self._min_p[slots, None]
            probs = probs.masked_fill(probs < floor, 0)
        # Inverse CDF in float64, over the vocabulary's own order.
        cdf = probs.double().cumsum(-1)
        target = uniform(self._seed[slots], self._step[slots]).unsqueeze(1) * cdf[:, -1:]
        chosen = torch.searchsorted(cdf, target, right=True).squeeze(1)
        # Rounding may put the target on the total itself: then the last token with any probability.
        last = (cdf < cdf[:, -1:]).sum(-1)
        return torch.minimum(chosen, last)


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
