"""Systems that a benchmark compares take turns."""

from turns import in_turns, rotated


def test_each_begins_in_turn() -> None:
    assert [rotated(["a", "b", "c"], number)[0] for number in range(4)] == ["a", "b", "c", "a"]


def test_a_load_that_no_system_takes_is_passed_over() -> None:
    assert list(in_turns([], "load", 1)) == []
