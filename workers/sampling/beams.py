"""Beam search for many requests at once, on the device: from a step's logits to the beams that go on and the
answers that are finished. Rank 0 only.

The semantics are those of transformers 5.24 (`GenerationMixin._beam_search`) with a batch of one, operation
by operation: the processors see log-probabilities; the candidates are the W beams' best continuations, K =
max(2, 1 + number of stop ids) W of them; only the first W candidates may finish; the best W that do not end
go on. In beam sampling, where the temperature is above 0, the candidates are drawn without replacement, by
their beams' scores, and then sorted by score.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from tandem import kernels
from tandem.workers.request import BeamSearch
from tandem.workers.sampling.noise import gumbel
from tandem.workers.sampling.processors import Processors
from tandem.workers.sampling.slot_tables import Columns, Lists, widened
from tandem.workers.sampling.to_device import to_device
from tandem.workers.sampling.warpers import Warpers
from tandem.workers.scheduling.plan import Found, Row, Sequence

_NEVER = -1e9  # transformers' score of what must not be chosen


@dataclass(slots=True)
class _Group:
    """A request with W beams in this step."""

    number: int  # the request's index among the step's rows
    slots: list[int]  # one a beam
    logits: list[int]  # each beam's row; the first beam's for all where the prefix was just computed
    source: list[int]  # each of those rows' slot
    place: int  # the first beam's index among the step's beams
    step: int  # tokens generated before this step


@dataclass(slots=True)
class _Finished:
    """The answers of G requests, on the host or on their way there."""

    groups: list[_Group]
    done: torch.Tensor  # bool [G]: the search is over
    scores: torch.Tensor  # float32 [G, W], best first
    logprobs: torch.Tensor  # float32 [G, W]: see `Delta.sum_logprob`
    lengths: torch.Tensor  # int64 [G, W]
    tokens: torch.Tensor  # int64 [G, W, positions], each answer's prefix first


class BeamStep:
    """The outcome of one step of the requests with beams."""

    def __init__(self, rows: Seq[Row], beams: int, device: torch.device) -> None:
        self._rows = rows
        # int64 [beams], in the order of the rows: each beam's new token, the slot whose history it continues.
        self.tokens = torch.empty(beams, dtype=torch.int64, device=device)
        self.parents = torch.empty_like(self.tokens)
        self.finished: list[_Finished] = []

    def to_host(self) -> None:
        """Starts the copies; call `found` when they are done."""
        for part in self.finished:
            for name in ("done", "scores", "logprobs", "lengths", "tokens"):
                setattr(part, name, getattr(part, name).to("cpu", non_blocking=True))

    def found(self) -> list[Found | None]:
        """Each row's answers, best first; None where the search goes on."""
        found: list[Found | None] = [None] * len(self._rows)
        for part in self.finished:
            for at, group in enumerate(part.groups):
                if part.done[at]:
                    request = self._rows[group.number].sequence.request
                    decoding = request.decoding
                    assert decoding.beams is not None
                    prefix = len(request.prefix_ids)
                    answers = zip(
                        part.tokens[at].tolist(), part.lengths[at].tolist(), part.scores[at].tolist(),
                        part.logprobs[at].tolist(), strict=True,
                    )  # fmt: skip
                    found[group.number] = [
                        (tokens[prefix : prefix + length], score, logprob if decoding.sum_logprobs else None)
                        for tokens, length, score, logprob in answers
                    ][: decoding.beams.num_return_sequences]
        return found


class Beams:
    """The state of every slot's beam. A request's own state stands in its first slot."""

    def __init__(self, slots: int, processors: Processors, warpers: Warpers, device: torch.device) -> None:
        self.device = device
        self._processors, self._warpers = processors, warpers
        # norm: the log of what a beam's processed scores sum to, over its steps; logprob: an answer's sum.
        floats = ("running", "score", "penalty", "norm", "logprob")
        self._floats = Columns(slots, floats, torch.float32, device)
        columns = ("length", "max_tokens", "prefix", "seed", "opening")
        self._ints = Columns(slots, columns, torch.int64, device)
        # finished: the slot holds an answer; open: a running beam may still improve on the request's answers.
        flags = ("finished", "open", "early", "never", "renormalize")
        self._flags = Columns(slots, flags, torch.bool, device)
        self._stops = Lists(slots, device)
        self._answers = torch.zeros(slots, 0, dtype=torch.int64, device=device)

    def start(self, sequences: Seq[Sequence]) -> None:
        """Begins, or begins anew, the search of each sequence that has beams."""
        floats, ints, flags = [], [], []
        beams = [sequence for sequence in sequences if sequence.width > 1]
        if not beams:
            return
        for sequence in beams:
            request, how = sequence.request, sequence.request.decoding.beams
            assert how is not None
            self._processors.keep_history(sequence)
            for beam in range(sequence.width):
                # Before the first step all beams are the same one, so only the first may be continued.
                floats.append((0.0 if beam == 0 else _NEVER, _NEVER, how.length_penalty, 0.0, 0.0))
                decoding, prefix = request.decoding, len(request.prefix_ids)
                ints.append((0, decoding.max_tokens, prefix, decoding.seed, len(decoding.opening_ids)))
                flags.append((False, True, *_flags(how)))
        numbers = [slot for sequence in beams for slot in sequence.slots]
        slots = to_device(numbers, self.device)
        self._floats.put(slots, floats)
        self._ints.put(slots, ints)
        self._flags.put(slots, flags)
        self._stops.clear(slots)
        for sequence in beams:
            self._stops.put(sequence.slots, sorted(sequence.request.decoding.stop_ids))

    def step(self, logits: torch.Tensor, rows: Seq[Row]) -> BeamStep:
        """Continues the searches of these rows. logits: float32 [sum of the rows' widths, vocabulary]."""
        numbers = [slot for row in rows for slot in row.sequence.slots[: row.width]]
        behind = [row.steps.start for row in rows for _ in range(row.width)]
        slots, steps = to_device([numbers, behind], self.device)
        need = self._processors.need_of(numbers)
        scores = self._processors(logits.log_softmax(-1), slots, steps, need)
        decodings = [row.sequence.request.decoding for row in rows]
        if not all(decoding.greedy for decoding in decodings):
            warped = self._warpers.temperature[slots, None] > 0
            scores = torch.where(warped, self._warpers(scores, slots, decodings), scores)
        if any(_how(row).renormalize for row in rows):
            again = self._flags["renormalize"][slots, None]
            scores = torch.where(again, scores.log_softmax(-1), scores)
        norms = torch.zeros_like(scores[:, 0])
        if any(decoding.sum_logprobs for decoding in decodings):
            norms = kernels.logsumexp(scores).squeeze(1)

        alike: defaultdict[tuple[int, int, bool], list[_Group]] = defaultdict(list)
        at = place = longest = 0
        for number, row in enumerate(rows):
            own, width = row.sequence.slots, row.sequence.width
            first = row.width == 1
            here = [at] * width if first else list(range(at, at + width))
            source = [own[0]] * width if first else own
            group = _Group(number, own, here, source, place, row.steps.start)
            candidates = max(2, 1 + len(decodings[number].stop_ids)) * width
            alike[width, candidates, not decodings[number].greedy].append(group)
            at, place = at + row.width, place + width
            longest = max(longest, row.start + row.count + 1)
        step = BeamStep(rows, place, self.device)
        # The history may have grown for any slot.
        self._answers = widened(self._answers, self._processors.history.width, 0)
        for (width, candidates, drawn), groups in alike.items():
            self._advance(scores, norms, groups, width, candidates, longest, step, drawn=drawn)
        step.to_host()
        return step

    def _advance(
        self, scores: torch.Tensor, norms: torch.Tensor, groups: list[_Group], width: int, candidates: int,
        longest: int, step: BeamStep, *, drawn: bool,
    ) -> None:  # fmt: skip
        """One step of G requests with W beams and K candidates each, drawn ones or the best.

        norms: the log of what each row of `scores` sums to, where that is asked for.
        """
        numbers = [
            (g.slots, g.logits, g.source, range(g.place, g.place + width), [g.step] * width) for g in groups
        ]
        slots, at, source, places, steps = to_device(
            [[list(part) for part in one] for one in numbers], self.device
        ).unbind(1)
        first = slots[:, 0]

        def of_request(column: torch.Tensor) -> torch.Tensor:
            return column[first].unsqueeze(1)

        length = steps[:, :1] + 1  # generated tokens, this step's included
        max_tokens, penalty = of_request(self._ints["max_tokens"]), of_request(self._floats["penalty"])
        early, is_open = of_request(self._flags["early"]), of_request(self._flags["open"])

        total = scores[at] + self._floats["running"][slots].unsqueeze(2)
        key = total
        if drawn:
            noise = gumbel(self._ints["seed"][first], steps[:, 0], total[0].numel())
            key = total + noise.view_as(total)
        keys, ids = key.topk(min(candidates, total.shape[2]), dim=2)
        best = keys.flatten(1).topk(candidates, dim=1).indices
        top = total.gather(2, ids).flatten(1).gather(1, best)
        if drawn:
            top, order = top.sort(dim=1, descending=True, stable=True)
            best = best.gather(1, order)
        beam = best // ids.shape[2]
        token = ids.flatten(1).gather(1, best)
        parent = source.gather(1, beam)
        norm = self._floats["norm"][parent] + norms[at].gather(1, beam)
        stops = self._stops[first]
        ended = (token.unsqueeze(2) == stops.unsqueeze(1)).any(2) | (length >= max_tokens)

        # Answers: the W best of the previous answers and of the first W candidates, where these end.
        finishes = ended & (torch.arange(candidates, device=self.device) < width)
        was_finished = self._flags["finished"][slots]
        closed = (was_finished.all(1, keepdim=True) & early).float() + (~is_open).float()
        opening = of_request(self._ints["opening"])
        counted = (length - opening).clamp(min=1).double()
        score = top / counted.pow(penalty.double()).float()
        score = score + closed * _NEVER + (~finishes).float() * _NEVER
        score, kept = torch.cat([self._floats["score"][slots], score], 1).topk(width, dim=1)
        new = kept >= width
        from_new = (kept - width).clamp(min=0)
        finished = torch.cat([was_finished, finishes], 1).gather(1, kept)
        before = slots.gather(1, kept.clamp(max=width - 1))
        lengths = torch.where(new, length, self._ints["length"][before])
        logprobs = torch.where(new, (top - norm).gather(1, from_new), self._floats["logprob"][before])
        answers = torch.where(
            new.unsqueeze(2),
            self._processors.history[parent.gather(1, from_new)],
            self._answers[before, : self._processors.history.width],
        )
        end = (of_request(self._ints["prefix"]) + length - 1).expand_as(kept).unsqueeze(2)
        last = torch.where(new, token.gather(1, from_new), answers.gather(2, end).squeeze(2))
        answers.scatter_(2, end, last.unsqueeze(2))

        # Running beams: the W best candidates that do not end.
        running, pick = (top + ended.float() * _NEVER).topk(width, dim=1)
        tokens, parents = token.gather(1, pick), parent.gather(1, pick)

        longest_counted = (max_tokens - opening).clamp(min=1).double()
        best_length = torch.where(of_request(self._flags["never"]) & (penalty > 0), longest_counted, counted)
        possible = running[:, :1] / best_length.pow(penalty.double()).float()
        worst = torch.where(finished, score.amin(1, keepdim=True), _NEVER)
        is_open = is_open & (possible > worst).any(1, keepdim=True)
        done = ~is_open | (finished.all(1, keepdim=True) & early) | ended.all(1, keepdim=True)

        self._floats["running"][slots] = running
        self._floats["norm"][slots] = norm.gather(1, pick)
        self._floats["score"][slots] = score
        self._floats["logprob"][slots] = logprobs
        self._ints["length"][slots] = lengths
        self._flags["finished"][slots] = finished
        self._flags["open"][first] = is_open.squeeze(1)
        self._answers[slots, : answers.shape[2]] = answers
        self._processors.history[slots] = self._processors.history[parents]
        self._processors.append(slots.flatten(), steps.flatten(), tokens.flatten())
        step.tokens[places] = tokens
        step.parents[places] = parents
        found = _Finished(groups, done.squeeze(1), score, logprobs, lengths, answers[:, :, :longest])
        step.finished.append(found)


def _how(row: Row) -> BeamSearch:
    how = row.sequence.request.decoding.beams
    assert how is not None
    return how


def _flags(how: BeamSearch) -> tuple[bool, bool, bool]:
    return how.early_stopping is True, how.early_stopping == "never", how.renormalize
