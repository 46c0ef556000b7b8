"""`tandem batch`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tandem.cli.options import (
    AddressOption,
    DecodersOption,
    DeviceOption,
    DtypeOption,
    EncodersOption,
    KvCacheOption,
    MaxNumSeqsOption,
    MaxTokensOption,
    ModelOption,
    ParamsOption,
    Placement,
    PlacementOption,
    TensorParallelOption,
    err,
    errors_shown,
    ingress_mode,
    model_info,
    serve_config,
)


def batch(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, a JSON object a line.")],
    sink: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Where the answers go.")],
    *,
    server: Annotated[
        str | None,
        typer.Option(
            help="host:port of a running server's gRPC endpoint; for beam search with it, say num_beams. "
            "Without it a cluster is started, as the options below say.",
            show_default=False,
        ),
    ] = None,
    param: ParamsOption = None,
    max_tokens: MaxTokensOption = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests sent ahead of their answers.")] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds an answer may take.")] = 600,
    model: ModelOption = "quickstart",
    placement: PlacementOption = Placement.colocated,
    encoders: EncodersOption = "1",
    decoders: DecodersOption = "1",
    tensor_parallel_size: TensorParallelOption = 1,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    max_num_seqs: MaxNumSeqsOption = 64,
    kv_cache_gib: KvCacheOption = None,
    address: AddressOption = None,
) -> None:
    """Answer every line of IN.jsonl in OUT.jsonl, in the same order.

    A cluster is started for it, or a running server does it (--server) and
    lets everybody else go first. Workers that die are replaced; nothing is
    lost. After an interruption run the same command again: it goes on.

    A line of IN.jsonl is a prompt and decoding parameters of its own:

      {"prompt": "translate English to French: Hi.", "id": "a", "n": 2}

    Its line in OUT.jsonl has its id, else its line number, and what came:

      {"id": "a", "outputs": [{"text": "Salut.", "finish_reason": "stop", …
      {"id": 2, "error": {"message": "top_q: unknown parameter", …

    [bold]Examples[/bold]

      tandem batch in.jsonl out.jsonl --model google/flan-t5-xl --decoders 8
      tandem batch in.jsonl out.jsonl --server localhost:9000 -p temperature=0
    """
    with errors_shown(), _ends_at_sigterm():
        from tandem.batch import remaining, run
        from tandem.client import AsyncClient
        from tandem.records import assignments, parameters

        given = {} if max_tokens is None else {"max_tokens": max_tokens}
        defaults = given | assignments(param or [])
        # Before a cluster is started for nothing.
        parameters(defaults, beams=False)
        if not remaining(source, sink):
            err.print(f"Every line of {source} is answered in {sink}.", highlight=False)
            return

        async def answer(target: str, beams: bool = False) -> None:
            async with AsyncClient(target) as client:
                done = await run(
                    source,
                    sink,
                    client,
                    defaults=defaults,
                    beams=beams,
                    concurrency=concurrency,
                    timeout_s=timeout,
                )
            errors = f", {done.refused} errors" if done.refused else ""
            err.print(f"{done.answered} answers, {done.tokens} tokens{errors}.", highlight=False)

        try:
            if server is not None:
                asyncio.run(answer(server))
                return
            from tandem.cluster import launch

            http_port, grpc_port = launch.free_ports("127.0.0.1", 2)
            config = serve_config(
                model=model,
                placement=placement,
                encoders=encoders,
                decoders=decoders,
                tensor_parallel_size=tensor_parallel_size,
                dtype=dtype,
                device=device,
                max_num_seqs=max_num_seqs,
                kv_cache_gib=kv_cache_gib,
                http_port=http_port,
                grpc_port=grpc_port,
                ingress_mode=ingress_mode(address),
            )
            beams = model_info(model).defaults.beams
            err.print(f"Starting {config.model_name}: Ray, Serve and the workers …", style="dim")
            with launch.serve(config, address=address) as cluster:
                asyncio.run(answer(cluster.endpoints().grpc[0], beams))
        except KeyboardInterrupt:
            err.print(f"Interrupted. {sink} holds what is done; the same command goes on from there.")
            raise typer.Exit(130) from None


@contextlib.contextmanager
def _ends_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: in good order."""
    before: Any = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
