"""Texts in, one a line, and answers out, one a line: line n of the output answers line n of the input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from tandem.cli.options import err, show_error
from tandem.errors import OF_ONE_REQUEST, InvalidRequest, TandemError
from tandem.lines import one_line, read_text_lines

if TYPE_CHECKING:
    from tandem.outputs import RequestOutput, TextDelta


Line = str | InvalidRequest  # a text, or why a line is none

# The fields of an error that is one text's own.
_OF_A_TEXT: Final = frozenset({None, "prompt", "encoder_prompt"})


def read_texts(arguments: Sequence[str] | None, file: Path | None) -> list[Line]:
    """The arguments, or the lines of a file or of standard input. Raises InvalidRequest where the whole file
    is in another encoding."""
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


def _lines(file: Iterable[bytes], name: str) -> list[Line]:
    try:
        return list(read_text_lines(file))
    except InvalidRequest as error:
        raise InvalidRequest(error.message, field=name) from None


def write_answers(
    texts: Sequence[Line], answers: Iterable[RequestOutput | TandemError], *, samples: int, jsonl: bool
) -> None:
    """Prints the answers: each sample a line, in which line ends are spaces, or a line of JSON for each text.

    A text whose answer is an error has empty lines, or the error as JSON; the errors go to standard error.
    Raises typer.Exit where there are any, and the error itself where no text but what is asked of all is at
    fault.
    """
    from tandem.batch.records import answer, failure, line

    answers = list(answers)
    errors = {number: one for number, one in enumerate(answers, 1) if isinstance(one, TandemError)}
    if (shared := _shared(texts, errors)) is not None:
        raise shared
    for text, one in zip(texts, answers, strict=True):
        if jsonl:
            said = failure(one) if isinstance(one, TandemError) else answer(one)
            prompt = None if isinstance(text, InvalidRequest) else text
            sys.stdout.write(line({"prompt": prompt} | said))
        elif isinstance(one, TandemError):
            print("\n" * (samples - 1))
        else:
            for sample in one.outputs:
                print(one_line(sample.text))
    report(errors.items())


def _shared(texts: Sequence[Line], errors: Mapping[int, TandemError]) -> TandemError | None:
    """The error of the only text, or the same one of all that are asked, which says nothing of a text."""
    from tandem.workers.requests.segmentation.segments import is_blank

    first = next(iter(errors.values()), None)
    asked = sum(not isinstance(text, str) or not is_blank(text) for text in texts)
    if first is None or len(errors) < asked or len({str(error) for error in errors.values()}) > 1:
        return None
    its_own = isinstance(first, OF_ONE_REQUEST) and first.field in _OF_A_TEXT
    return None if its_own and len(texts) > 1 else first


def write_stream(
    texts: Sequence[Line], stream: Callable[[str], Iterator[TextDelta]], *, blanks: bool
) -> None:
    """Prints the texts' answers as they grow, each in a line. A blank text is its own answer, unless `blanks`
    are asked, too. Errors are reported as by `write_answers`."""
    errors: list[tuple[int, TandemError]] = []
    for number, text in enumerate(texts, 1):
        try:
            for piece in _pieces(text, stream, blanks):
                print(one_line(piece), end="", flush=True)
        except OF_ONE_REQUEST as error:
            if len(texts) == 1:
                raise
            errors.append((number, error))
        print()
    report(errors)


def _pieces(text: Line, stream: Callable[[str], Iterator[TextDelta]], blanks: bool) -> Iterator[str]:
    from tandem.workers.requests.segmentation.segments import is_blank

    if isinstance(text, InvalidRequest):
        raise text
    if is_blank(text) and not blanks:
        yield text
        return
    for piece in stream(text):
        yield piece.text


def report(errors: Iterable[tuple[int, TandemError]]) -> None:
    """Names lines with their errors. Raises typer.Exit where there are any."""
    failed = False
    for number, error in errors:
        failed = True
        show_error(error, f"line {number}: ")
    if failed:
        raise typer.Exit(1)
