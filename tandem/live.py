"""Speech transcribed while it goes on: what a caller asks for, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tandem.params import invalid
from tandem.transcription import ServerVad

TURNS = ServerVad(silence_duration_ms=500)  # OpenAI's default for turns


class LiveParams(BaseModel):
    """How speech is transcribed while it goes on. Raises `InvalidRequest`, naming the field."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    sample_rate: int = Field(16_000, ge=8_000, le=192_000, description="Samples a second.")
    language: str | None = Field(None, description='As "en" or "english". None: detected at the first turn.')
    task: str | None = Field(None, description='"transcribe", or "translate" into English.')
    prompt: str | None = Field(
        None, description="Text that comes before: its style is followed, its names are known."
    )
    turn_detection: ServerVad | None = Field(
        TURNS, description="What a silence is, which ends a turn. None: turns end where the caller says so."
    )
    step_ms: int = Field(
        1000,
        ge=100,
        le=30_000,
        description="Sound that is waited for between two hypotheses: a budget on delay, which costs a "
        "decoding each.",
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise invalid(error) from None


# Sound as 16-bit samples of one channel, little-endian; among it, where a turn ends, or that what is heard of
# it is to be forgotten.
Sound = bytes | Literal["commit", "clear"]


@dataclass(frozen=True, slots=True)
class LiveDelta:
    """What a live transcription grew by."""

    turn: int  # that this is about: 0, 1, …
    final: str  # text to append to the turn's, which is never taken back
    partial: str  # what may follow it, in place of the turn's partial text before
    start_s: float  # where the turn begins in the stream
    end_s: float | None  # where it ends, once it has ended: nothing of it follows
    language: str  # code, said or detected; "" where it is not known yet
