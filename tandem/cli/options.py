"""What several commands share: options, the way errors are shown. Messages go to stderr, answers to
stdout."""

from __future__ import annotations

import inspect
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tandem.cli.signals import exit_code
from tandem.errors import InvalidRequest, TandemError, renaming_fields

if TYPE_CHECKING:
    from tandem.client import Client
    from tandem.cluster.config import ServeConfig
    from tandem.workers.requests.model_info import ModelInfo

# Whole lines, which logs and `grep` want, as they are: what a user or a server said may look like markup.
err = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A folder with config.json, tokenizer and safetensors; a Hugging Face hub id, as it is or "
        "@ a branch, tag or commit; or "
        "[bold]quickstart[/bold], the small translation model that comes with Tandem, "
        "[bold]quickstart-speech[/bold], the small speech model, or [bold]quickstart-ocr[/bold], the small "
        "reader."
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
ApiKeyEnvOption = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="The environment variable that holds the key which the --server asks for."
    ),
]
API_KEY_ENV = "TANDEM_API_KEY"
FileOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Read inputs from this file, one a line.", show_default=False),
]
JsonLinesOption = Annotated[
    bool,
    typer.Option("--jsonl", help="One JSON object a line, for texts that may hold line breaks themselves."),
]
TaskOption = Annotated[
    str | None,
    typer.Option(help="One that the model's config declares, such as summarization.", show_default=False),
]
SourceLanguageOption = Annotated[
    str | None,
    typer.Option(
        "--from", help="The source language of a translation, as the model calls it.", show_default=False
    ),
]
TargetLanguageOption = Annotated[
    str | None, typer.Option("--to", help="The language of the answers.", show_default=False)
]
TruncateOption = Annotated[
    bool,
    typer.Option(
        "--truncate",
        help="Read what the model can of an input that is too long, instead of refusing it: its beginning; "
        "a decoder-only model its end. For another length: -p truncate_prompt_tokens=128",
    ),
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
OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--override-generation-config",
        "--default",
        metavar="NAME=VALUE",
        help="A decoding default before the model's own, as often as you like: --default num_beams=4",
        show_default=False,
    ),
]
LimitsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help="What clients may ask for at most, as often as you like: --limit n=4 --limit timeout_s=60",
        show_default=False,
    ),
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
QuantizationOption = Annotated[
    str | None,
    typer.Option(help="int8: the projections' weights in 8 bits, on a CPU.", show_default="none"),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
TensorParallelOption = Annotated[
    int, typer.Option("--tensor-parallel-size", "--tp", help="GPUs (or processes) a decoder is split over.")
]

MaxNumSeqsOption = Annotated[int, typer.Option(help="Sequences a decoder generates at once.")]
DraftTokensOption = Annotated[
    int,
    typer.Option(
        min=0,
        help="Tokens guessed from the input in a step where decoding is greedy; no answer changes. 0: none.",
    ),
]
KvCacheOption = Annotated[
    float | None,
    typer.Option(help="K/V memory of each shard, in GiB.", show_default="as much as is useful and there"),
]


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other field of the cluster's configuration, as often as you like: --set page_size=16 "
        "--set cuda_graphs=false",
        show_default=False,
    ),
]


class SplitAt(StrEnum):
    sentence = "sentence"
    line = "line"
    none = "none"


SplitOption = Annotated[
    SplitAt,
    typer.Option(
        help="Translate sentence by sentence, as many sentences of a line together as the model is made for, "
        "or each text whole."
    ),
]


class Placement(StrEnum):
    disaggregated = "disaggregated"
    colocated = "colocated"


PlacementOption = Annotated[
    Placement,
    typer.Option(
        help="disaggregated: encoders and decoders are workers of their own and scale apart. "
        "colocated: each decoder encodes by itself; better for small encoders or a single GPU."
    ),
]
EncodersOption = Annotated[
    str, typer.Option(help="Encoder replicas: a number, or [bold]a..b[/bold] to scale automatically.")
]
DecodersOption = Annotated[str, typer.Option(help="Decoder replicas: a number, or [bold]a..b[/bold].")]
IngressReplicasOption = Annotated[
    int, typer.Option(help="Ingress replicas (tokenizer, router); in direct mode each has its own port.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster to join, or 'auto'.", show_default="start one here"),
]


def connect(server: str, api_key_env: str) -> Client:
    """A client of a server's gRPC endpoint."""
    from tandem.client import Client

    return Client(server, api_key=os.environ.get(api_key_env))


def model_info(model: str) -> ModelInfo:
    """What is known of a model without its tokenizer and its weights."""
    from tandem.workers.models.model_folder import resolve
    from tandem.workers.requests.model_info import ModelInfo

    return ModelInfo.read(resolve(model), model)


# Options whose name is not that of the field of `ServeConfig` they set.
_OPTIONS = {
    "min_encoder_replicas": "encoders",
    "max_encoder_replicas": "encoders",
    "min_decoder_replicas": "decoders",
    "max_decoder_replicas": "decoders",
    "served_model_name": "name",
    "ingress_mode": "ingress",
    "limits": "limit",
    "allow_origins": "allow-origin",
    "override_generation_config": "default",
    "max_queue_wait_s": "max_queue_wait",
    "engine_silence_s": "engine_silence",
}


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options of the commands that start a cluster: see `with_cluster_options`."""

    encoders: EncodersOption = "1"
    decoders: DecodersOption = "1"
    ingress_replicas: IngressReplicasOption = 1
    tensor_parallel_size: TensorParallelOption = 1
    dtype: DtypeOption = "auto"
    device: DeviceOption = "auto"
    quantization: QuantizationOption = None
    max_num_seqs: MaxNumSeqsOption = 64
    kv_cache_gib: KvCacheOption = None
    draft_tokens: DraftTokensOption = 7
    settings: SetOption = None
    address: AddressOption = None

    def config(self, *, placement: Placement, limit: list[str] | None = None, **fields: Any) -> ServeConfig:
        """The cluster's configuration, from these options and the other fields of `ServeConfig`.

        Raises InvalidRequest, whose field is the option's name.
        """
        from tandem.batch.records import assignments
        from tandem.cluster.config import parse_args

        min_encoders, max_encoders = _replicas(self.encoders, "--encoders")
        min_decoders, max_decoders = _replicas(self.decoders, "--decoders")
        settings = assignments(self.settings or [])
        values: dict[str, Any] = {
            "placement": placement.value,
            "min_encoder_replicas": min_encoders,
            "max_encoder_replicas": max_encoders,
            "min_decoder_replicas": min_decoders,
            "max_decoder_replicas": max_decoders,
            "ingress_replicas": self.ingress_replicas,
            "tensor_parallel_size": self.tensor_parallel_size,
            "dtype": self.dtype,
            "device": self.device,
            "quantization": self.quantization,
            "max_num_seqs": self.max_num_seqs,
            "kv_cache_gib": self.kv_cache_gib,
            "draft_tokens": self.draft_tokens,
            "limits": assignments(limit or []),
            **fields,
        }
        for name in settings.keys() & values.keys():
            raise InvalidRequest(f"is set by {_option(name)}, if at all", field=f"--set {name}")

        def option(field: str) -> str:
            return f"--set {field}" if field.partition(".")[0] in settings else _option(field)

        with renaming_fields(option):
            return parse_args({**values, **settings})


def with_cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command an option for each field of its argument `cluster`, after its own options. Typer knows
    arguments of plain types only."""
    options = inspect.signature(ClusterOptions, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters

    @wraps(command)
    def expanded(**values: Any) -> None:
        command(cluster=ClusterOptions(**{name: values.pop(name) for name in options}), **values)

    arguments = [*(own[name] for name in own if name != "cluster"), *options.values()]
    expanded.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    expanded.__annotations__ = {argument.name: argument.annotation for argument in arguments}
    return expanded


def ingress_mode(address: str | None) -> str:
    """How a cluster listens by default: `direct` needs one that was started for it."""
    return "direct" if address is None else "proxy"


def _option(field: str) -> str:
    """The option that sets a field of `ServeConfig`: `--name`, or `--limit NAME` for a field within one."""
    field, _, name = field.partition(".")
    return f"--{_OPTIONS.get(field, field).replace('_', '-')} {name}".rstrip()


def _replicas(text: str, option: str) -> tuple[int, int | None]:
    """`3` → (3, None); `1..4` → (1, 4)."""
    low, dots, high = text.partition("..")
    if not low.isdigit() or (dots and not high.isdigit()):
        raise typer.BadParameter(f"expected a number or a..b, got {text!r}", param_hint=option)
    return int(low), int(high) if dots else None


@contextmanager
def errors_shown(interrupted: str = "Interrupted.") -> Iterator[None]:
    """Tandem's errors are for the user to read, not to trace. `interrupted` is said where a signal ends the
    command."""
    try:
        yield
    except typer.Exit as ended:
        if exit_code() in (None, ended.exit_code):  # of a signal, it has been said
            raise
    except TandemError as error:
        if exit_code() is None:
            show_error(error)
            raise typer.Exit(1) from None
    except KeyboardInterrupt:
        pass
    except BaseException:  # a signal's clean-up may fail in any way
        if exit_code() is None:
            raise
    else:
        if exit_code() is None:
            return
    err.print(interrupted)
    raise typer.Exit(exit_code() or 128 + signal.SIGINT)


class Stages:
    """The stages of a start, each a line with the seconds since it began."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __call__(self, stage: str) -> None:
        err.print(f"  {time.monotonic() - self._begun:5.1f} s  {stage} …", style="dim")


def show_error(error: TandemError, where: str = "") -> None:
    """An error's line on standard error: where it is, such as "line 3: ", its class and what it says."""
    err.print(Text.assemble(where, (type(error).__name__, "red"), f" {error}"))
