"""Transcriptions of recordings of any length: what a caller asks for, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tandem.errors import InvalidRequest, renaming_fields
from tandem.limits import DEFAULT_LIMITS as CAP
from tandem.params import invalid

_HOTTEST = 1.0  # where openai-whisper's ladder of temperatures ends
_STEP = 0.2

_GREATEST = 100.0
_LONGEST_MS = 60_000


# Windows one after another, or chunks between silences.
TranscriptionMode = Literal["sequential", "chunked"]


class ServerVad(BaseModel):
    """How a recording is cut at silences, which a voice activity model finds. The fields are OpenAI's, of
    `chunking_strategy`.

    Raises `InvalidRequest`, naming the field.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    type: Literal["server_vad"] = Field("server_vad", description="Always this.")
    threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Probability from which on it is speech. Less of it hears fainter voices, and noise.",
    )
    prefix_padding_ms: int = Field(
        300, ge=0, le=_LONGEST_MS, description="Milliseconds before a speech that belong to it."
    )
    silence_duration_ms: int = Field(
        200, ge=0, le=_LONGEST_MS, description="Milliseconds of silence that end a speech. They belong to it."
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise invalid(error) from None


class TranscriptionParams(BaseModel):
    """How recordings are transcribed. None means the semantics' own default.

    `semantics` says whose way it is, for what one transcription of one recording gives:

    | | "transformers" | "openai" |
    |---|---|---|
    | after | `generate` of transformers, batch 1 | `transcribe` of openai-whisper |
    | temperature | 0 | 0, 0.2, … 1.0; one number begins the ladder |
    | compression_ratio_threshold | off; of token ids | 2.4; of the text |
    | logprob_threshold, no_speech_threshold | off | -1, 0.6 |
    | condition_on_prev_tokens | off, or the model's own | on |
    | samples where the temperature is above 0 | 1, of the 50 likeliest tokens | best of 5 |
    | prompt | before every window, or history where it is conditioned on | history |
    | what a window may generate | the model's max_length | half of what its decoder holds |
    | a short recording with timestamps | goes on in its silence | ends where it ends |
    | words | `return_token_timestamps` | `word_timestamps`: cut at pauses, segments begin and end with them |

    A threshold that is never met turns a gate off: infinity, minus infinity for `logprob_threshold`.

    Raises `InvalidRequest`, naming the field, as `SamplingParams` does.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    language: str | None = Field(
        None,
        description='Of the recording, as "en" or "english". None: the model\'s own, else it is detected.',
    )
    task: str | None = Field(None, description='"transcribe", or "translate" into English.')
    timestamps: Literal["segment", "word"] | None = Field(
        "segment",
        description='"word": segments have words, with times of their own. None: the answer has no segments; '
        "a recording of one window needs no times.",
    )
    prompt: str | None = Field(
        None, description="Text that comes before the recording: its style is followed, its names are known."
    )
    prompt_condition_type: Literal["first-segment", "all-segments"] = Field(
        "first-segment",
        description="Where windows are conditioned on what was said: whether the prompt is only the first of "
        "that, or comes before it in every window.",
    )
    condition_on_prev_tokens: bool | None = Field(
        None, description="A window is decoded after what the windows before it said."
    )
    temperature: float | tuple[float, ...] | None = Field(
        None,
        description="0 takes the likeliest tokens. Several: the next one is for a window that the thresholds "
        "refuse.",
    )
    compression_ratio_threshold: float | None = Field(
        None, description="A window whose answer is compressed better than by this factor is decoded again."
    )
    logprob_threshold: float | None = Field(
        None, description="A window is decoded again if its tokens' mean log-probability is below."
    )
    no_speech_threshold: float | None = Field(
        None, description="A window without speech, with a greater probability, is left out if its answer is "
        "below logprob_threshold, too."
    )  # fmt: skip
    num_beams: int | None = Field(
        None, ge=1, le=CAP.num_beams, description="Where the temperature is 0. None: the model's own."
    )
    length_penalty: float | None = Field(None, ge=-100, le=100, description="Of beams, see BeamSearchParams.")
    best_of: int | None = Field(
        None, ge=1, le=CAP.n, description="Samples of a window where the temperature is above 0."
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=CAP.decoder_tokens,
        description="Most tokens of a window, within what its decoder holds.",
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed draws the same samples.")
    logprobs: bool = Field(
        False, description="Segments have the log-probabilities of their tokens. Not with beams."
    )
    chunking_strategy: Literal["auto"] | ServerVad | None = Field(
        None,
        description="The recording is cut at silences into chunks, which are transcribed independently and "
        'many at once. "auto", or `ServerVad` to say what a silence is. None: window after window.',
    )
    semantics: Literal["transformers", "openai"] = Field("transformers", description="See above.")

    def __init__(self, **values: Any) -> None:
        if isinstance(temperature := values.get("temperature"), list):
            values["temperature"] = temperature = tuple(temperature)
        several = temperature if isinstance(temperature, tuple) else (temperature,)
        if not several or not all(one is None or _is_temperature(one) for one in several):
            raise InvalidRequest(
                f"must be a number of 0 to {_GREATEST:g}, or several, got {temperature!r:.100}",
                field="temperature",
            )
        chunking = values.get("chunking_strategy")
        if isinstance(chunking, dict):
            with renaming_fields(lambda field: f"chunking_strategy.{field}"):
                values["chunking_strategy"] = ServerVad(**chunking)
        elif not isinstance(chunking, ServerVad) and chunking not in (None, "auto"):
            raise InvalidRequest(
                f'must be "auto" or of type "server_vad", got {chunking!r:.100}', field="chunking_strategy"
            )
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise invalid(error) from None

    @property
    def vad(self) -> ServerVad | None:
        """How the recording is cut; None: it is not."""
        return ServerVad() if self.chunking_strategy == "auto" else self.chunking_strategy

    @property
    def temperatures(self) -> tuple[float, ...]:
        """In the order in which they are tried."""
        if isinstance(self.temperature, tuple):
            return self.temperature
        first = self.temperature or 0.0
        if self.semantics == "transformers":
            return (first,)
        steps = max(0, int((_HOTTEST - first + 1e-6) / _STEP))
        return (first, *(round(first + _STEP * step, 6) for step in range(1, steps + 1)))


def _is_temperature(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _GREATEST


class TranscriptionOptions(TypedDict, total=False):
    """The fields of `TranscriptionParams` as keyword arguments."""

    language: str | None
    task: str | None
    timestamps: Literal["segment", "word"] | None
    prompt: str | None
    prompt_condition_type: Literal["first-segment", "all-segments"]
    condition_on_prev_tokens: bool | None
    temperature: float | Sequence[float] | None
    compression_ratio_threshold: float | None
    logprob_threshold: float | None
    no_speech_threshold: float | None
    num_beams: int | None
    length_penalty: float | None
    best_of: int | None
    max_tokens: int | None
    seed: int | None
    logprobs: bool
    chunking_strategy: Literal["auto"] | ServerVad | None
    semantics: Literal["transformers", "openai"]


@dataclass(frozen=True, slots=True)
class TranscriptionWord:
    """A word, with the punctuation around it. In Chinese, Japanese, Thai, Lao, Burmese and Cantonese, which
    put no spaces between words, a character."""

    word: str  # with the space that sets it off
    start_s: float  # in the recording
    end_s: float
    probability: float  # the mean of its tokens', among tokens of text


@dataclass(frozen=True, slots=True)
class TranscriptionSegment:
    """What was said from one time to another, and how its window was decoded."""

    id: int  # 0, 1, …
    seek_s: float  # where its window begins, in seconds of the recording
    start_s: float
    end_s: float
    text: str  # with the space that sets it off
    token_ids: list[int]  # times included, EOS excluded
    temperature: float
    avg_logprob: float  # mean over the window's tokens
    compression_ratio: float  # the window's text's: bytes over compressed bytes
    no_speech_prob: float  # the window's
    words: list[TranscriptionWord] | None = None  # None: they were not asked for
    # One for each of token_ids, under the model's own distribution. None: they were not asked for.
    logprobs: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Transcription:
    """The answer to one recording."""

    text: str
    language: str  # code, said or detected; "" where no speech is found to detect it from
    duration_s: float  # the recording's
    segments: list[TranscriptionSegment]  # none where no timestamps were asked for
    mode: TranscriptionMode
    encoder_tokens: int  # positions of the windows that were decoded
    generated_tokens: int  # all answers to windows together, those that were refused included


@dataclass(frozen=True, slots=True)
class TranscriptionDelta:
    """What a transcription grew by. All of it is final."""

    text: str  # to append to the text so far
    segments: list[TranscriptionSegment]  # none where no timestamps were asked for
    done_s: float  # up to where the recording is transcribed
    transcription: Transcription | None = None  # the whole answer, with the last delta


@dataclass(frozen=True, slots=True)
class TranscriptionProgress:
    """How far one of several recordings is."""

    number: int  # the recording's: 0, 1, …
    done_s: float  # up to where it is transcribed
    duration_s: float  # the recording's
    segments: list[TranscriptionSegment]  # so far; there are some where no timestamps were asked for, too
    answer: Transcription | InvalidRequest | None  # with the last of its steps; an error where it is refused
