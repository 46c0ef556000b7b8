"""How a recording is transcribed, with nothing asked for: transformers' way and every gate off."""

from __future__ import annotations

from tandem.workers.requests.speech import Speech
from tandem.workers.transcription.asked import Asked

FIRST_TIME, BEFORE = 101, 98
SPEECH = Speech(
    languages={"en": 92, "fr": 93}, tasks={"translate": 95, "transcribe": 96}, language=None, task=None,
    forced=(), no_timestamps_id=FIRST_TIME - 1, before_id=BEFORE,
)  # fmt: skip
ASKED = Asked(
    openai=False, speech=SPEECH, language=None, task=None, segments=True, prompt_ids=(), prompt_each=False,
    condition=False, temperatures=(0.0,), compression_ratio_threshold=None, logprob_threshold=None,
    no_speech_threshold=None, num_beams=1, length_penalty=None, best_of=1, top_k=50, max_tokens=None,
    max_initial_timestamp=None,
)  # fmt: skip
