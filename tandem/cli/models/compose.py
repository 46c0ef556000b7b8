"""`tandem compose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tandem.cli.options import err, errors_shown


def compose(
    *,
    encoder: Annotated[str, typer.Option(help="A BERT-like model: a folder or a hub id.")],
    decoder: Annotated[str, typer.Option(help="A BERT-like model or GPT-2: a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="Where to write the new model: a folder that is empty or new.")],
    seed: Annotated[int, typer.Option(min=0, help="Draws the weights that neither model has.")] = 0,
) -> None:
    """Put an encoder and a decoder together, as transformers' EncoderDecoderModel (bert2bert, bert2gpt2 …).

    Each keeps its weights and its tokenizer. The cross-attention between them is new, and random: fine-tune
    the model before you expect an answer of it.

    [bold]Examples[/bold]

      tandem compose --encoder google-bert/bert-base-uncased --decoder openai-community/gpt2 --out ./bert2gpt2
      tandem show ./bert2gpt2
      tandem serve ./bert2gpt2
    """
    with errors_shown():
        from tandem.cli.models.put_together import put_together

        made = put_together(encoder, decoder, out, seed=seed)
    print(made.folder)
    if made.two_tokenizers:
        err.print("The decoder has a tokenizer of its own, in decoder_tokenizer/.")
    err.print("Fine-tune it before use:", style="yellow", end=" ")
    err.print(
        f"{len(made.new_weights)} weights of the cross-attention are random (seed {seed}), for neither model "
        "has them."
    )
