"""The `tandem` command: one file for each of its verbs."""

from __future__ import annotations

import typer

from tandem.cli import batch, compose, demo, generate, score, serve, show, transcribe

app = typer.Typer(
    name="tandem",
    help="Serve encoder-decoder models (T5, BART, Marian, NLLB, Whisper …), on this machine or a cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

for command in (
    serve.serve,
    show.show,
    generate.generate,
    generate.translate,
    generate.summarize,
    transcribe.transcribe,
    score.score,
    batch.batch,
    compose.compose,
    demo.demo,
):
    app.command()(command)
