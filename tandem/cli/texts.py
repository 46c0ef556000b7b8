"""Texts in, one a line, and answers out, one a line: line n of the output answers line n of the input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tandem.cli.options import err
from tandem.errors import OF_ONE_REQUEST, InvalidRequest, TandemError
from tandem.lines import one_line, read_text_lines

if TYPE_CHECKING:
    from tandem.outputs import RequestOutput, TextDelta


def read_texts(arguments: Sequence[str] | None, file: Path | None) -> list[str]:
    """The arguments, or the lines of a file or of standard input. Raises InvalidRequest, naming the line, for
    one that is not UTF-8."""
    if arguments and file:
        raise typer.BadParameter("give arguments or a file, not both", param_hint="--file")
    if arguments:
        return list(arguments)
    if file is not None:
        try:
            with file.open("rb") as lines:
                return _lines(lines, "--file")
        except OSError as error:
            raise typer.BadParameter(str(error), param_hint="--file") from None
    if sys.stdin.isatty():
        err.print("Reading standard input, one text a line; end with Ctrl-D.", style="dim")
    return _lines(sys.stdin.buffer, "standard input")


def _lines(file: Iterable[bytes], name: str) -> list[str]:
    try:
        return read_text_lines(file)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, field=name) from None


def write_answers(
    texts: Sequence[str], answers: Iterable[RequestOutput | TandemError], *, samples: int, jsonl: bool
) -> None:
    """Prints the answers: each sample a line, in which line ends are spaces, or a line of JSON for each text.

    A text whose answer is an error has empty lines, or the error as JSON; the errors go to standard error.
    Raises typer.Exit where there are any, and the error itself where it is everybody's.
    """
    from tandem.batch.records import answer, failure, line

    answers = list(answers)
    errors = {number: one for number, one in enumerate(answers, 1) if isinstance(one, TandemError)}
    if len(errors) == len(texts) and len({str(error) for error in errors.values()}) == 1:
        raise errors[1]
    for text, one in zip(texts, answers, strict=True):
        if jsonl:
            said = failure(one) if isinstance(one, TandemError) else answer(one)
            sys.stdout.write(line({"prompt": text} | said))
        elif isinstance(one, TandemError):
            print("\n" * (samples - 1))
        else:
            for sample in one.outputs:
                print(one_line(sample.text))
    report(errors.items())


def write_stream(texts: Sequence[str], stream: Callable[[str], Iterator[TextDelta]]) -> None:
    """Prints the texts' answers as they grow, each in a line; a blank text has an empty one. Errors are
    reported as by `write_answers`."""
    errors: list[tuple[int, TandemError]] = []
    for number, text in enumerate(texts, 1):
        try:
            for piece in stream(text) if text.strip() else ():
                print(one_line(piece.text), end="", flush=True)
        except OF_ONE_REQUEST as error:
            if len(texts) == 1:
                raise
            errors.append((number, error))
        print()
    report(errors)


def report(errors: Iterable[tuple[int, TandemError]]) -> None:
    """Names lines with their errors. Raises typer.Exit where there are any."""
    failed = False
    for number, error in errors:
        failed = True
        err.print(f"line {number}: [red]{type(error).__name__}[/red]", end=" ", highlight=False)
        err.print(str(error), highlight=False, markup=False)
    if failed:
        raise typer.Exit(1)
