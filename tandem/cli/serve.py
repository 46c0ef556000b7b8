"""`tandem serve`."""

from __future__ import annotations

import signal
import threading
from enum import StrEnum
from signal import SIGINT, SIGTERM
from typing import Annotated

import typer

from tandem.cli.options import (
    ClusterOptions,
    LimitsOption,
    ModelArgument,
    OverridesOption,
    Placement,
    PlacementOption,
    err,
    errors_shown,
    ingress_mode,
    with_cluster_options,
)


class IngressMode(StrEnum):
    direct = "direct"
    proxy = "proxy"


@with_cluster_options
def serve(
    model: ModelArgument = "quickstart",
    *,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model.", show_default="MODEL")
    ] = None,
    host: Annotated[str, typer.Option(help="Address that HTTP and gRPC bind to.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="OpenAI- and LibreTranslate-compatible HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="tandem.v1.InferenceService.")] = 9000,
    placement: PlacementOption = Placement.disaggregated,
    ingress: Annotated[
        IngressMode | None,
        typer.Option(
            help="direct: the ingress replicas listen themselves, one hop less. proxy: Ray Serve's proxies, "
            "on every node, as on Kubernetes.",
            show_default="direct; with --address proxy",
        ),
    ] = None,
    default: OverridesOption = None,
    limit: LimitsOption = None,
    max_queue_wait: Annotated[
        float,
        typer.Option(help="Refuse a request at once that would wait longer for a decoder, in seconds."),
    ] = 30.0,
    engine_silence: Annotated[
        float,
        typer.Option(help="Move requests away from a decoder that is not heard of for so many seconds."),
    ] = 5.0,
    cluster: ClusterOptions,
) -> None:
    """Serve MODEL over gRPC and HTTP until Ctrl-C, which lets running requests finish.

    [bold]Examples[/bold]

      tandem serve                                    the bundled model
      tandem serve google/flan-t5-large --decoders 1..4
      tandem serve ./my-t5 --placement colocated --tp 2

    Try it:  curl localhost:8000/v1/completions -H 'content-type: application/json' \\
             -d '{"prompt": "translate English to French: Good morning."}'
    """
    with errors_shown():
        from tandem.batch.records import assignments
        from tandem.cluster import launch

        config = cluster.config(
            model=model,
            placement=placement,
            limit=limit,
            served_model_name=name,
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            ingress_mode=ingress.value if ingress else ingress_mode(cluster.address),
            override_generation_config=assignments(default or []),
            max_queue_wait_s=max_queue_wait,
            engine_silence_s=engine_silence,
        )
        err.print(f"Starting {config.model_name}: Ray, Serve and the workers …", style="dim")
        with launch.serve(config, address=cluster.address) as running:
            endpoints = running.endpoints()
            err.print(f"{config.model_name} is ready. Ctrl-C ends it.", style="bold")
            err.print(f"  gRPC  {', '.join(endpoints.grpc)}   tandem.v1.InferenceService")
            http = ", ".join(f"http://{where}" for where in endpoints.http)
            err.print(f"  HTTP  {http}   /v1/completions /translate /health /metrics")
            _wait_for_a_signal()
            err.print("Finishing running requests …", style="dim")


def _wait_for_a_signal() -> None:
    """Until Ctrl-C or SIGTERM; from then on both act as usual, so that a second one ends at once."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (SIGINT, SIGTERM)}
    asked.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
