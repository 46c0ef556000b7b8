"""The `tandem` command."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tandem.errors import InvalidRequest, TandemError

if TYPE_CHECKING:
    from tandem.inputs import Prompt
    from tandem.outputs import TextDelta

app = typer.Typer(
    name="tandem",
    help="Serve encoder-decoder models (T5, Flan-T5, mT5, UMT5, ByT5 …), on this machine or a cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
err = Console(stderr=True)


class Placement(StrEnum):
    disaggregated = "disaggregated"
    colocated = "colocated"


class IngressMode(StrEnum):
    direct = "direct"
    proxy = "proxy"


Model = Annotated[
    str,
    typer.Argument(
        help="A folder with config.json, tokenizer and safetensors; a Hugging Face hub id; or "
        "[bold]quickstart[/bold], the small translation model that comes with Tandem."
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        help="host:port of a running server's gRPC endpoint. Without it the model runs in this process.",
        show_default=False,
    ),
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate.", show_default="the model's")]
Temperature = Annotated[
    float | None,
    typer.Option(help="0 is greedy; higher is more varied.", show_default="the model's, usually greedy"),
]


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Tandem's errors are for the user to read, not to trace."""
    try:
        yield
    except TandemError as error:
        err.print(f"[red]{type(error).__name__}[/red] {error}", highlight=False)
        raise typer.Exit(1) from None


@app.command()
def serve(
    model: Model = "quickstart",
    *,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model.", show_default="MODEL")
    ] = None,
    host: Annotated[str, typer.Option(help="Address HTTP binds to.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="OpenAI- and LibreTranslate-compatible HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="tandem.v1.InferenceService.")] = 9000,
    placement: Annotated[
        Placement,
        typer.Option(
            help="disaggregated: encoders and decoders are workers of their own and scale apart. "
            "colocated: each decoder encodes by itself; better for small encoders or a single GPU."
        ),
    ] = Placement.disaggregated,
    encoders: Annotated[
        str, typer.Option(help="Encoder replicas: a number, or [bold]a..b[/bold] to scale automatically.")
    ] = "1",
    decoders: Annotated[str, typer.Option(help="Decoder replicas: a number, or [bold]a..b[/bold].")] = "1",
    ingress: Annotated[
        IngressMode,
        typer.Option(
            help="direct: the ingress replicas listen themselves, one hop less. proxy: Ray Serve's proxies, "
            "on every node, as on Kubernetes."
        ),
    ] = IngressMode.direct,
    ingress_replicas: Annotated[
        int, typer.Option(help="Ingress replicas (tokenizer, router); in direct mode each has its own port.")
    ] = 1,
    tensor_parallel_size: Annotated[
        int,
        typer.Option("--tensor-parallel-size", "--tp", help="GPUs (or processes) a decoder is split over."),
    ] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_num_seqs: Annotated[int, typer.Option(help="Sequences a decoder generates at once.")] = 64,
    kv_cache_gib: Annotated[
        float | None,
        typer.Option(help="K/V memory of each shard, in GiB.", show_default="as much as is useful and there"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster to join, or 'auto'.", show_default="start one here"),
    ] = None,
) -> None:
    """Serve MODEL over gRPC and HTTP until Ctrl-C, which lets running requests finish.

    [bold]Examples[/bold]

      tandem serve                                    the bundled model
      tandem serve google/flan-t5-large --decoders 1..4
      tandem serve ./my-t5 --placement colocated --tp 2

    Try it:  curl localhost:8000/v1/completions -H 'content-type: application/json' \\
             -d '{"prompt": "translate English to French: Good morning."}'
    """
    with _errors_shown():
        from tandem.cluster import launch
        from tandem.cluster.config import ServeConfig

        min_encoders, max_encoders = _replicas(encoders, "--encoders")
        min_decoders, max_decoders = _replicas(decoders, "--decoders")
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        config = ServeConfig(
            model=model,
            served_model_name=name,
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            placement=placement.value,
            min_encoder_replicas=min_encoders,
            max_encoder_replicas=max_encoders,
            min_decoder_replicas=min_decoders,
            max_decoder_replicas=max_decoders,
            ingress_mode=ingress.value,
            ingress_replicas=ingress_replicas,
            tensor_parallel_size=tensor_parallel_size,
            max_num_seqs=max_num_seqs,
            kv_cache_gib=kv_cache_gib,
            **options,
        )
        err.print(f"Starting {config.model_name}: Ray, Serve and the workers …", style="dim")
        with launch.serve(config, address=address) as cluster:
            endpoints = cluster.endpoints()
            err.print(f"[bold]{config.model_name}[/bold] is ready. Ctrl-C ends it.")
            err.print(f"  gRPC  {', '.join(endpoints.grpc)}   tandem.v1.InferenceService", highlight=False)
            http = ", ".join(f"http://{where}" for where in endpoints.http)
            err.print(f"  HTTP  {http}   /v1/completions /translate /health /metrics", highlight=False)
            _wait_for_a_signal()
            err.print("Finishing running requests …", style="dim")


def _wait_for_a_signal() -> None:
    """Until Ctrl-C or SIGTERM; from then on both act as usual, so that a second one ends at once."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (SIGINT, SIGTERM)}
    asked.wait()
    for number, handler in before.items():
        signal.signal(number, handler)


def _replicas(text: str, option: str) -> tuple[int, int | None]:
    """`3` → (3, None); `1..4` → (1, 4)."""
    low, dots, high = text.partition("..")
    if not low.isdigit() or (dots and not high.isdigit()):
        raise typer.BadParameter(f"expected a number or a..b, got {text!r}", param_hint=option)
    return int(low), int(high) if dots else None


@app.command()
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Encoder prompts.", show_default="lines of standard input")
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="As for serve.")] = "quickstart",
    server: Server = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text as it grows.")] = False,
) -> None:
    """Generate from each PROMPT; one answer a line, in order.

    [bold]Examples[/bold]

      tandem generate "translate English to German: Where is the station?"
      tandem generate --server localhost:9000 --stream < prompts.txt
    """
    with _errors_shown():
        params = {"max_tokens": max_tokens, "temperature": temperature}
        _answer(_lines(prompts), model, server, params, stream)


@app.command()
def translate(
    sentences: Annotated[
        list[str] | None, typer.Argument(help="English sentences.", show_default="lines of standard input")
    ] = None,
    *,
    to: Annotated[str, typer.Option(help="Target language code, such as fr or de.")] = "fr",
    source: Annotated[str, typer.Option("--from", help="Source language code.")] = "en",
    model: Annotated[
        str, typer.Option(help="As for serve; its config declares its languages.")
    ] = "quickstart",
    server: Server = None,
    max_tokens: MaxTokens = None,
) -> None:
    """Translate each SENTENCE with the model's own task prefix; one translation a line, in order.

    [bold]Example[/bold]

      tandem translate --to de "I am happy." "Where do you live?"
    """
    with _errors_shown():
        from tandem.workers.checkpoint import resolve
        from tandem.workers.model_info import ModelInfo

        prefixes = ModelInfo.read(resolve(model), model).task_prefixes
        prefix = prefixes.get(f"translation_{source}_to_{to}")
        if prefix is None:
            known = ", ".join(task for task in prefixes if task.startswith("translation_")) or "none"
            raise InvalidRequest(
                f"{model} declares no translation {source} to {to}; it has: {known}", field="to"
            )
        prompts = (prefix + line for line in _lines(sentences))
        _answer(prompts, model, server, {"max_tokens": max_tokens, "temperature": 0.0}, stream=False)


@app.command()
def demo() -> None:
    """Start a cluster with the bundled model, send it real sentences over gRPC and HTTP, and stop it."""
    with _errors_shown():
        from tandem.demo import run

        run(Console())


def _lines(arguments: list[str] | None) -> list[str]:
    if arguments:
        return arguments
    if sys.stdin.isatty():
        err.print("Reading standard input, one prompt a line; end with Ctrl-D.", style="dim")
    return [line.rstrip("\n") for line in sys.stdin if line.strip()]


def _answer(
    lines: list[str] | Iterator[str], model: str, server: str | None, params: dict[str, Any], stream: bool
) -> None:
    from tandem.params import SamplingParams

    sampling = SamplingParams(**params)
    prompts: list[Prompt] = list(lines)
    if server is not None:
        from tandem.client import Client

        with Client(server) as client:
            if stream:
                for prompt in prompts:
                    _show(client.stream(prompt, sampling))
            else:
                for output in client.generate_many(prompts, sampling):
                    print(output.outputs[0].text)
        return
    from tandem.llm import LLM

    with LLM(model) as llm:
        if stream:
            for prompt in prompts:
                _show(llm.stream(prompt, sampling))
        else:
            for output in llm.generate(prompts, sampling):
                print(output.outputs[0].text)


def _show(pieces: Iterator[TextDelta]) -> None:
    for piece in pieces:
        print(piece.text, end="", flush=True)
    print()
