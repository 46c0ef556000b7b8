"""`tandem serve`."""

from __future__ import annotations

import ipaddress
import signal
import threading
from enum import StrEnum
from pathlib import Path
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
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="A file of keys, as [bold]tandem key[/bold] makes them: nobody else may call. One more key "
            "may be in the environment, as TANDEM_API_KEY.",
            show_default=False,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="The chain of a certificate, PEM: HTTP and gRPC speak TLS.", show_default=False),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="The certificate's key, PEM.", show_default=False)
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Whose web pages browsers let call, as often as you like: https://app.example, or *.",
            show_default=False,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="/metrics there, without a key.", show_default="at --http-port"),
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
        from tandem.cluster.keys import Keys, hash_in_environment

        config = cluster.config(
            model=model,
            placement=placement,
            limit=limit,
            served_model_name=name,
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            api_keys=None if api_keys is None else str(api_keys.resolve()),
            tls_cert=None if tls_cert is None else str(tls_cert.resolve()),
            tls_key=None if tls_key is None else str(tls_key.resolve()),
            allow_origins=allow_origin or [],
            metrics_port=metrics_port,
            ingress_mode=ingress.value if ingress else ingress_mode(cluster.address),
            override_generation_config=assignments(default or []),
            max_queue_wait_s=max_queue_wait,
            engine_silence_s=engine_silence,
        )
        keys = Keys(config.api_keys, hash_in_environment())  # a wrong file fails before Ray starts
        if not keys.asked_for and not _is_loopback(config.host):
            err.print(f"Anybody who reaches {config.host} may use this server: see --api-keys.")
        err.print(f"Starting {config.model_name}: Ray, Serve and the workers …", style="dim")
        with launch.serve(config, address=cluster.address) as running:
            endpoints = running.endpoints()
            err.print(f"{config.model_name} is ready. Ctrl-C ends it.", style="bold")
            err.print(f"  gRPC  {', '.join(endpoints.grpc)}   tandem.v1.InferenceService")
            scheme = "http" if tls_cert is None else "https"
            http = ", ".join(f"{scheme}://{where}" for where in endpoints.http)
            err.print(f"  HTTP  {http}   /v1/completions /translate /health /metrics")
            _wait_for_a_signal()
            err.print("Finishing running requests …", style="dim")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _wait_for_a_signal() -> None:
    """Until Ctrl-C or SIGTERM; from then on both act as usual, so that a second one ends at once."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (SIGINT, SIGTERM)}
    asked.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
