"""Which logits processors a request asks for. Free of torch, unlike `sampling.processors`, because the
scheduler asks, too."""

from __future__ import annotations

from enum import Flag, auto

from tandem.workers.request import EngineRequest


class ProcessorFlags(Flag):
    """Kinds of logits processors."""

    NOTHING = 0
    LOGIT_BIAS = auto()
    REPETITION = auto()
    PRESENCE = auto()  # and frequency
    NGRAM = auto()
    ENCODER_NGRAM = auto()
    BAD_WORDS = auto()
    MIN_TOKENS = auto()
    FORCED = auto()
    SUPPRESS = auto()
    OPENING = auto()
    TIMESTAMPS = auto()
    # Those that read the tokens so far, of any kind and with times.
    ANY_HISTORY = REPETITION | PRESENCE | NGRAM | ENCODER_NGRAM | BAD_WORDS
    HISTORY = ANY_HISTORY | TIMESTAMPS

    @classmethod
    def of(cls, request: EngineRequest) -> ProcessorFlags:
        """Those that a request asks for."""
        decoding = request.decoding
        asked = {
            cls.LOGIT_BIAS: decoding.logit_bias,
            cls.REPETITION: decoding.repetition_penalty != 1,
            cls.PRESENCE: decoding.presence_penalty or decoding.frequency_penalty,
            cls.NGRAM: decoding.no_repeat_ngram_size,
            cls.ENCODER_NGRAM: decoding.encoder_no_repeat_ngram_size,
            cls.BAD_WORDS: decoding.bad_words,
            cls.MIN_TOKENS: decoding.min_tokens,
            cls.FORCED: decoding.forced_eos_ids or decoding.forced_bos_id is not None,
            cls.SUPPRESS: decoding.suppress_ids or decoding.begin_suppress_ids,
            cls.OPENING: decoding.opening_ids,
            cls.TIMESTAMPS: decoding.timestamps,
        }
        need = cls.NOTHING
        for flag, wanted in asked.items():
            if wanted:
                need |= flag
        return need
