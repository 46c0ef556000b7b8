"""How one recording is transcribed, with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from tandem.errors import InvalidRequest, renaming_fields
from tandem.transcription import ServerVad, TranscriptionParams
from tandem.workers.requests.model_info import ModelInfo
from tandem.workers.requests.speech import Heads, Opening, Speech

T = TypeVar("T")

# openai-whisper's defaults.
_COMPRESSION, _LOGPROB, _NO_SPEECH, _BEST_OF = 2.4, -1.0, 0.6, 5
_MAX_INITIAL: Final = 50  # steps of a time, which are a second
_ENGLISH: Final = ("en", "english", "English")
_NO_ID: Final = 2**31
_TOP_K: Final = 50  # transformers' default where it draws


@dataclass(frozen=True)
class Asked:
    """`TranscriptionParams` for one model."""

    openai: bool  # whose semantics
    speech: Speech
    language: str | None
    task: str | None
    segments: bool  # the answer has them
    prompt_ids: tuple[int, ...]  # its text's
    prompt_each: bool  # it comes before every window
    condition: bool  # on what earlier windows said
    temperatures: tuple[float, ...]
    compression_ratio_threshold: float | None
    logprob_threshold: float | None
    no_speech_threshold: float | None
    num_beams: int | None
    length_penalty: float | None
    best_of: int
    top_k: int | None  # where a token is drawn; None: the model's own
    max_tokens: int | None
    max_initial_timestamp: int | None
    vad: ServerVad | None = None  # how the recording is cut into chunks; None: it is not
    logprobs: bool = False  # segments have those of their tokens
    alignment_heads: Heads = ()  # those that words are timed by; none: no words are asked for

    @classmethod
    def of(cls, params: TranscriptionParams, info: ModelInfo, prompt_ids: tuple[int, ...]) -> Asked:
        """Raises InvalidRequest, naming the field, for what the model cannot do."""
        speech, openai, chunked = info.speech, params.semantics == "openai", params.vad is not None
        if speech is None:
            raise InvalidRequest(f"{info.name!r} is no speech model", field="model")
        if chunked and params.condition_on_prev_tokens:
            raise InvalidRequest(
                "does not go with chunking_strategy, whose chunks are independent of each other",
                field="condition_on_prev_tokens",
            )
        compression, logprob = speech.compression_ratio_threshold, speech.logprob_threshold
        no_speech, condition, best_of = speech.no_speech_threshold, speech.condition_on_prev_tokens, 1
        top_k, max_initial = info.defaults.top_k or _TOP_K, speech.max_initial_timestamp
        if openai:
            compression, logprob, no_speech = _COMPRESSION, _LOGPROB, _NO_SPEECH
            condition, best_of, top_k, max_initial = True, _BEST_OF, 0, _MAX_INITIAL
        # openai-whisper's English-only models may be told what they do anyway.
        english_only = openai and not speech.languages
        asked = cls(
            openai=openai,
            speech=speech,
            language=None if english_only and params.language in _ENGLISH else params.language,
            task=None if english_only and params.task == "transcribe" else params.task,
            segments=params.timestamps is not None,
            prompt_ids=prompt_ids,
            prompt_each=params.prompt_condition_type == "all-segments",
            condition=not chunked and _given(params.condition_on_prev_tokens, condition),
            temperatures=params.temperatures,
            compression_ratio_threshold=_given(params.compression_ratio_threshold, compression),
            logprob_threshold=_given(params.logprob_threshold, logprob),
            no_speech_threshold=_given(params.no_speech_threshold, no_speech),
            num_beams=_given(params.num_beams, 1 if openai else info.defaults.num_beams),
            length_penalty=params.length_penalty,
            best_of=_given(params.best_of, best_of),
            top_k=top_k,
            max_tokens=params.max_tokens,
            max_initial_timestamp=max_initial,
            vad=params.vad,
            logprobs=params.logprobs,
            alignment_heads=_alignment_heads(params, info.name, speech),
        )
        asked._check(info)
        return asked

    @property
    def first_time_id(self) -> int:
        """Ids from it on are times; above every id where the model has none."""
        return _NO_ID if self.speech.no_timestamps_id is None else self.speech.first_time_id

    def opening(self, *, timestamps: bool) -> Opening:
        """What follows the decoder's start token. Raises InvalidRequest for an unknown language or task."""
        with renaming_fields({"source_language": "language"}):
            return self.speech.opening(self.language, self.task, timestamps=timestamps)

    def _check(self, info: ModelInfo) -> None:
        self.opening(timestamps=True)
        if self.segments and self.speech.no_timestamps_id is None:
            raise InvalidRequest(f"{info.name!r} has no times", field="timestamps")
        if self.logprobs and self.num_beams is not None and self.num_beams > 1:
            raise InvalidRequest(f"are not of beams, and there are {self.num_beams}", field="logprobs")
        if self.prompt_each and not self.condition:
            raise InvalidRequest(
                'is "all-segments" only where condition_on_prev_tokens is true', field="prompt_condition_type"
            )
        if self.no_speech_threshold is not None and self.logprob_threshold is None and not self.openai:
            raise InvalidRequest("needs a logprob_threshold", field="no_speech_threshold")
        if self.prompt_ids and self.speech.before_id is None:
            raise InvalidRequest(f"{info.name!r} takes none", field="prompt")


def _alignment_heads(params: TranscriptionParams, name: str, speech: Speech) -> Heads:
    """Raises InvalidRequest where the model's configuration names none that it has."""
    if params.timestamps != "word":
        return ()
    layers, heads = speech.decoder_heads
    named = speech.alignment_heads
    if params.semantics == "openai" and named is None:  # as `Whisper.__init__` of openai-whisper
        named = tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))
    if not named:
        raise InvalidRequest(
            f"{name!r} cannot tell the times of words: its generation_config.json has no alignment_heads; "
            "copy those of the model that it was made from, or ask for segments, or for the semantics of "
            "openai-whisper, which guesses",
            field="timestamps",
        )
    if speech.median_filter_width < 1 or speech.median_filter_width % 2 == 0:
        raise InvalidRequest(
            f"{name!r} cannot tell the times of words: median_filter_width of its config.json is "
            f"{speech.median_filter_width}, which must be odd",
            field="timestamps",
        )
    for layer, head in named:
        if not (0 <= layer < layers and 0 <= head < heads):
            raise InvalidRequest(
                f"{name!r} cannot tell the times of words: alignment_heads of its generation_config.json has "
                f"head {head} of layer {layer}, its decoder has {layers} layers of {heads} heads",
                field="timestamps",
            )
    return named


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
