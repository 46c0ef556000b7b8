"""What the lines say: sentences of the Tatoeba project, amounts, dates and times, and codes that no language
helps to read. Which part a text belongs to depends on the text alone."""

from __future__ import annotations

import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1] / "quickstart_model"))
from data import part_of

CHARACTERS: Final = "".join(chr(code) for code in range(32, 127))  # that the model is shown
LONGEST: Final = 64  # characters of a line
KINDS: Final = ("sentences", "numbers", "codes")
# How many of a hundred lines are of each kind.
_SHARES: Final = {"sentences": 60, "numbers": 25, "codes": 15}
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
_ITEMS: Final = (
    "Total", "Subtotal", "Tax", "Invoice", "Order", "Balance", "Page", "Room", "Flight", "Table", "Account",
    "Amount due", "Price", "Date", "No.", "Qty", "Weight", "Score", "Platform", "Ref.", "Tel.", "Chapter",
)  # fmt: skip
_UNITS: Final = ("kg", "g", "km", "m", "cm", "mm", "lb", "oz", "ml", "mph", "km/h", "GB", "MB", "kWh", "V")
# Letters and digits far more often than other characters.
_CODE: Final = string.ascii_letters * 2 + string.digits * 4 + string.punctuation


class Source:
    """The texts of one part: "train", "dev" or "test"."""

    def __init__(self, files: list[Path], part: str) -> None:
        """files: tab-separated, an English sentence first."""
        self._part = part
        self._sentences = [one for one in read_sentences(files) if part_of(one) == part]
        if not self._sentences:
            raise ValueError(f"{', '.join(map(str, files))}: too few sentences, none for {part}")

    def draw(self, rng: random.Random, kind: str | None = None) -> str:
        """A line of at most LONGEST characters, by itself or of a kind of `KINDS`."""
        if kind is None:
            (kind,) = rng.choices(list(_SHARES), list(_SHARES.values()))
        if kind == "sentences":
            return self._sentence(rng)
        while True:  # until a text of this part comes
            text = _MADE[kind](rng)
            if len(text) <= LONGEST and part_of(text) == self._part:
                return text

    def _sentence(self, rng: random.Random) -> str:
        """One sentence or several, as far as the line goes; some begin or end within a sentence."""
        text = rng.choice(self._sentences)
        while rng.random() < 0.4:
            text += " " + rng.choice(self._sentences)
        words = text.split()
        if rng.random() < 0.2:
            words = words[rng.randrange(len(words)) :]
        text = " ".join(words)
        if len(text) > LONGEST:
            text = text[: LONGEST + 1].rpartition(" ")[0] or text[:LONGEST]
        style = rng.random()
        return text.upper() if style < 0.06 else text.title() if style < 0.09 else text


def read_sentences(files: list[Path]) -> list[str]:
    """The sentences in `CHARACTERS`, once each, in the order of the alphabet."""
    lines = (line for path in files for line in path.read_text(encoding="utf-8").splitlines())
    sentences = {line.partition("\t")[0].strip().replace("’", "'") for line in lines}
    return sorted(one for one in sentences if one and set(one) <= set(CHARACTERS))


def _amount(rng: random.Random) -> str:
    number = rng.randrange(10 ** rng.randint(1, 6))
    match rng.randrange(6):
        case 0:
            return f"${number:,}.{rng.randrange(100):02}"
        case 1:
            return f"{number:,}"
        case 2:
            return f"{number / 10:.1f}%"
        case 3:
            return f"{number / 100:.2f} {rng.choice(_UNITS)}"
        case 4:
            return f"-{number}"
        case _:
            return str(number)


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1900, 2040)
    name = _MONTHS[month - 1]
    match rng.randrange(5):
        case 0:
            return f"{name} {day}, {year}"
        case 1:
            return f"{day} {name[:3]} {year}"
        case 2:
            return f"{year}-{month:02}-{day:02}"
        case 3:
            return f"{month:02}/{day:02}/{year % 100:02}"
        case _:
            return f"{day}.{month}.{year}"


def _time(rng: random.Random) -> str:
    hour, minute = rng.randint(0, 23), rng.randint(0, 59)
    if rng.random() < 0.5:
        return f"{hour:02}:{minute:02}"
    return f"{hour % 12 or 12}:{minute:02} {rng.choice(('a.m.', 'p.m.', 'AM', 'PM'))}"


def _telephone(rng: random.Random) -> str:
    form = rng.choice(("+## ## #### ####", "(###) ###-####", "###-####", "#### ######"))
    return "".join(rng.choice(string.digits) if one == "#" else one for one in form)


def _reference(rng: random.Random) -> str:
    letters = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 3)))
    digits = "".join(rng.choices(string.digits, k=rng.randint(2, 10)))
    return letters + rng.choice(("", "-", "/", " #", ".")) + digits


_FIGURES: Final = (_amount, _amount, _amount, _date, _time, _telephone, _reference)


def _numbers(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.5:
            parts.append(rng.choice(_ITEMS) + rng.choice((":", ":", "")))
        parts.append(rng.choice(_FIGURES)(rng))
    return " ".join(parts)


def _codes(rng: random.Random) -> str:
    return " ".join("".join(rng.choices(_CODE, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 5)))


_MADE: Final[dict[str, Callable[[random.Random], str]]] = {"numbers": _numbers, "codes": _codes}
