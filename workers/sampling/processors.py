"""Logits processors: penalties, bans and forced tokens, which change the scores before a token is chosen, on
the device and for all rows at once. A batch in which no request asks for a processor does not pay for it.

Each follows transformers' `LogitsProcessor` of the same name, in transformers' order
(`GenerationMixin._get_logits_processor`). Presence and frequency penalty, which transformers lacks, are
vLLM's and come after the repetition penalty.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from functools import reduce
from itertools import chain
from operator import or_

import torch

from tandem import kernels
from tandem.kernels import TimeIds
from tandem.kernels.token_scores import banned
from tandem.workers.request import Decoding, EngineRequest
from tandem.workers.sampling.slot_tables import Columns, History, Lists
from tandem.workers.sampling.to_device import to_device
from tandem.workers.scheduling.plan import Sequence
from tandem.workers.scheduling.processor_flags import ProcessorFlags

_NO_ID = 2**31 - 1  # above every token's


class Processors:
    """Every slot's processor parameters and, where a processor reads them, its tokens."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self.history = History(slots, device)
        self._ints = Columns(
            slots,
            ("prefix", "ngram", "encoder_ngram", "encoder", "min_tokens", "max_tokens", "forced_bos",
             "begin", "opening", "time", "last_initial"),
            torch.int64,
            device,
        )  # fmt: skip
        self._floats = Columns(slots, ("repetition", "presence", "frequency"), torch.float32, device)
        self._bias_ids = Lists(slots, device, fill=0)
        self._bias = Lists(slots, device, dtype=torch.float32, fill=0)
        self._encoder = Lists(slots, device)
        self._stops = Lists(slots, device)
        self._forced_eos = Lists(slots, device)
        self._suppress = Lists(slots, device)
        self._begin_suppress = Lists(slots, device)
        self._opening_ids = Lists(slots, device)
        self._opening_steps = Lists(slots, device)  # at each id's place: the generated token that it may be
        self._time_ids: set[TimeIds] = set()  # `TimestampRules`' own; one model's are the same
        self._bad_words: dict[int, Lists] = {}  # by the words' length; a slot's words one after another
        self._longest_ngram = 0  # the longest of all requests so far
        # Each slot's `ProcessorFlags` as an integer, which is faster to combine; all before its first use.
        self._need = [~0] * slots

    def need_of(self, slots: Iterable[int]) -> ProcessorFlags:
        """What the sequences in these slots need together."""
        return ProcessorFlags(reduce(or_, map(self._need.__getitem__, slots), 0))

    def start(self, sequences: Seq[Sequence]) -> None:
        """Takes in the parameters of sequences that got slots."""
        # A request that needs no processor leaves its parameters unread, so a slot's neutral ones may stay.
        needs = {id(sequence): ProcessorFlags.of(sequence.request) for sequence in sequences}
        sequences = [
            sequence
            for sequence in sequences
            if needs[id(sequence)] or sequence.width > 1 or self._need[sequence.slots[0]]
        ]
        if not sequences:
            return
        ints, floats = [], []
        for sequence in sequences:
            ints += [_ints(sequence)] * len(sequence.slots)
            decoding = sequence.request.decoding
            penalties = (decoding.repetition_penalty, decoding.presence_penalty, decoding.frequency_penalty)
            floats += [penalties] * len(sequence.slots)
        slots = to_device([slot for s in sequences for slot in s.slots], self.device)
        self._ints.put(slots, ints)
        self._floats.put(slots, floats)
        for lists in (self._bias_ids, self._bias, self._encoder, self._stops, self._forced_eos,
                      self._suppress, self._begin_suppress, self._opening_ids, self._opening_steps,
                      *self._bad_words.values()):  # fmt: skip
            lists.clear(slots)
        for sequence in sequences:
            need = needs[id(sequence)]
            for slot in sequence.slots:
                self._need[slot] = need.value
            if need:
                self._start_lists(sequence, need)

    def _start_lists(self, sequence: Sequence, need: ProcessorFlags) -> None:
        decoding, slots = sequence.request.decoding, sequence.slots
        if ProcessorFlags.LOGIT_BIAS in need:
            ids, values = zip(*decoding.logit_bias, strict=True)
            self._bias_ids.put(slots, ids)
            self._bias.put(slots, values)
        if need & ProcessorFlags.HISTORY:
            self.keep_history(sequence)
        if (rules := decoding.timestamps) is not None:
            self._time_ids.add(TimeIds(rules.first_id, rules.text_end, rules.without_id))
        self._longest_ngram = max(
            self._longest_ngram, decoding.no_repeat_ngram_size, decoding.encoder_no_repeat_ngram_size
        )
        if ProcessorFlags.ENCODER_NGRAM in need:
            # An encoder may have a larger vocabulary of its own; the decoder cannot copy all of it.
            source = sequence.request.encoder.token_ids
            self._encoder.put(slots, [i if i < self.vocab_size else -1 for i in source])
        for length in {len(word) for word in decoding.bad_words}:
            words = [word for word in decoding.bad_words if len(word) == length]
            if length not in self._bad_words:
                self._bad_words[length] = Lists(len(self._need), self.device)
            self._bad_words[length].put(slots, list(chain.from_iterable(words)))
        for lists, values_ in (
            (self._stops, sorted(decoding.stop_ids) if ProcessorFlags.MIN_TOKENS in need else ()),
            (self._forced_eos, decoding.forced_eos_ids),
            (self._suppress, decoding.suppress_ids),
            (self._begin_suppress, decoding.begin_suppress_ids),
            (self._opening_ids, tuple(chain.from_iterable(decoding.opening_ids))),
            (self._opening_steps, [at for at, ids in enumerate(decoding.opening_ids) for _ in ids]),
        ):
            if values_:
                lists.put(slots, values_)

    def keep_history(self, sequence: Sequence) -> None:
        """Records the tokens of this sequence: those it has, and each that `append` gives."""
        request = sequence.request
        positions = len(request.prefix_ids) + request.decoding.max_tokens
        # What is only read cannot be generated again.
        tokens = [i if i < self.vocab_size else -1 for i in sequence.tokens]
        self.history.start(sequence.slots, tokens, positions)

    def append(self, slots: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> None:
        """Records one token for each of these slots, after its `steps` generated tokens. All int64 [N]."""
        self.history.append(slots, self._ints["prefix"][slots] + steps, tokens)

    def __call__(
        self, scores: torch.Tensor, slots: torch.Tensor, steps: torch.Tensor, need: ProcessorFlags
    ) -> torch.Tensor:
        """Processes logits or log-probabilities, float32 [R, vocabulary], and may overwrite them; returns the
        same shape.

        slots, steps: int64 [R], each row's slot and the tokens it has generated. need: what any of the rows
        needs; a row that does not need it stays as it is.
        """
        column = self._ints.of(slots) if need else {}
        column["step"] = steps[:, None]
        # What begins is chosen by the raw scores, after others have changed in place.
        raw = scores.clone() if ProcessorFlags.OPENING in need else scores
        if ProcessorFlags.LOGIT_BIAS in need:
            scores = scores.scatter_add(1, self._bias_ids[slots], self._bias[slots])
        if need & ProcessorFlags.ANY_HISTORY:
            scores = self._by_history(scores, slots, need, column)
        if ProcessorFlags.MIN_TOKENS in need:
            early = (column["step"] < column["min_tokens"]).squeeze(1)
            kernels.ban_tokens(scores, self._stops.table, torch.where(early, slots, -1))
        if ProcessorFlags.FORCED in need:
            only = column["forced_bos"]
            first = column["prefix"] + column["step"] == 1
            scores = self._forced(scores, only, first & (only >= 0))
            last = column["step"] == column["max_tokens"] - 1
            only = self._forced_eos[slots]
            scores = self._forced(scores, only, last & (only >= 0))
        if ProcessorFlags.SUPPRESS in need:
            kernels.ban_tokens(scores, self._suppress.table, slots)
            begins = (column["step"] == column["begin"]).squeeze(1)
            kernels.ban_tokens(scores, self._begin_suppress.table, torch.where(begins, slots, -1))
        if ProcessorFlags.TIMESTAMPS in need:
            self._apply_times(scores, slots, column)
        if ProcessorFlags.OPENING in need:
            opens = self._opening_steps[slots] == column["step"]
            scores = self._opened(raw, scores, self._opening_ids[slots], opens)
        return scores

    def _by_history(
        self, scores: torch.Tensor, slots: torch.Tensor, need: ProcessorFlags, column: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        history = self.history[slots]
        position = torch.arange(history.shape[1], device=self.device)
        lengths = column["prefix"] + column["step"]
        there = position < lengths
        if ProcessorFlags.REPETITION in need:
            penalty = self._floats["repetition"][slots, None]
            ids = torch.where(there, history, -1)
            any_id = ids.amax(1, keepdim=True)
            ids = torch.where(ids < 0, any_id, ids).clamp(min=0)
            seen = scores.gather(1, ids)
            penalized = torch.where(seen < 0, seen * penalty, seen / penalty)
            scores = scores.scatter(1, ids, torch.where(any_id < 0, seen, penalized))
        if ProcessorFlags.PRESENCE in need:
            generated = torch.where(there & (position >= column["prefix"]), history, self.vocab_size)
            counts = scores.new_zeros(len(slots), self.vocab_size + 1)
            counts = counts.scatter_add_(1, generated, counts.new_ones(1).expand_as(generated))[:, :-1]
            scores = scores - counts * self._floats["frequency"][slots, None]
            scores = scores - (counts > 0) * self._floats["presence"][slots, None]
        if ProcessorFlags.NGRAM in need:
            again = self._completes(history, lengths, history, lengths, column["ngram"])
            scores = self._without(scores, history, again)
        if ProcessorFlags.ENCODER_NGRAM in need:
            source = self._encoder[slots]
            again = self._completes(source, column["encoder"], history, lengths, column["encoder_ngram"])
            scores = self._without(scores, source, again)
        if ProcessorFlags.BAD_WORDS in need:
            for length, lists in self._bad_words.items():
                words = lists[slots].unflatten(1, (-1, length))
                # The sequence's last tokens; one shorter than a word's beginning does not begin the word.
                at = lengths - length + 1 + torch.arange(length - 1, device=self.device)
                end = torch.where(at >= 0, _at(history, at), -2)
                begun = (words[:, :, :-1] == end[:, None, :]).all(-1)
                scores = self._without(scores, words[:, :, -1], begun)
        return scores

    def _completes(
        self, source: torch.Tensor, source_lengths: torch.Tensor, history: torch.Tensor,
        lengths: torch.Tensor, sizes: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """bool [R, N]: the tokens of source [R, N] that complete an n-gram which history's end begins."""
        position = torch.arange(source.shape[1], device=self.device)
        complete = (
            (sizes > 0) & (position < source_lengths) & (position >= sizes - 1) & (lengths >= sizes - 1)
        )
        for back in range(1, self._longest_ngram):
            same = source.roll(back, 1) == _at(history, lengths - back)
            complete &= same | (back >= sizes)
        return complete

    def _apply_times(
        self, scores: torch.Tensor, slots: torch.Tensor, column: dict[str, torch.Tensor]
    ) -> None:
        """Applies `TimestampRules`, in place; rows without any stay as they are."""
        count = column["step"] - column["opening"]
        for ids in self._time_ids:
            begin = torch.where(column["time"] == ids.first, column["prefix"] + column["opening"], -1)
            kernels.apply_timestamp_rules(
                scores, self.history.table, slots, begin, count, column["last_initial"], ids
            )

    def _without(self, scores: torch.Tensor, ids: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Bans the tokens of `ids` [R, N], -1 being none, where `where` [R, N or 1] holds."""
        return scores.scatter_add(1, ids.clamp(min=0), banned((ids >= 0) & where))

    def _opened(
        self, raw: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor, where: torch.Tensor
    ) -> torch.Tensor:
        """Leaves a row only the likeliest, by its raw scores, of those `ids` [R, N] for which `where` [R, N]
        holds, if there is any."""
        own = raw.gather(1, ids.clamp(min=0)) + banned(~where)
        likeliest = ids.gather(1, own.argmax(1, keepdim=True))
        return self._forced(scores, likeliest, where.any(1, keepdim=True))

    def _forced(self, scores: torch.Tensor, ids: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Leaves a row only the tokens of `ids` [R, N] where `where` [R, N] holds, if it holds for any."""
        others = scores + banned(where.any(1, keepdim=True))
        return others.scatter_reduce(1, ids.clamp(min=0), torch.where(where, 0.0, -torch.inf), "amax")


def _at(history: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """history [R, T] at positions [R, N]; an arbitrary token where the position is outside, as for rows whose
    history is not kept."""
    return history.gather(1, positions.clamp(0, history.shape[1] - 1))


def _ints(sequence: Sequence) -> tuple[int, ...]:
    request: EngineRequest = sequence.request
    decoding: Decoding = request.decoding
    bos, rules = decoding.forced_bos_id, decoding.timestamps
    last_initial = None if rules is None else rules.last_initial_id
    return (
        len(request.prefix_ids),
        decoding.no_repeat_ngram_size,
        decoding.encoder_no_repeat_ngram_size,
        len(request.encoder.token_ids),
        decoding.min_tokens,
        decoding.max_tokens,
        -1 if bos is None else bos,
        len(decoding.opening_ids) + (bos is not None and len(request.prefix_ids) == 1),
        len(decoding.opening_ids),
        _NO_ID if rules is None else rules.first_id,
        _NO_ID if last_initial is None else last_initial,
    )
