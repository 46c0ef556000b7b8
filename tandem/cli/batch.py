"""`tandem batch`."""

from __future__ import annotations

import itertools
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from tqdm import tqdm

from tandem.cli.options import (
    API_KEY_ENV,
    ApiKeyEnvOption,
    ClusterOptions,
    MaxTokensOption,
    ModelOption,
    ParamsOption,
    Placement,
    PlacementOption,
    TruncateOption,
    err,
    errors_shown,
    ingress_mode,
    with_cluster_options,
)

if TYPE_CHECKING:
    from tandem.batch.media_columns import MediaColumn
    from tandem.client import AsyncClient

_FILES: Final = 32  # recordings or images at the cluster at a time, each in memory
_NAMED: Final = 20  # lines with errors that are named; there may be millions


@with_cluster_options
def batch(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN.jsonl",
            help="Requests, a JSON object a line. A folder or a quoted pattern stands for its files, in "
            "the order of their names. They may be compressed (.jsonl.gz) or Parquet, recordings or images.",
        ),
    ],
    sink: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Where the answers go.")],
    *,
    server: Annotated[
        str | None,
        typer.Option(
            help="host:port of a running server's gRPC endpoint, or http://host:port of its HTTP endpoint "
            "for OpenAI's request lines. Without it a cluster is started, as the options below say.",
            show_default=False,
        ),
    ] = None,
    api_key_env: ApiKeyEnvOption = API_KEY_ENV,
    param: ParamsOption = None,
    max_tokens: MaxTokensOption = None,
    truncate: TruncateOption = False,
    audio_column: Annotated[
        str | None,
        typer.Option(
            help="Transcribe the recordings that this member of each line, or column, names or holds.",
            show_default=False,
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(
            help="Ask about the images that this member of each line, or column, names or holds.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What is asked about images whose lines have no prompt.", show_default="nothing"),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests sent ahead of their answers.",
            show_default="256, of recordings and images 32",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds an answer may take.")] = 600,
    model: ModelOption = "quickstart",
    placement: PlacementOption = Placement.colocated,
    cluster: ClusterOptions,
) -> None:
    """Answer every line of IN.jsonl in OUT.jsonl, in the same order.

    A cluster is started for it, or a running server does it (--server) and
    lets everybody else go first. Ray Data streams the lines to it. Workers
    that die are replaced; nothing is lost. After an interruption run the same
    command again: it goes on.

    A line of IN.jsonl is a prompt and decoding parameters of its own:

      {"prompt": "translate English to French: Hi.", "id": "a", "n": 2}

    Its line in OUT.jsonl has its id, else its line number, and what came:

      {"id": "a", "outputs": [{"text": "Salut.", "finish_reason": "stop", …
      {"id": 2, "error": {"message": "top_q: unknown parameter", …

    Or it is one of OpenAI's request lines, for /v1/completions,
    /v1/chat/completions or /v1/embeddings, and its answer has OpenAI's form:

      {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {…
      {"id": "batch_req_…", "custom_id": "a", "response": {"status_code": 200, …

    Recordings are transcribed, as tandem transcribe does: a folder of them, or
    the column --audio-column of paths (from here on) or of files' bytes:

      {"audio": "talks/a.mp3", "language": "en", "speaker": 7}
      {"id": 1, "audio": "talks/a.mp3", "speaker": 7, "text": "…", "segments": …

    So are images asked about, with --image-column for the column. The answer
    is what tandem generate --image has; a line's prompt goes before --prompt:

      {"image": "pages/a.png", "prompt": "<OCR_WITH_REGION>"}
      {"id": 1, "image": "pages/a.png", "outputs": [{"text": "…", "parsed": …

    Lines with errors are named on standard error, too, and the exit status
    is 1 then.

    [bold]Examples[/bold]

      tandem batch in.jsonl out.jsonl --model google/flan-t5-xl --decoders 8
      tandem batch in.jsonl out.jsonl --server localhost:9000 -p temperature=0
      tandem batch talks/ out.jsonl --model openai/whisper-base -p language=en
      tandem batch data.parquet out.jsonl --audio-column audio --model ./whisper
      tandem batch pages/ out.jsonl --model ./florence --prompt "<OCR>"
    """
    interrupted = f"Interrupted. {sink} holds what is done; the same command goes on from there."
    with errors_shown(interrupted):
        from tandem.batch import records
        from tandem.batch import run as batch
        from tandem.batch.corpus import remaining

        defaults: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
        defaults |= {"truncate_prompt_tokens": -1} if truncate else {}
        defaults |= records.assignments(param or [])
        # Before a cluster is started for nothing.
        media = _media(source, audio_column, image_column)
        modality = None if media is None else media.modality
        if prompt is not None:
            if modality != "image":
                raise typer.BadParameter("is for images; other lines have theirs", param_hint="--prompt")
            defaults["prompt"] = prompt
        batch.check_defaults(defaults, modality)
        over_http = server is not None and server.startswith(("http://", "https://"))
        if media is not None and over_http:
            kind = "recordings" if modality == "audio" else "images"
            raise typer.BadParameter(f"{kind} need the gRPC endpoint, host:port", param_hint="--server")
        if not remaining(source, sink):
            err.print(f"Every line of {source} is answered in {sink}.")
            return

        # Ray warns on stderr about every actor that can be restarted, as Ray Data's can.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        from tandem.batch.openai_lines import HttpServer
        from tandem.cluster import launch, start

        named = itertools.count(1)
        # A cluster that is started here asks for the key of its own environment.
        api_key = os.environ.get(API_KEY_ENV if server is None else api_key_env)

        def name(error: str) -> None:
            if next(named) <= _NAMED:
                tqdm.write(error, file=sys.stderr)

        def copied(names: list[str]) -> None:
            shown = (f"{one} (not {like})" if (like := records.near(one)) else one for one in names)
            text = f"Copied to the answers, because they are no parameters: {', '.join(shown)}"
            tqdm.write(text, file=sys.stderr)

        def answer(target: str | None, http: list[str]) -> batch.Summary:
            done = batch.run(
                source,
                sink,
                None if target is None else partial(_connect, target, api_key),
                connect_http=partial(HttpServer, http, api_key) if http else None,
                connections=cluster.ingress_replicas,
                defaults=defaults,
                media=media,
                concurrency=concurrency or (batch.CONCURRENCY if media is None else _FILES),
                timeout_s=timeout,
                on_error=name,
                on_carried=copied,
            )
            if done.refused > _NAMED:
                err.print(f"{done.refused - _NAMED} more lines have errors: see {sink}.")
            errors = f", {done.refused} errors" if done.refused else ""
            audio = f", {done.audio_s:.0f} s of audio" if modality == "audio" else ""
            err.print(f"{done.answered} answers{audio}, {done.tokens} tokens{errors}.")
            return done

        if server is not None:
            with start.ray_alone(cluster.address):
                done = answer(None, [server]) if over_http else answer(server, [])
            raise typer.Exit(1 if done.refused else 0)
        http_port, grpc_port = start.free_ports("127.0.0.1", 2)
        config = cluster.config(
            model=model,
            placement=placement,
            http_port=http_port,
            grpc_port=grpc_port,
            ingress_mode=ingress_mode(cluster.address),
        )
        err.print(f"Starting {config.model_name}: Ray, Serve and the workers …", style="dim")
        with launch.serve(config, address=cluster.address) as running:
            endpoints = running.endpoints()
            http = [f"http://{address}" for address in endpoints.http]
            done = answer("ipv4:" + ",".join(endpoints.grpc), http)
        raise typer.Exit(1 if done.refused else 0)


def _media(source: Path, audio: str | None, image: str | None) -> MediaColumn | None:
    """Which member of lines is a recording or an image."""
    from tandem.batch.corpus import modality
    from tandem.batch.media_columns import MediaColumn

    if audio is not None and image is not None:
        raise typer.BadParameter("a line has one of them", param_hint="--audio-column, --image-column")
    if audio is not None:
        return MediaColumn("audio", audio)
    if image is not None:
        return MediaColumn("image", image)
    found = modality(source)
    return None if found is None else MediaColumn(found, found)


def _connect(target: str, api_key: str | None) -> AsyncClient:
    from tandem.client import AsyncClient

    return AsyncClient(target, api_key=api_key)
