"""What is said and what is written: sentences of the Tatoeba project, and made-up numbers, times, dates and
commands. Which part a text belongs to depends on the text alone."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "quickstart_model"))
from data import part_of

Pieces = list[tuple[str, str]]  # (spoken, written), in order; spaces stand between pieces

DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
KINDS: Final = ("sentences", "commands", "numbers", "times", "dates")
# How many of a thousand utterances are of each kind.
SHARES: Final = {"sentences": 620, "commands": 120, "numbers": 110, "times": 70, "dates": 80}

_ONES: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS: Final = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


class Phrase(NamedTuple):
    """One utterance."""

    kind: str  # of KINDS
    pieces: Pieces

    @property
    def written(self) -> str:
        return " ".join(written for _, written in self.pieces)


class Source:
    """The phrases of one part: "train", "dev" or "test"."""

    def __init__(self, files: list[Path], part: str) -> None:
        """files: tab-separated, an English sentence first."""
        self._part = part
        self._sentences = [sentence for sentence in read_sentences(files) if part_of(sentence) == part]
        if not self._sentences:
            raise ValueError(f"{', '.join(map(str, files))}: too few sentences, none for {part}")

    @property
    def sentences(self) -> list[str]:
        return self._sentences

    def draw(self, rng: random.Random, kind: str | None = None) -> Phrase:
        if kind is None:
            (kind,) = rng.choices(list(SHARES), list(SHARES.values()))
        if kind == "sentences":
            return Phrase(kind, plain(rng.choice(self._sentences)))
        while True:  # until a text of this part comes
            phrase = Phrase(kind, _MADE[kind](rng))
            if part_of(phrase.written) == self._part:
                return phrase


def read_sentences(files: list[Path]) -> list[str]:
    """The sentences that are read as they are written, once each, in the order of the alphabet."""
    lines = (line for path in files for line in path.read_text(encoding="utf-8").splitlines())
    sentences = {line.partition("\t")[0].strip() for line in lines}
    return sorted(one for one in sentences if re.fullmatch(r"[A-Z][A-Za-z ,.!?'’\-]*[.!?]", one))


def plain(text: str) -> Pieces:
    return [(word, word) for word in text.split()]


def cardinal(number: int) -> str:
    """0 to 999,999 in words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens = _TENS[number // 10 - 2]
        return tens if number % 10 == 0 else f"{tens}-{_ONES[number % 10]}"
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    head = f"{cardinal(number // size)} {name}"
    return head if number % size == 0 else f"{head} {cardinal(number % size)}"


def ordinal(number: int) -> str:
    words = cardinal(number)
    head, last = re.fullmatch(r"(.*?)(\w+)", words).groups()  # type: ignore[union-attr]
    if last in _ORDINALS:
        return head + _ORDINALS[last]
    return head + (last[:-1] + "ieth" if last.endswith("y") else last + "th")


def suffix(number: int) -> str:
    if 10 < number % 100 < 14:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def year(number: int) -> str:
    """1100 to 2099 as years are said."""
    century, rest = divmod(number, 100)
    if rest == 0:
        return cardinal(number) if century % 10 == 0 else f"{cardinal(century)} hundred"
    if 2000 <= number < 2010:
        return cardinal(number)
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def _number(rng: random.Random) -> tuple[str, str]:
    """A number with what it counts."""
    kind = rng.random()
    if kind < 0.35:
        value = rng.choice((rng.randint(0, 20), rng.randint(0, 99), rng.randint(0, 99)))
        return cardinal(value), str(value)
    if kind < 0.55:
        value = rng.choice((rng.randint(100, 999), rng.randint(1, 9) * 100, rng.randint(1000, 9999)))
        return cardinal(value), str(value)
    if kind < 0.65:
        value = rng.randint(1, 100)
        return f"{cardinal(value)} percent", f"{value}%"
    if kind < 0.75:
        value = rng.randint(2, 500)
        return f"{cardinal(value)} dollars", f"${value}"
    if kind < 0.85:
        whole, tenth = rng.randint(0, 40), rng.randint(0, 9)
        return f"{cardinal(whole)} point {_ONES[tenth]}", f"{whole}.{tenth}"
    value = rng.randint(1, 31)
    return ordinal(value), f"{value}{suffix(value)}"


def _numbers(rng: random.Random) -> Pieces:
    kind = rng.random()
    if kind < 0.2:
        digits = [rng.randint(0, 9) for _ in range(rng.randint(3, 7))]
        lead = rng.choice(("", "Code", "Room", "Call", "My number is", "The code is"))
        return [*plain(lead), (" ".join(_ONES[digit] for digit in digits), "".join(map(str, digits)) + ".")]
    if kind < 0.35:
        first, second = rng.randint(1, 99), rng.randint(1, 99)
        sign = rng.choice(("plus", "minus", "times"))
        lead = rng.choice(("What is", "How much is"))
        return [*plain(lead), (cardinal(first), str(first)), (sign, sign), (cardinal(second), f"{second}?")]
    spoken, written = _number(rng)
    if kind < 0.5:
        return [(spoken, f"{written}.")]
    before, after = rng.choice(_AROUND_NUMBERS)
    if after == "":
        return [*plain(before), (spoken, f"{written}.")]
    return [*plain(before), (spoken, written), *plain(after)]


_AROUND_NUMBERS: Final = (
    ("The answer is", ""), ("It costs", ""), ("I need", "of them."), ("There are", "people here."),
    ("We have", "days left."), ("Page", ""), ("Take bus number", ""), ("Room", "please."),
    ("I have", "books."), ("He is", "years old."), ("Number", ""), ("About", ""), ("Turn to page", ""),
    ("That makes", ""), ("It is", "miles from here."), ("Add", "to the list."), ("The total is", ""),
    ("Give me", "minutes."), ("She won", "games."), ("It weighs", "pounds."), ("Only", "are left."),
    ("We are in row", ""),
)  # fmt: skip


def clock(rng: random.Random) -> tuple[str, str]:
    """A time of the day."""
    hour, minute = rng.randint(1, 12), rng.choice((0, 15, 30, 45, rng.randint(1, 59), rng.randint(1, 59)))
    kind = rng.random()
    half, letters = rng.choice((("a m", "a.m."), ("p m", "p.m.")))
    if minute == 0:
        if kind < 0.5:
            return f"{cardinal(hour)} o'clock", f"{hour} o'clock"
        return f"{cardinal(hour)} {half}", f"{hour} {letters}"
    said = f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    if kind < 0.65:
        return said, f"{hour}:{minute:02}"
    return f"{said} {half}", f"{hour}:{minute:02} {letters}"


def _ended(written: str, mark: str = ".") -> str:
    """With a full stop, where it has none."""
    return written if written.endswith(mark) else written + mark


def _times(rng: random.Random) -> Pieces:
    spoken, written = clock(rng)
    before, after = rng.choice(_AROUND_TIMES)
    if after == "":
        return [*plain(before), (spoken, _ended(written))]
    return [*plain(before), (spoken, written), *plain(after)]


_AROUND_TIMES: Final = (
    ("", ""), ("It's", ""), ("It is", ""), ("Meet me at", ""), ("The train leaves at", ""),
    ("Wake me up at", ""), ("Set an alarm for", ""), ("Call me at", "tomorrow."), ("The meeting is at", ""),
    ("We open at", ""), ("Be there at", "please."), ("Dinner is at", ""), ("Come before", ""),
    ("I get up at", "every day."), ("The bus comes at", ""), ("Remind me at", ""), ("From", "on."),
    ("School starts at", ""),
)  # fmt: skip


def date(rng: random.Random) -> tuple[str, str]:
    """A day of the year, perhaps with its year or its day of the week; the written form has no last dot."""
    month, day = rng.choice(MONTHS), rng.randint(1, 31)
    kind = rng.random()
    said, wrote = f"{month} {ordinal(day)}", f"{month} {day}{suffix(day)}"
    if kind < 0.2:
        said, wrote = f"the {ordinal(day)} of {month}", f"the {day}{suffix(day)} of {month}"
    if rng.random() < 0.3:
        number = rng.choice((rng.randint(1900, 2040), rng.randint(1980, 2030), rng.randint(1500, 2050)))
        return f"{said}, {year(number)}", f"{wrote}, {number}"
    if rng.random() < 0.3:
        name = rng.choice(DAYS)
        return f"{name}, {said}", f"{name}, {wrote}"
    return said, wrote


def _dates(rng: random.Random) -> Pieces:
    kind = rng.random()
    if kind < 0.25:
        names = rng.sample(rng.choice((DAYS, MONTHS)), rng.randint(1, 3))
        lead = rng.choice(("", "Not", "Only", "Every", "See you on", "On", "Next", "Last", "From", "In"))
        return plain(f"{lead} {', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]}.".strip())
    if kind < 0.4:
        number = rng.choice((rng.randint(1900, 2040), rng.randint(1100, 2099)))
        lead = rng.choice(("In", "Since", "It was built in", "She was born in", "The year is", "Before"))
        return [*plain(lead), (year(number), f"{number}.")]
    spoken, written = date(rng)
    lead = rng.choice(_BEFORE_DATES)
    if not lead:
        spoken, written = spoken[0].upper() + spoken[1:], written[0].upper() + written[1:]
    return [*plain(lead), (spoken, f"{written}.")]


_BEFORE_DATES: Final = (
    "", "", "Today is", "Tomorrow is", "My birthday is", "The party is on", "We leave on", "It starts on",
    "See you on", "The meeting is on", "Until", "He was born on", "It happened on", "They arrive on",
)  # fmt: skip

_PLACES: Final = (
    "kitchen", "bedroom", "bathroom", "living room", "garage", "hall", "garden", "office", "basement",
    "attic",
)  # fmt: skip
_THINGS: Final = (
    "light", "lights", "lamp", "heater", "fan", "radio", "television", "music", "oven", "camera", "alarm",
    "speaker", "air conditioner", "computer", "printer", "coffee machine",
)  # fmt: skip
_OPENED: Final = (
    "door", "window", "garage door", "curtains", "gate", "blinds", "trunk", "box", "file", "map",
)  # fmt: skip
_MUSIC: Final = (
    "jazz", "rock", "classical music", "the radio", "my playlist", "the news", "a song", "the blues",
)  # fmt: skip
_PEOPLE: Final = (
    "mom", "dad", "Tom", "Mary", "my sister", "my brother", "the doctor", "the office", "Anna", "John",
    "Peter", "my wife", "my husband", "the bank", "a taxi", "the police", "Alice", "Robert", "home",
)  # fmt: skip
_BUYS: Final = (
    "milk", "bread", "eggs", "butter", "apples", "rice", "coffee", "tea", "cheese", "sugar", "salt", "soap",
    "onions", "potatoes", "tomatoes", "water", "paper", "bananas",
)  # fmt: skip
_CITIES: Final = (
    "London", "Paris", "Boston", "Berlin", "Tokyo", "Rome", "Chicago", "Madrid", "New York", "Dublin",
    "Vienna", "Sydney", "Oslo", "Cairo", "Toronto", "Seattle",
)  # fmt: skip
_SHORT: Final = (
    "Stop.", "Start.", "Go.", "Yes.", "No.", "Pause.", "Play.", "Next.", "Back.", "Help.", "Cancel.",
    "Continue.", "Repeat.", "Louder.", "Quieter.", "Volume up.", "Volume down.", "Next song.",
    "Previous song.", "Go back.", "Turn left.", "Turn right.", "Go straight.", "Scroll down.", "Scroll up.",
    "Take a picture.", "Hang up.", "Answer the phone.", "Thank you.", "Good night.", "Good morning.",
    "Hello.", "Goodbye.", "What time is it?", "What day is it?", "Read it again.", "Save the file.",
    "Delete it.", "Send it.", "Undo.", "Mute.", "Sleep.", "Wake up.", "Home.", "Up.", "Down.", "Left.",
    "Right.", "On.", "Off.", "Open.", "Close.", "Search.",
)  # fmt: skip
_POLITE: Final = ("", "", "", "", "", "Please", "Now", "Hey,", "Could you", "Can you", "OK,")


def _commands(rng: random.Random) -> Pieces:
    if rng.random() < 0.2:
        return plain(rng.choice(_SHORT))
    pieces = _command(rng)
    lead = rng.choice(_POLITE)
    if lead:
        pieces[0] = (pieces[0][0], pieces[0][1][0].lower() + pieces[0][1][1:])
        pieces[:0] = plain(lead)
        if lead.endswith("you"):
            pieces[-1] = (pieces[-1][0], pieces[-1][1].removesuffix(".") + "?")
    return pieces


def _command(rng: random.Random) -> Pieces:
    value = rng.choice((rng.randint(1, 12), rng.randint(1, 60), rng.choice((5, 10, 15, 20, 30, 45))))
    count = (cardinal(value), str(value))
    kind = rng.randrange(14)
    if kind < 3:
        where = rng.choice((f"{rng.choice(_PLACES)} ", ""))
        verb = rng.choice(("Turn on", "Turn off", "Switch on", "Switch off"))
        return plain(f"{verb} the {where}{rng.choice(_THINGS)}.")
    if kind == 3:
        return plain(f"{rng.choice(('Open', 'Close', 'Lock', 'Check'))} the {rng.choice(_OPENED)}.")
    if kind in (4, 5):
        unit = rng.choice(("minute", "second", "hour")) + ("s" if value > 1 else "")
        return [*plain("Set a timer for"), count, *plain(f"{unit}.")]
    if kind == 6:
        spoken, written = clock(rng)
        lead = rng.choice(("Set an alarm for", "Wake me at", "Set the clock to"))
        return [*plain(lead), (spoken, _ended(written))]
    if kind == 7:
        return plain(f"Play {rng.choice(_MUSIC)}{rng.choice((' in the ' + rng.choice(_PLACES), '', ''))}.")
    if kind == 8:
        return plain(f"{rng.choice(('Call', 'Text', 'Write to'))} {rng.choice(_PEOPLE)}.")
    if kind == 9:
        return plain(f"Add {rng.choice(_BUYS)} and {rng.choice(_BUYS)} to the shopping list.")
    if kind == 10:
        when = rng.choice(("today", "tomorrow", "on " + rng.choice(DAYS), "now"))
        return plain(f"How is the weather in {rng.choice(_CITIES)} {when}?")
    if kind == 11:
        return [*plain("Set the temperature to"), count, *plain("degrees.")]
    if kind == 12:
        lead = rng.choice(("Set the volume to", "Skip to track", "Go to page"))
        return [*plain(lead), (count[0], f"{count[1]}.")]
    return plain(f"Remind me to call {rng.choice(_PEOPLE)} on {rng.choice(DAYS)}.")


_MADE: Final[dict[str, Callable[[random.Random], Pieces]]] = {
    "commands": _commands, "numbers": _numbers, "times": _times, "dates": _dates,
}  # fmt: skip


def texts(source: Source, rng: random.Random, count: int) -> Iterator[str]:
    """What a tokenizer is trained on: all sentences, and `count` made-up phrases."""
    yield from source.sentences
    for _ in range(count):
        yield source.draw(rng, rng.choice(KINDS[1:])).written
