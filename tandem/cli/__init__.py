"""The `tandem` command: one file for each of its verbs."""

from __future__ import annotations

import io
import sys

import typer

from tandem.cli import batch, compose, demo, generate, key, score, serve, show, top, transcribe

app = typer.Typer(
    name="tandem",
    help="Serve encoder-decoder models (T5, BART, Marian, NLLB, Whisper …), on this machine or a cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def _utf_8() -> None:
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
