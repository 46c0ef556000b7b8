"""`tandem key`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tandem.cli.options import err, errors_shown


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; metrics show it.", show_default=False)],
    *,
    file: Annotated[
        Path | None, typer.Option(help="Add the line to this file of keys.", show_default=False)
    ] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Calls.", show_default="any")] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="Tokens read and generated.", show_default="any")
    ] = None,
    in_flight: Annotated[int | None, typer.Option(help="Calls at a time.", show_default="any")] = None,
    priority: Annotated[int, typer.Option(help="The greatest that its requests may have.")] = 0,
    weight: Annotated[float, typer.Option(help="Its share where several callers wait.")] = 1.0,
) -> None:
    """Make an API key: its line for the file of `tandem serve --api-keys`, and the key itself.

    The file holds no keys, only their hashes: this is the one time that a key is shown. Quotas hold at each
    ingress replica. A running server reads the file again when it has changed. A name may have several lines.

    [bold]Examples[/bold]

      tandem key acme
      tandem key acme --file keys.txt --requests-per-minute 600 --in-flight 16
    """
    with errors_shown():
        from tandem.cluster.callers import Quotas
        from tandem.cluster.keys import line_of, new_key

        made = new_key()
        quotas = Quotas(requests_per_minute, tokens_per_minute, in_flight, priority, weight)
        line = line_of(name, made, quotas)
        if file is None:
            err.print(line)
        else:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(f"{line}\n")
        print(made)
