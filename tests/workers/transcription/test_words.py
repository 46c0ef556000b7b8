"""Tokens into words, held to transformers' functions; and openai-whisper's times of words at pauses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai_whisper import openai_whisper
from timed_whisper import NAMES, make_timed
from transcribing import ASKED, FIRST_TIME
from transformers import WhisperTokenizerFast
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

from tandem.workers.requests.answers.detokenizer import Vocabulary
from tandem.workers.transcription.answers import WindowAnswer
from tandem.workers.transcription.segments import Split, split
from tandem.workers.transcription.word_times import OpenAIWords, TimedWindow, Window
from tandem.workers.transcription.words import Word, merge_punctuation, split_words

MALFORMED = "\ufffd"
BEFORE, AFTER = "\"'“¡¿([{-", "\"'.。,，!！?？:：”)]}、"
TEXT_END = 90


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WhisperTokenizerFast:
    folder: Path = make_timed(tmp_path_factory.mktemp("base"), "base", ((0, 0),))
    made: WhisperTokenizerFast = WhisperTokenizerFast.from_pretrained(folder)
    return made


@pytest.mark.parametrize("code", ["en", "fr", "zh"])
def test_as_transformers(tokenizer: WhisperTokenizerFast, code: str) -> None:
    """Any tokens: parts of characters, digits, currencies, punctuation at either side and alone."""
    rng, vocabulary, compared = random.Random(1), Vocabulary(tokenizer), 0
    assert vocabulary.token_bytes is not None
    for _ in range(400):
        ids = [rng.randrange(TEXT_END) for _ in range(rng.randrange(1, 16))]
        words = split_words(ids, code, TEXT_END, vocabulary.token_bytes)
        assert [at for word in words for at in word.at] == list(range(len(ids)))
        merge_punctuation(words, BEFORE, AFTER)
        whole = vocabulary.decode(ids)
        text = "".join(word.text for word in words)
        assert text.replace(MALFORMED, "") == whole.replace(MALFORMED, "")
        if MALFORMED not in whole:  # else transformers may lose what follows
            found = [(word.text, [ids[at] for at in word.at], word.at) for word in words if word.text]
            expected = _combine_tokens_into_words(tokenizer, ids, NAMES[code])
            assert found == list(zip(*expected, strict=True))
            compared += 1
    assert compared > 150


def test_bytes_of_no_character(tokenizer: WhisperTokenizerFast) -> None:
    """Each is by itself, and what follows is there."""
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.token_bytes is not None
    names = {vocabulary.token_bytes(at): at for at in range(TEXT_END)}
    data = [b"\xe4", b"\xa0", b" ba", b"\xe4", b"\xbd", b"\xa0", b"\xf0", b"\x9f", b" 3", b"\xe5"]
    for code, expected in {
        "en": [f"{MALFORMED}{MALFORMED}", f" ba你{MALFORMED * 2}", f" 3{MALFORMED}"],
        "zh": [MALFORMED, MALFORMED, " ba", "你", MALFORMED, MALFORMED, " 3", MALFORMED],
    }.items():
        words = split_words([names[one] for one in data], code, TEXT_END, vocabulary.token_bytes)
        assert [word.text for word in words] == expected


def test_digits_currency_and_characters(tokenizer: WhisperTokenizerFast) -> None:
    vocabulary = Vocabulary(tokenizer)

    def words(texts: Sequence[str], code: str) -> list[str]:
        names = {vocabulary.decode([at]): at for at in range(TEXT_END)}
        assert vocabulary.token_bytes is not None
        made = split_words([names[text] for text in texts], code, TEXT_END, vocabulary.token_bytes)
        merge_punctuation(made, BEFORE, AFTER)
        return [word.text for word in made if word.text]

    assert words([" $", "5", ".", "00", "!"], "en") == [" $5", ".00!"]
    assert words([" 100", " €", ",", " (", "me", ")"], "en") == [" 100", " €,", " (me)"]
    assert words([" ba", "你", "好", "。"], "en") == [" ba你好。"]
    assert words(["你", "好", "。", "ก"], "zh") == ["你", "好。", "ก"]


# -- openai-whisper's times


class Windows:
    """What `OpenAIWords` reads of `WindowRequests`."""

    text_end, start_id, frames = TEXT_END, TEXT_END + 1, 3000


class Texts:
    """A vocabulary of words that are tokens."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def token_bytes(self, token: int) -> bytes:
        return self._texts[token].encode()


TEXTS = [" one", " two", "three", ".", ",", "!", " (", ")", " four", "?", " -", "。", " $", "5"]


def timed(openai: OpenAIWords, window: Window, alignment: list[int], each: list[float]) -> TimedWindow:
    return openai.timed(window, WindowAnswer(alignment=alignment, probabilities=each))


def make_window(ids: list[int], seek: int, frames: int) -> Window:
    parts: Split = split(ids, seek, frames, FIRST_TIME, openai=True)
    return Window(seek, frames, [TEXT_END + 1], ids, True, "en", parts)


def openai_words() -> OpenAIWords:
    windows: Any = Windows()
    texts: Any = Texts(TEXTS)
    return OpenAIWords(ASKED, 0.0, windows, texts)


def test_a_pause_belongs_to_no_word() -> None:
    """As openai-whisper 20250625: after the end of a sentence, and before the first word of a segment."""
    openai = openai_words()
    ids = [FIRST_TIME, 0, 1, 3, 8, FIRST_TIME + 300, FIRST_TIME + 300, 8, 1, FIRST_TIME + 480]
    alignment = [0, 10, 22, 130, 145, 420, 435]
    parts, words = timed(openai, make_window(ids, 1000, 1000), alignment, [0.5] * 7)
    assert [[(word.word, word.start_s, word.end_s) for word in of] for of in words] == [
        [
            (" one", 10.0, 10.2), (" two.", 10.2, 10.44), (" four", 12.6, 12.9),
        ],
        [(" four", 17.8, 18.4), (" two", 18.4, 18.7)],
    ]  # fmt: skip
    assert [(piece.start_s, piece.end_s) for piece in parts.pieces] == [(10.0, 12.9), (17.8, 18.7)]
    assert parts.advance == 1000  # nothing follows


def test_the_next_window_begins_after_the_last_word() -> None:
    openai = openai_words()
    ids = [FIRST_TIME, 0, 1, FIRST_TIME + 90, FIRST_TIME + 90, 8]
    parts, words = timed(openai, make_window(ids, 400, 3000), [3, 40, 81], [0.25, 0.75, 0, 0])
    assert [(one.word, one.start_s, one.end_s, one.probability) for one in words[0]] == [
        (" one", 4.06, 4.8, 0.25), (" two", 4.8, 5.62, 0.75),
    ]  # fmt: skip
    assert parts.advance == 562 - 400


def test_a_window_without_text() -> None:
    openai = openai_words()
    window = make_window([FIRST_TIME, FIRST_TIME + 20, FIRST_TIME + 20], 0, 3000)
    assert openai.reading(window) is None
    parts, words = openai.timed(window, WindowAnswer())
    assert (words, parts.advance) == ([[], []], 40)


def test_any_times_as_openai_whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    """`add_word_timestamps` with the same alignment, over windows one after another."""
    package = openai_whisper()
    timing = package.timing

    class Tokenizer:
        eot = TEXT_END

    rng = random.Random(3)
    for number in range(300):
        openai, last_end, seek = openai_words(), 0.0, rng.randrange(0, 3000)
        for _ in range(3):
            frames = rng.choice([3000, rng.randrange(2, 3000)])
            ids, time = [], 0
            for _ in range(rng.randint(1, 3)):
                time += rng.randrange(0, 200)
                ids += [FIRST_TIME + time, *(rng.randrange(len(TEXTS)) for _ in range(rng.randrange(0, 8)))]
                time += rng.randrange(1, 400)
                ids.append(FIRST_TIME + time)
            ids += rng.choice([[], [FIRST_TIME + time], [FIRST_TIME + time, 0]])
            window = make_window(ids, seek, frames)
            text = [token for piece in window.parts.pieces for token in piece.token_ids if token < TEXT_END]
            steps = [rng.choice([0, 1, 5, 15, 20, 30, 200]) for _ in range(len(text) + 1)]
            alignment = [sum(steps[: at + 1]) for at in range(len(steps))]
            each = [rng.random() for _ in text]

            def find_alignment(*_: Any, text=text, alignment=alignment, each=each) -> Any:  # type: ignore[no-untyped-def]
                words: list[Word] = split_words(text, "en", TEXT_END, Texts(TEXTS).token_bytes)
                return [
                    timing.WordTiming(
                        word.text, [text[at] for at in word.at], alignment[word.at[0]] / 50,
                        alignment[word.at[-1] + 1] / 50,
                        sum(each[at] for at in word.at) / len(word.at),
                    )
                    for word in words
                ]  # fmt: skip

            monkeypatch.setattr(timing, "find_alignment", find_alignment)
            segments = [
                {"seek": seek, "start": piece.start_s, "end": piece.end_s, "tokens": piece.token_ids}
                for piece in window.parts.pieces
            ]
            timing.add_word_timestamps(
                segments=segments, model=None, tokenizer=Tokenizer(), mel=None, num_frames=frames,
                last_speech_timestamp=last_end,
            )  # fmt: skip
            parts, words = timed(openai, window, alignment, each)
            assert [(piece.start_s, piece.end_s) for piece in parts.pieces] == [
                pytest.approx((one["start"], one["end"]), abs=1e-9) for one in segments
            ], number
            for of, one in zip(words, segments, strict=True):
                assert [word.word for word in of] == [word["word"] for word in one["words"]]
                assert [(word.start_s, word.end_s, word.probability) for word in of] == [
                    pytest.approx((word["start"], word["end"], word["probability"]), abs=1e-9)
                    for word in one["words"]
                ]
            ends = [word["end"] for one in segments for word in one["words"]]
            last_end = ends[-1] if ends else segments[-1]["end"]
            single = len(ids) > 1 and ids[-2] < FIRST_TIME <= ids[-1]
            if not single and last_end > seek / 100:
                assert seek + parts.advance == round(last_end * 100)
            seek += parts.advance or frames
