"""Stop strings in text that comes piece by piece."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tandem.workers.requests.answers.detokenizer import StopStrings


def run_stops(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    watcher = StopStrings(stops)
    text = "".join(watcher.push(piece) for piece in pieces)
    return text + watcher.flush(), watcher.matched


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """The definition, by brute force: the first end of a match, and there the longest one."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


SMALL = st.text(alphabet="ab", min_size=1, max_size=5)


@given(stops=st.lists(SMALL, max_size=4), pieces=st.lists(st.text(alphabet="ab", max_size=6), max_size=8))
def test_stop_strings_do_not_depend_on_how_the_text_was_cut(stops: list[str], pieces: list[str]) -> None:
    assert run_stops(stops, pieces) == expected(stops, "".join(pieces))


def test_only_a_possible_beginning_of_a_stop_string_is_held_back() -> None:
    watcher = StopStrings(["END", "\n\n"])
    assert watcher.push("the E") == "the "
    assert watcher.push("N") == ""
    assert watcher.push("d\n") == "ENd"
    assert watcher.push("x") == "\nx"
    assert watcher.push("END more") == ""
    assert watcher.matched == "END"
    assert watcher.push("more") == watcher.flush() == ""


def test_without_stop_strings_text_passes_through() -> None:
    text = "".join(random.Random(0).choices("abc \n", k=200))
    assert run_stops([], [text]) == (text, None)
