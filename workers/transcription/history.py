"""What the decoder is given of earlier windows and of a prompt, before a window's start token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from tandem.workers.transcription.asked import Asked


class History(Protocol):
    def before(self) -> list[int]:
        """The ids before the next window's start token."""

    def extend(self, segments: Iterable[Sequence[int]], temperature: float) -> None:
        """A window said these segments, times included, and was decoded at this temperature."""

    def left_out(self, temperature: float) -> None:
        """A window that was decoded at this temperature is left out, as nobody speaks there."""


class TransformersHistory:
    """`_prepare_decoder_input_ids` of transformers, for a batch of one."""

    def __init__(self, asked: Asked, most: int) -> None:
        """most: ids of earlier windows."""
        self._asked, self._most = asked, most
        lead = asked.speech.before_id
        self._lead = [] if lead is None else [lead]
        self._prompt = [*self._lead, *asked.prompt_ids] if asked.prompt_ids else []
        # A prompt that is the first of history goes with it; else it comes before each window.
        self._said: list[list[int]] = []
        if asked.prompt_ids and not asked.prompt_each:
            self._said.append(list(asked.prompt_ids))
        self._conditioned = asked.condition

    def before(self) -> list[int]:
        if not (self._conditioned and self._said):
            return self._prompt
        lead = self._prompt if self._asked.prompt_each and self._prompt else self._lead
        said = [token for segment in self._said for token in segment]
        return [*lead, *said[-self._most :]]

    def extend(self, segments: Iterable[Sequence[int]], temperature: float) -> None:
        first_time = self._asked.first_time_id
        for ids in segments:
            # The second of two times that end a segment begins what the next window says itself.
            twice = len(ids) > 2 and ids[-2] >= first_time
            self._said.append(list(ids[:-1] if twice else ids))
        self.left_out(temperature)

    def left_out(self, temperature: float) -> None:
        self._conditioned = self._asked.condition and temperature < 0.5


class OpenAIHistory:
    """`transcribe` of openai-whisper."""

    def __init__(self, asked: Asked, most: int) -> None:
        """most: ids of history, the prompt's included."""
        self._asked, self._most = asked, most
        self._said = list(asked.prompt_ids)

    def before(self) -> list[int]:
        lead = self._asked.speech.before_id
        return [lead, *self._said[-self._most :]] if self._said and lead is not None else []

    def extend(self, segments: Iterable[Sequence[int]], temperature: float) -> None:
        if not self._asked.condition or temperature > 0.5:
            self._said = []
        else:
            self._said += [token for segment in segments for token in segment]

    def left_out(self, temperature: float) -> None:
        pass


def history_of(asked: Asked, most: int) -> History:
    return OpenAIHistory(asked, most) if asked.openai else TransformersHistory(asked, most)
