"""`tandem generate`, `tandem translate` and `tandem summarize`: texts in, texts out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from tandem.cli.options import (
    API_KEY_ENV,
    ApiKeyEnvOption,
    FileOption,
    JsonLinesOption,
    MaxTokensOption,
    ModelOption,
    ParamsOption,
    ServerOption,
    SourceLanguageOption,
    SplitAt,
    SplitOption,
    TargetLanguageOption,
    TaskOption,
    TruncateOption,
    connect,
    err,
    errors_shown,
    model_info,
)
from tandem.cli.text.texts import Line, read_texts, write_answers, write_stream
from tandem.errors import InvalidRequest, TandemError, renaming_fields
from tandem.inputs import MultiModalData, Prompt, RequestOptions, TaskOptions, TextPrompt, task_options
from tandem.media import file_bytes

if TYPE_CHECKING:
    from tandem.client import Client
    from tandem.outputs import RequestOutput, TextDelta
    from tandem.params import Params
    from tandem.workers.requests.segmentation.segments import Document, Split

_INPUTS = "lines of --file or of standard input"
_COUNTED_AT_ONCE: Final = 32  # texts whose tokens a server is asked for
# What errors call an image, in this process and over gRPC.
_OF_IMAGES: Final = dict.fromkeys(("multi_modal_data.image", "encoder_prompt.media"), "--image")


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts.", show_default=_INPUTS)] = None,
    *,
    model: ModelOption = "quickstart",
    server: ServerOption = None,
    api_key_env: ApiKeyEnvOption = API_KEY_ENV,
    file: FileOption = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An image that every prompt is about, as often as the model takes several. Without prompts "
            "the prompt is empty.",
            show_default=False,
        ),
    ] = None,
    max_tokens: MaxTokensOption = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="0 takes the likeliest; higher is more varied.", show_default="the model's, usually 0"
        ),
    ] = None,
    task: TaskOption = None,
    source_language: SourceLanguageOption = None,
    target_language: TargetLanguageOption = None,
    param: ParamsOption = None,
    truncate: TruncateOption = False,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text as it grows.")] = False,
    jsonl: JsonLinesOption = False,
) -> None:
    """Generate from each PROMPT; one answer a line, in order.

    A prompt is what the encoder reads, task prefix included unless a --task or languages are named; with a
    decoder-only model, what is continued. Next to an --image it is Florence-2's question, Llama 3.2 Vision's
    text with <|image|> for each, the decoder's prompt of Donut, TrOCR and captioners. For whole corpora see
    tandem batch.

    [bold]Examples[/bold]

      tandem generate "translate English to German: Where is the station?"
      tandem generate --stream -p temperature=0.7 -p top_p=0.9 -p seed=1 < prompts.txt
      tandem generate --server localhost:9000 --file prompts.txt --jsonl > answers.jsonl
      tandem generate --model microsoft/trocr-base-printed --image line.png
      tandem generate --model florence-community/Florence-2-base --image cat.jpg --jsonl "<OD>"
    """
    with errors_shown(), renaming_fields(_OF_IMAGES if image else {}):
        if stream and jsonl:
            raise typer.BadParameter("streamed text is not JSON; leave one out", param_hint="--stream")
        options = TaskOptions(task=task, source_language=source_language, target_language=target_language)
        given = {"max_tokens": max_tokens, "temperature": temperature}
        asked = _asked(model, server, api_key_env, given, param, options, truncate=truncate)
        asked = replace(asked, images=tuple(file_bytes(one, "--image") for one in image or ()))
        texts: list[Line] = [""] if image and not prompts and file is None else read_texts(prompts, file)
        if stream:
            _stream(texts, asked)
        else:
            _answer(texts, asked, jsonl=jsonl)


def translate(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to translate.", show_default=_INPUTS)
    ] = None,
    *,
    to: Annotated[str, typer.Option(help="Target language code, such as fr or de.")] = "fr",
    source: Annotated[str, typer.Option("--from", help="Source language code.")] = "en",
    model: Annotated[
        str, typer.Option(help="As for serve; its config declares its languages.")
    ] = "quickstart",
    server: ServerOption = None,
    api_key_env: ApiKeyEnvOption = API_KEY_ENV,
    file: FileOption = None,
    max_tokens: MaxTokensOption = None,
    param: ParamsOption = None,
    split: SplitOption = SplitAt.sentence,
    truncate: TruncateOption = False,
    jsonl: JsonLinesOption = False,
) -> None:
    """Translate each TEXT; one translation a line, in order.

    A text is translated sentence by sentence. What the model wants to read before a sentence is put there.

    [bold]Examples[/bold]

      tandem translate --to de "I am happy." "Where do you live?"
      tandem translate --from en --to fr --file book.en > book.fr
      tandem show MODEL                               which languages it has
    """
    with errors_shown():
        options = TaskOptions(source_language=source, target_language=to)
        given = {"max_tokens": max_tokens}
        asked = _asked(
            model, server, api_key_env, given, param, options, truncate=truncate, split=split.value
        )
        _answer(read_texts(texts, file), asked, jsonl=jsonl)


def summarize(
    documents: Annotated[
        list[str] | None, typer.Argument(help="Texts to summarize.", show_default=_INPUTS)
    ] = None,
    *,
    model: ModelOption,
    server: ServerOption = None,
    api_key_env: ApiKeyEnvOption = API_KEY_ENV,
    file: FileOption = None,
    max_tokens: MaxTokensOption = None,
    param: ParamsOption = None,
    truncate: TruncateOption = False,
    jsonl: JsonLinesOption = False,
) -> None:
    """Summarize each DOCUMENT; one summary a line, in order.

    Where the model's config says how it summarizes (task_specific_params, as T5's does), that is done: the
    text before the document, the lengths, the beams. Every option here goes before it.

    [bold]Examples[/bold]

      tandem summarize --model google-t5/t5-small --file documents.txt
      tandem summarize --model ./my-t5 --max-tokens 60 "$(tr '\\n' ' ' < article.txt)"
    """
    with errors_shown():
        known = "summarization" in (tasks := model_info(model).tasks)
        if tasks and not known:
            err.print(f"{model} has no summarization task, only {', '.join(tasks)}.", style="dim")
        options = TaskOptions(task="summarization" if known else None)
        asked = _asked(
            model, server, api_key_env, {"max_tokens": max_tokens}, param, options, truncate=truncate
        )
        _answer(read_texts(documents, file), asked, jsonl=jsonl)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a command line asks of every text."""

    model: str
    server: str | None
    api_key_env: str
    params: Params | None
    options: RequestOptions
    split: Split
    images: tuple[bytes, ...] = ()  # files, of each prompt

    def prompt(self, text: str) -> Prompt:
        if not self.images:
            return text
        return TextPrompt(prompt=text, multi_modal_data=MultiModalData(image=list(self.images)))

    @property
    def samples(self) -> int:
        return 1 if self.params is None else self.params.outputs


def _asked(
    model: str,
    server: str | None,
    api_key_env: str,
    given: dict[str, Any],
    param: list[str] | None,
    options: TaskOptions,
    *,
    truncate: bool = False,
    split: Split = "none",
) -> _Asked:
    """The command line's parameters, which go before the task's, and its options."""
    from tandem.batch import records

    values = {name: value for name, value in given.items() if value is not None}
    values |= {"truncate_prompt_tokens": -1} if truncate else {}
    values |= records.assignments(param or [])
    all_options = cast(RequestOptions, {**options, **records.options(values)})
    return _Asked(model, server, api_key_env, records.parameters(values), all_options, split)


def _answer(texts: list[Line], asked: _Asked, *, jsonl: bool) -> None:
    """Prints the answers. A blank line has a blank one, so that the lines of both sides correspond."""
    keywords: dict[str, Any] = {**asked.options}
    generate: Callable[..., Sequence[RequestOutput | TandemError]]
    if asked.server is not None:
        with connect(asked.server, asked.api_key_env) as client, ThreadPoolExecutor(_COUNTED_AT_ONCE) as pool:
            generate = partial(client.generate_each, params=asked.params, use_tqdm=True, **keywords)
            answers = _answers(texts, _segmenting(client, asked, pool), generate, asked)
    else:
        from tandem.offline import LLM

        with LLM(asked.model) as llm:
            segment = partial(llm.segment, split=asked.split, **task_options(asked.options))
            generate = partial(llm.generate_each, sampling_params=asked.params, **keywords)
            answers = _answers(texts, segment, generate, asked)
    write_answers(texts, answers, samples=asked.samples, jsonl=jsonl)


def _answers(
    texts: list[Line],
    segment: Callable[[str], Document],
    generate: Callable[[list[Prompt]], Sequence[RequestOutput | TandemError]],
    asked: _Asked,
) -> list[RequestOutput | TandemError]:
    """Each text's answer, from those to its segments, or the first error of one."""
    documents = [_document(text, _sole if asked.images else segment) for text in texts]
    cut = [document for document in documents if not isinstance(document, InvalidRequest)]
    prompts = [asked.prompt(part) for document in cut for part in document.segments]
    all_answers = iter(generate(prompts))
    answers: list[RequestOutput | TandemError] = []
    for text, document in zip(texts, documents, strict=True):
        if isinstance(document, InvalidRequest):
            answers.append(document)
            continue
        own = list(islice(all_answers, len(document.segments)))
        outputs = [answer for answer in own if not isinstance(answer, TandemError)]
        failed = next((answer for answer in own if isinstance(answer, TandemError)), None)
        answers.append(failed or document.output(str(text), outputs, asked.samples))
    return answers


def _sole(text: str) -> Document:
    """A text that is asked whatever is in it, because it is not all of its prompt."""
    from tandem.workers.requests.segmentation.segments import Document

    return Document((text,), ("", ""))


def _document(text: Line, segment: Callable[[str], Document]) -> Document | InvalidRequest:
    if isinstance(text, InvalidRequest):
        return text
    try:
        return segment(text)
    except InvalidRequest as error:
        return error


def _segmenting(client: Client, asked: _Asked, pool: ThreadPoolExecutor) -> Callable[[str], Document]:
    """Cuts texts for a server's model, as the server would. The tokens of a text's sentences are counted at
    the same time."""
    from tandem.workers.requests.languages.markers import split_target
    from tandem.workers.requests.segmentation.segments import Document, segment, within

    if asked.split == "none":
        return Document.whole
    most = client.models()[0].max_segment_tokens

    def count(text: str) -> int:
        try:
            return len(client.tokenize(text))
        except InvalidRequest:  # beyond the longest prompt
            return most + 1

    def cut(text: str) -> Document:
        chosen, text = split_target(text)
        language = asked.options.get("source_language")
        cut_by = partial(segment, text, asked.split, language=language, most=sys.maxsize)
        sentences: list[str] = []  # whose tokens must be counted

        def remember(sentence: str) -> int:
            sentences.append(sentence)
            return 0

        cut_by(fits=within(most, remember))
        counted = dict(zip(sentences, pool.map(count, sentences), strict=True))
        found = cut_by(fits=within(most, lambda part: counted[part] if part in counted else count(part)))
        return replace(found, segments=tuple(chosen + part for part in found.segments))

    return cut


def _stream(texts: list[Line], asked: _Asked) -> None:
    keywords: dict[str, Any] = {**asked.options}
    if asked.server is not None:
        with connect(asked.server, asked.api_key_env) as client:
            _write_stream(texts, asked, partial(client.stream, params=asked.params, **keywords))
        return
    from tandem.offline import LLM

    with LLM(asked.model) as llm:
        _write_stream(texts, asked, partial(llm.stream, sampling_params=asked.params, **keywords))


def _write_stream(texts: list[Line], asked: _Asked, stream: Callable[[Prompt], Iterator[TextDelta]]) -> None:
    def answer(text: str) -> Iterator[TextDelta]:
        with renaming_fields(_OF_IMAGES):
            yield from stream(asked.prompt(text))

    write_stream(texts, answer, blanks=bool(asked.images))
