"""The `tandem` command: a file for each of its verbs."""

from __future__ import annotations

import io
import sys
from importlib.metadata import version
from typing import Annotated, Any

from tandem.cli.signals import ending_by_signals

with ending_by_signals():  # which takes a second
    import typer

    from tandem.cli import batch, demo, key, serve, top
    from tandem.cli.models import compose, show
    from tandem.cli.speech import transcribe
    from tandem.cli.text import generate, score


class _Command(typer.Typer):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        with ending_by_signals():
            return super().__call__(*args, **keywords)


app = _Command(
    name="tandem",
    help="Serve encoder-decoder models (T5, BART, Marian, NLLB, Whisper …), on this machine or a cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tandem {version('tandem-serve')}")
        raise typer.Exit


@app.callback()
def _utf_8(
    _: Annotated[
        bool,
        typer.Option("--version", help="Print Tandem's version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Answers and messages are UTF-8, as inputs are, whatever the locale says. What is not UTF-8 in an
    argument goes out as it came."""
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


for command in (
    serve.serve,
    key.key,
    show.show,
    generate.generate,
    generate.translate,
    generate.summarize,
    transcribe.transcribe,
    score.score,
    batch.batch,
    top.top,
    compose.compose,
    demo.demo,
):
    app.command()(command)
