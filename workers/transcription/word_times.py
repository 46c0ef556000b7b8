"""When each word of a window is said: which tokens are read again for it, and what their alignment with the
audio says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from statistics import fmean, median
from typing import Final, NamedTuple, Protocol

from tandem.transcription import TranscriptionWord
from tandem.workers.request import Alignment
from tandem.workers.requests.answers.detokenizer import Vocabulary
from tandem.workers.requests.media.spectrogram import Spectrogram
from tandem.workers.transcription.answers import WindowAnswer
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.chunks import Chunk
from tandem.workers.transcription.segments import FRAMES_A_TIME, TIME_S, Piece, Split
from tandem.workers.transcription.window_requests import WindowRequests
from tandem.workers.transcription.words import TokenBytes, Word, merge_punctuation, split_words

_TIMES_A_SECOND: Final = 50
_FRAMES_A_SECOND: Final = 100


class Window(NamedTuple):
    """A window that is decoded."""

    seek: int  # frames
    frames: int  # the recording's, and its padding's, in it
    start_ids: list[int]  # what its decoder started from
    ids: list[int]  # what it said: times included, EOS excluded
    ended: bool  # by EOS
    language: str  # code
    parts: Split

    @property
    def offset_s(self) -> float:
        return self.seek * TIME_S / FRAMES_A_TIME


class Reading(NamedTuple):
    """What the decoder is to read: the last of the ids is not, only looked for."""

    prefix: list[int]
    ids: list[int]
    how: Alignment


class TimedWindow(NamedTuple):
    parts: Split
    words: list[list[TranscriptionWord]]  # each piece's


class WordTimes(Protocol):
    def reading(self, window: Window) -> Reading | None:
        """None: it says no word."""

    def timed(self, window: Window, answer: WindowAnswer) -> TimedWindow:
        """answer: to the reading, empty where there was none. To be called once a window, in order."""


class TransformersWords:
    """`_extract_token_timestamps` and `_collate_word_timestamps` of transformers, for a batch of one.

    The decoder's position that reads a token attends to what comes next, so its time is the token's end. What
    is compared are the generated tokens, times included.
    """

    _BEFORE: Final = "\"'“¡¿([{-"
    _AFTER: Final = "\"'.。,，!！?？:：”)]}、"

    def __init__(self, asked: Asked, content: int, windows: WindowRequests, vocabulary: Vocabulary) -> None:
        """content: frames of the recording up to where it, or its chunk, ends; all after it is padding."""
        self._asked, self._windows = asked, windows
        self._token_bytes = _token_bytes(vocabulary)
        self._content = content

    def reading(self, window: Window) -> Reading | None:
        if all(token >= self._windows.text_end for token in window.ids):
            return None
        start = len(window.start_ids)
        ids = [*window.ids, self._windows.text_end] if window.ended else window.ids
        positions = range(self._windows.frames // FRAMES_A_TIME)
        # In the padding it is below 0; transformers' slice, which it takes twice, then counts from the end.
        left = (self._content - window.seek) // FRAMES_A_TIME
        how = Alignment(
            heads=self._asked.alignment_heads,
            compared_from=start,
            first=start,
            stop=start + len(ids) - 1,
            input_length=len(positions[:left][:left]),
            cropped=False,
            filter_width=self._asked.speech.median_filter_width,
        )
        return Reading(window.start_ids, ids, how)

    def timed(self, window: Window, answer: WindowAnswer) -> TimedWindow:
        ends_s = [position * TIME_S for position in answer.alignment]
        ends_s.append(ends_s[-1] if ends_s else 0.0)  # the last token's, which is not read
        pieces, words, start = window.parts.pieces, [], 0
        for piece in pieces:
            stop = start + len(piece.token_ids)
            said = [at for at in range(start, stop) if window.ids[at] < self._windows.text_end]
            words.append([self._word(one, said, ends_s, window, answer) for one in self._split(said, window)])
            start = stop
        return TimedWindow(window.parts, words)

    def _split(self, said: list[int], window: Window) -> list[Word]:
        ids = [window.ids[at] for at in said]
        words = split_words(ids, window.language, self._windows.text_end, self._token_bytes)
        merge_punctuation(words, self._BEFORE, self._AFTER)
        return [word for word in words if word.text]

    def _word(
        self, word: Word, said: list[int], ends_s: list[float], window: Window, answer: WindowAnswer
    ) -> TranscriptionWord:
        at = [said[place] for place in word.at]
        start_s = ends_s[at[0] - 1] if at[0] else 0.0
        return TranscriptionWord(
            word.text,
            round(window.offset_s + start_s, 2),
            round(window.offset_s + ends_s[at[-1]], 2),
            fmean(answer.probabilities[one] for one in at),
        )


class OpenAIWords:
    """`add_word_timestamps` of openai-whisper, and how `transcribe` goes on after it: segments begin and end
    with their words, and so does the next window."""

    _BEFORE: Final = "\"'“¿([{-"
    _AFTER: Final = "\"'.。,，!！?？:：”)]}、"
    _SENTENCE_ENDS: Final = ".。!！?？"
    _LONGEST_MEDIAN_S: Final = 0.7
    _NEAR_S: Final = 0.5  # a word is not that far out of its segment

    def __init__(self, asked: Asked, start_s: float, windows: WindowRequests, vocabulary: Vocabulary) -> None:
        """start_s: where the recording, or its chunk, begins."""
        self._asked, self._windows = asked, windows
        self._token_bytes = _token_bytes(vocabulary)
        self._spoken_until_s = start_s

    def reading(self, window: Window) -> Reading | None:
        """The text after a start without a prompt, all of which is compared."""
        text = self._text(window)
        if not text:
            return None
        start, no_times = self._windows.start_id, self._asked.speech.no_timestamps_id
        assert no_times is not None, "words are asked of models that have times"
        opening = window.start_ids[window.start_ids.index(start) + 1 :]
        prefix, eos = [start, *opening, no_times], self._windows.text_end
        how = Alignment(
            heads=self._asked.alignment_heads,
            compared_from=0,
            first=len(prefix) - 1,
            stop=len(prefix) + len(text),
            input_length=window.frames // FRAMES_A_TIME,
            cropped=True,
            filter_width=self._asked.speech.median_filter_width,
        )
        return Reading(prefix, [*text, eos, eos], how)  # EOS is read, too: it is among what is compared

    def timed(self, window: Window, answer: WindowAnswer) -> TimedWindow:
        words = self._words(window, answer)
        durations = [word.end_s - word.start_s for word in words if word.end_s != word.start_s]
        typical_s = min(self._LONGEST_MEDIAN_S, median(durations)) if durations else 0.0
        if durations:
            self._cut_at_sentences(words, 2 * typical_s)
        merge_punctuation(words, self._BEFORE, self._AFTER)
        pieces, each, left = [], [], iter(words)
        for piece in window.parts.pieces:
            count, own = sum(token < self._windows.text_end for token in piece.token_ids), list[Word]()
            while count > 0 and (word := next(left, None)) is not None:
                count -= len(word.at)
                if word.text:
                    word.start_s = round(window.offset_s + word.start_s, 2)
                    word.end_s = round(window.offset_s + word.end_s, 2)
                    own.append(word)
            pieces.append(self._fitted(piece, own, typical_s) if own else piece)
            each.append([TranscriptionWord(w.text, w.start_s, w.end_s, w.probability) for w in own])
        advance = self._advance(window, pieces, each)
        return TimedWindow(Split(pieces, advance), each)

    def _text(self, window: Window) -> list[int]:
        ids = (token for piece in window.parts.pieces for token in piece.token_ids)
        return [token for token in ids if token < self._windows.text_end]

    def _words(self, window: Window, answer: WindowAnswer) -> list[Word]:
        """With their times in the window."""
        words = split_words(self._text(window), window.language, self._windows.text_end, self._token_bytes)
        for word in words:
            start, stop = word.at[0], word.at[-1] + 1
            word.start_s = answer.alignment[start] / _TIMES_A_SECOND
            word.end_s = answer.alignment[stop] / _TIMES_A_SECOND
            word.probability = fmean(answer.probabilities[start:stop])
        return words

    def _cut_at_sentences(self, words: Sequence[Word], longest_s: float) -> None:
        """A pause belongs to no word where a sentence ends or begins."""
        for before, word in pairwise(words):
            if word.end_s - word.start_s > longest_s:
                if word.text in self._SENTENCE_ENDS:
                    word.end_s = word.start_s + longest_s
                elif before.text in self._SENTENCE_ENDS:
                    word.start_s = word.end_s - longest_s

    def _fitted(self, piece: Piece, words: list[Word], typical_s: float) -> Piece:
        """The piece, from its first word to its last; a pause before it or after it is cut off these."""
        first, last, longest_s = words[0], words[-1], 2 * typical_s
        second = words[1] if len(words) > 1 else None
        long = first.end_s - first.start_s > longest_s
        if second is not None:
            long = long or second.end_s - first.start_s > 2 * longest_s
        if first.end_s - self._spoken_until_s > 4 * typical_s and long:
            if second is not None and second.end_s - second.start_s > longest_s:
                first.end_s = second.start_s = max(second.end_s / 2, second.end_s - longest_s)
            first.start_s = max(0.0, first.end_s - longest_s)
        start_s, end_s = piece.start_s, piece.end_s
        if start_s < first.end_s and start_s - self._NEAR_S > first.start_s:
            first.start_s = max(0.0, min(first.end_s - typical_s, start_s))
        else:
            start_s = first.start_s
        if end_s > last.start_s and end_s + self._NEAR_S < last.end_s:
            last.end_s = max(last.start_s + typical_s, end_s)
        else:
            end_s = last.end_s
        self._spoken_until_s = end_s
        return Piece(start_s, end_s, piece.token_ids)

    def _advance(
        self, window: Window, pieces: Sequence[Piece], words: Sequence[Sequence[TranscriptionWord]]
    ) -> int:
        """Where the next window begins, in frames from this one: after the last word, unless the window says
        itself that nothing follows."""
        ends_s = [word.end_s for of_piece in words for word in of_piece] or [piece.end_s for piece in pieces]
        self._spoken_until_s = ends_s[-1]
        times = [token >= self._asked.first_time_id for token in window.ids[-2:]]
        if times == [False, True] or ends_s[-1] <= window.offset_s:
            return window.parts.advance
        return round(ends_s[-1] * _FRAMES_A_SECOND) - window.seek


def word_times_of(
    asked: Asked, recording: Spectrogram, chunk: Chunk, windows: WindowRequests, vocabulary: Vocabulary
) -> WordTimes | None:
    """None: words are not asked for."""
    if not asked.alignment_heads:
        return None
    if asked.openai:
        return OpenAIWords(asked, chunk.start / _FRAMES_A_SECOND, windows, vocabulary)
    # A recording that is shorter than a window is padded; the small number is for rounding.
    content = min(chunk.stop, ceil(recording.duration_s * _FRAMES_A_SECOND - 1e-6))
    return TransformersWords(asked, content, windows, vocabulary)


def _token_bytes(vocabulary: Vocabulary) -> TokenBytes:
    return vocabulary.token_bytes or (lambda token: vocabulary.decode([token]).encode())
