"""A window of a recording → the engine requests that decode it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

from tandem.errors import InvalidRequest
from tandem.params import BeamSearchParams, Params, SamplingParams
from tandem.workers.request import Alignment, Decoding, EncoderInput, EngineRequest, TimestampRules
from tandem.workers.requests.media.spectrogram import Spectrogram
from tandem.workers.requests.model_info import ModelInfo
from tandem.workers.requests.parameters.decoding import DEFAULT_MAX_TOKENS, decoding_of
from tandem.workers.requests.speech import Opening
from tandem.workers.transcription.asked import Asked


class Start(NamedTuple):
    """What a window's decoder starts from."""

    before: list[int]  # ids before the start token
    opening: Opening
    timestamps: bool  # times are to be generated
    # Text that the window begins with, which the answer goes on from. Only after an opening that is known.
    said: tuple[int, ...] = ()


class WindowRequests:
    """Makes the requests of one recording's windows, for one model."""

    def __init__(
        self, asked: Asked, info: ModelInfo, positions: int, recording_key: str,
        next_id: Callable[[], str],
    ) -> None:  # fmt: skip
        """positions: that the decoder has. recording_key: a hash of the recording and of how it is made
        features. next_id: a request's id that no other has."""
        assert info.front is not None
        assert info.decoder_start_id is not None
        self._asked, self._info, self._front = asked, info, info.front
        self._positions = positions
        self._recording_key, self._next_id = recording_key, next_id
        self.frames = self._front.features[1]  # in a window
        self.start_id = info.decoder_start_id
        self.positions = self._front.positions  # in a window's encoder input
        self.eos_ids, self.vocab_size = info.eos_ids, info.vocab_size
        self.text_end = min(info.eos_ids)  # text has ids below
        held = info.decoder_positions or positions
        self.most_before = held // 2 - 1  # ids of history
        self._sample_length = held // 2
        self._max_length = info.defaults.max_length

    def encoder_input(self, recording: Spectrogram, start: int, stop: int) -> EncoderInput:
        digest = hashlib.blake2b(self._recording_key.encode(), digest_size=16)
        digest.update(f"\0{start}\0{stop}".encode())
        fill = 0.0 if self._asked.vad is None else recording.silence
        return EncoderInput(
            digest.hexdigest(),
            (self._front.placeholder_id,) * self._front.positions,
            features=recording.window(start, stop, self.frames, fill),
        )

    def max_tokens(self, start: int) -> int:
        """Tokens that the next window may have after `start` of them; to be called once a window.

        transformers' `max_length` grows with every window by what its decoder starts from, as it does in
        `_set_max_new_tokens_and_length`, up to what the decoder holds.
        """
        room, own = self._positions - start, self._info.defaults
        if room < 1:
            raise InvalidRequest(
                f"the decoder has {self._positions} positions, a window starts from {start} tokens",
                field="max_decoder_length",
            )
        if self._max_length is not None and own.max_new_tokens is None:
            self._max_length = min(self._max_length + min(self.most_before, start), self._positions)
        if self._asked.openai and self._asked.alignment_heads:
            room -= 2  # they are read again after another start, with EOS, before words are timed
        if self._asked.max_tokens is not None:
            return min(self._asked.max_tokens, room)
        if self._asked.openai:
            return min(self._sample_length, room)
        if own.max_new_tokens is None and self._max_length is not None:
            return max(1, self._max_length - start)
        return min(own.max_new_tokens or DEFAULT_MAX_TOKENS, room)

    def detection(self, encoder: EncoderInput, opening: Opening) -> EngineRequest:
        """Its one token is the language."""
        languages = next(ids for ids in opening if len(ids) > 1)
        decoding = self._decoding(SamplingParams(temperature=0, max_tokens=1), 1)
        decoding = replace(decoding, opening_ids=(languages,))
        return self._request(encoder, [self.start_id], decoding)

    def requests(
        self, encoder: EncoderInput, start: Start, temperature: float, most: int, seeds: Sequence[int]
    ) -> list[EngineRequest]:
        """One for each of the seeds. most: tokens to generate, without what of the opening is generated."""
        known = list(takewhile(lambda ids: len(ids) == 1, start.opening))
        prefix = [*start.before, self.start_id, *(ids[0] for ids in known), *start.said]
        rest = start.opening[len(known) :]
        decoding = self._decoding(self._params(temperature, most), len(prefix))
        speech = self._asked.speech
        rules = probe = None
        if speech.no_timestamps_id is not None:
            # The id before it says that nobody speaks.
            probe = len(start.before), speech.no_timestamps_id - 1
        if start.timestamps and speech.no_timestamps_id is not None:
            last = self._asked.max_initial_timestamp
            rules = TimestampRules(
                first_id=speech.first_time_id,
                text_end=self.text_end,
                without_id=speech.no_timestamps_id,
                last_initial_id=None if last is None else speech.first_time_id + last,
            )
        if start.said:  # what is generated first is not the window's first
            decoding = replace(decoding, begin_suppress_ids=())
        decoding = replace(
            decoding,
            timestamps=rules,
            opening_ids=rest,
            max_tokens=most + len(rest),
            sum_logprobs=True,
            logprobs=0 if self._asked.logprobs else None,
            probe=probe,
        )
        return [self._request(encoder, prefix, replace(decoding, seed=seed)) for seed in seeds]

    def alignment(
        self, encoder: EncoderInput, prefix: Sequence[int], ids: Sequence[int], how: Alignment
    ) -> EngineRequest:
        """Reads these ids after a prefix, and tells where each position attends to and how likely each id is
        among those of text."""
        decoding = self._decoding(SamplingParams(temperature=0, max_tokens=len(ids)), len(prefix))
        decoding = replace(decoding, alignment=how, score_below=self.text_end, logprobs=0)
        return replace(self._request(encoder, prefix, decoding), target_ids=tuple(ids))

    def _params(self, temperature: float, most: int) -> Params:
        asked = self._asked
        if temperature > 0:
            return SamplingParams(temperature=temperature, top_k=asked.top_k, max_tokens=most)
        if asked.num_beams is not None and asked.num_beams > 1:
            return BeamSearchParams(
                num_beams=asked.num_beams,
                length_penalty=asked.length_penalty,
                max_tokens=most,
                temperature=0,
            )
        return SamplingParams(temperature=0, max_tokens=most)

    def _decoding(self, params: Params, start: int) -> Decoding:
        room = self._positions - start
        decoding = decoding_of(params, self._info.defaults, range(start), room, self._info, lambda *_: [])
        # An encoder of media has no tokens to repeat.
        return replace(decoding, encoder_no_repeat_ngram_size=0)

    def _request(self, encoder: EncoderInput, prefix: Sequence[int], decoding: Decoding) -> EngineRequest:
        return EngineRequest(self._next_id(), encoder, tuple(prefix), decoding, keeps_input=True)
