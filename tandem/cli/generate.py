"""`tandem generate`, `tandem translate` and `tandem summarize`: texts in, texts out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tandem.cli.options import (
    FileOption,
    JsonLinesOption,
    MaxTokensOption,
    ModelOption,
    ParamsOption,
    ServerOption,
    err,
    errors_shown,
    model_info,
)

if TYPE_CHECKING:
    from tandem.inputs import Prompt, TaskOptions
    from tandem.outputs import RequestOutput, TextDelta
    from tandem.params import Params

_INPUTS = "lines of --file or of standard input"


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts.", show_default=_INPUTS)] = None,
    *,
    model: ModelOption = "quickstart",
    server: ServerOption = None,
    file: FileOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="0 takes the likeliest; higher is more varied.", show_default="the model's, usually 0"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="One that the model's config declares, such as summarization.", show_default=False),
    ] = None,
    source_language: Annotated[
        str | None,
        typer.Option("--from", help="Of a translation, as the model calls it.", show_default=False),
    ] = None,
    target_language: Annotated[
        str | None, typer.Option("--to", help="The language to answer in.", show_default=False)
    ] = None,
    param: ParamsOption = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text as it grows.")] = False,
    jsonl: JsonLinesOption = False,
) -> None:
    """Generate from each PROMPT; one answer a line, in order.

    A prompt is what the encoder reads, task prefix included unless a --task or languages are named; with a
    decoder-only model, what is continued. For whole corpora see tandem batch.

    [bold]Examples[/bold]

      tandem generate "translate English to German: Where is the station?"
      tandem generate --stream -p temperature=0.7 -p top_p=0.9 -p seed=1 < prompts.txt
      tandem generate --server localhost:9000 --file prompts.txt --jsonl > answers.jsonl
    """
    from tandem.inputs import TaskOptions

    with errors_shown():
        if stream and jsonl:
            raise typer.BadParameter("streamed text is not JSON; leave one out", param_hint="--stream")
        options = TaskOptions(task=task, source_language=source_language, target_language=target_language)
        params = _params(param, max_tokens=max_tokens, temperature=temperature)
        texts = _texts(prompts, file)
        if stream:
            _stream(texts, model, server, params, options)
        else:
            _answer(texts, model, server, params, options, jsonl)


def translate(
    sentences: Annotated[
        list[str] | None, typer.Argument(help="Sentences to translate.", show_default=_INPUTS)
    ] = None,
    *,
    to: Annotated[str, typer.Option(help="Target language code, such as fr or de.")] = "fr",
    source: Annotated[str, typer.Option("--from", help="Source language code.")] = "en",
    model: Annotated[
        str, typer.Option(help="As for serve; its config declares its languages.")
    ] = "quickstart",
    server: ServerOption = None,
    file: FileOption = None,
    max_tokens: MaxTokensOption = None,
    param: ParamsOption = None,
    jsonl: JsonLinesOption = False,
) -> None:
    """Translate each SENTENCE; one translation a line, in order.

    What the model wants to read before a sentence is put there.

    [bold]Examples[/bold]

      tandem translate --to de "I am happy." "Where do you live?"
      tandem translate --from en --to fr --file book.en > book.fr
      tandem show MODEL                               which languages it has
    """
    from tandem.inputs import TaskOptions

    with errors_shown():
        options = TaskOptions(source_language=source, target_language=to)
        params = _params(param, max_tokens=max_tokens)
        _answer(_texts(sentences, file), model, server, params, options, jsonl)


def summarize(
    documents: Annotated[
        list[str] | None, typer.Argument(help="Texts to summarize.", show_default=_INPUTS)
    ] = None,
    *,
    model: ModelOption,
    server: ServerOption = None,
    file: FileOption = None,
    max_tokens: MaxTokensOption = None,
    param: ParamsOption = None,
    jsonl: JsonLinesOption = False,
) -> None:
    """Summarize each DOCUMENT; one summary a line, in order.

    Where the model's config says how it summarizes (task_specific_params, as T5's does), that is done: the
    text before the document, the lengths, the beams. Every option here goes before it.

    [bold]Examples[/bold]

      tandem summarize --model google-t5/t5-small --file documents.txt
      tandem summarize --model ./my-t5 --max-tokens 60 "$(tr '\\n' ' ' < article.txt)"
    """
    from tandem.inputs import TaskOptions

    with errors_shown():
        known = "summarization" in (tasks := model_info(model).tasks)
        if tasks and not known:
            err.print(f"{model} has no summarization task, only {', '.join(tasks)}.", style="dim")
        options = TaskOptions(task="summarization" if known else None)
        params = _params(param, max_tokens=max_tokens)
        _answer(_texts(documents, file), model, server, params, options, jsonl)


def _params(param: list[str] | None, **params: Any) -> Params | None:
    """The command line's parameters, which go before the task's."""
    from tandem.batch.records import assignments, parameters

    given = {name: value for name, value in params.items() if value is not None}
    return parameters(given | assignments(param or []))


def _texts(arguments: list[str] | None, file: Path | None) -> list[str]:
    if arguments and file:
        raise typer.BadParameter("give arguments or a file, not both", param_hint="--file")
    if arguments:
        return arguments
    if file is not None:
        try:
            with file.open(encoding="utf-8") as lines:
                return [line.rstrip("\n") for line in lines]
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(str(error), param_hint="--file") from None
    if sys.stdin.isatty():
        err.print("Reading standard input, one text a line; end with Ctrl-D.", style="dim")
    return [line.rstrip("\n") for line in sys.stdin]


def _answer(
    texts: list[str], model: str, server: str | None, params: Params | None, options: TaskOptions, jsonl: bool
) -> None:
    """Prints the answers. A blank line has a blank one, so that the lines of both sides correspond."""
    from tandem.batch.records import answer, line

    outputs = iter(_outputs([text for text in texts if text.strip()], model, server, params, options))
    for text in texts:
        if not text.strip():
            if not jsonl:
                print()
            continue
        output = next(outputs)
        if jsonl:
            sys.stdout.write(line({"prompt": text} | answer(output)))
        else:
            for sample in output.outputs:
                print(sample.text)


def _outputs(
    texts: list[str], model: str, server: str | None, params: Params | None, options: TaskOptions
) -> list[RequestOutput]:
    prompts: list[Prompt] = list(texts)
    if server is not None:
        from tandem.client import Client

        with Client(server) as client:
            return client.generate_many(prompts, params, **options, use_tqdm=True)
    from tandem.llm import LLM

    with LLM(model) as llm:
        return llm.generate(prompts, params, **options)


def _stream(
    texts: list[str], model: str, server: str | None, params: Params | None, options: TaskOptions
) -> None:
    if server is not None:
        from tandem.client import Client

        with Client(server) as client:
            for text in filter(str.strip, texts):
                _show(client.stream(text, params, **options))
        return
    from tandem.llm import LLM

    with LLM(model) as llm:
        for text in filter(str.strip, texts):
            _show(llm.stream(text, params, **options))


def _show(pieces: Iterator[TextDelta]) -> None:
    for piece in pieces:
        print(piece.text, end="", flush=True)
    print()
