"""What several commands share: options, the way errors are shown. Messages go to stderr, answers to
stdout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tandem.errors import TandemError

err = Console(stderr=True)

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A folder with config.json, tokenizer and safetensors; a Hugging Face hub id; or "
        "[bold]quickstart[/bold], the small translation model that comes with Tandem."
    ),
]
ModelOption = Annotated[str, typer.Option(help="A folder, a hub id or quickstart: as for serve.")]
ServerOption = Annotated[
    str | None,
    typer.Option(
        help="host:port of a running server's gRPC endpoint. Without it the model runs in this process.",
        show_default=False,
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Read inputs from this file, one a line.", show_default=False),
]
JsonLinesOption = Annotated[
    bool,
    typer.Option("--jsonl", help="One JSON object a line, for texts that may hold line breaks themselves."),
]
MaxTokensOption = Annotated[
    int | None, typer.Option(help="Most tokens to generate.", show_default="the model's")
]
ParamsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="NAME=VALUE",
        help="Any other decoding parameter, as often as you like: -p temperature=0.7 -p seed=1",
        show_default=False,
    ),
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
TensorParallelOption = Annotated[
    int, typer.Option("--tensor-parallel-size", "--tp", help="GPUs (or processes) a decoder is split over.")
]


@contextmanager
def errors_shown() -> Iterator[None]:
    """Tandem's errors are for the user to read, not to trace."""
    try:
        yield
    except TandemError as error:
        err.print(f"[red]{type(error).__name__}[/red] {error}", highlight=False)
        raise typer.Exit(1) from None
