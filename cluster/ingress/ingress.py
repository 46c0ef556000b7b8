"""The ingress: one Serve deployment that speaks HTTP and gRPC and contains the router."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from tandem.cluster.background import Background
from tandem.cluster.config import ServeConfig
from tandem.cluster.identity import identity_of
from tandem.cluster.ingress.edge.metrics_server import serve_metrics
from tandem.cluster.ingress.grpc_api import GrpcApi
from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.cluster.ingress.shared_files import SharedFiles
from tandem.cluster.ingress.spare import keep_spare
from tandem.cluster.listening import Listening
from tandem.cluster.router.router import Router
from tandem.cluster.serve_compat.direct_ingress import hold_early_requests, reuse_http_port
from tandem.cluster.serve_compat.refusals import quiet_refusals
from tandem.cluster.telemetry import logs, traces
from tandem.workers.models.model_folder import resolve
from tandem.workers.requests.request_builder import RequestBuilder


@serve.ingress()
class Ingress(GrpcApi):
    """A replica; `app.application` makes the deployment. `encoder` is None where decoders encode by
    themselves."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: ServeConfig,
        encoder: DeploymentHandle[Any] | None,
        decoder: DeploymentHandle[Any],
    ) -> None:
        logs.start(config.log_format, calls=config.call_log)
        quiet_refusals()
        if config.ingress_mode == "direct":
            reuse_http_port()
            hold_early_requests()
        request_builder = await asyncio.to_thread(load_request_builder, config)
        identity = await asyncio.to_thread(identity_of, config)
        self._router = Router(config, identity, encoder, decoder)
        await self._router.start()
        context = serve.get_replica_context()
        files = SharedFiles(context.app_name)
        replica = context.replica_id.unique_id
        self._traces = traces.start(config.otlp_endpoint, model=config.model_name, replica=replica)
        self._service = Service(config, request_builder, self._router, replica, files)
        self._metrics: asyncio.Server | None = None
        if config.metrics_port is not None:
            listening, text = Listening.of_environment(), self._service.metrics.text
            self._metrics = await serve_metrics(config.host, config.metrics_port, listening, text)
        self._background = Background()
        if config.spare_ingress:
            self._background.start(keep_spare(), "start a spare ingress")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this once the constructor is done."""
        return build_app(self._service)

    async def drain(self) -> None:
        """Refuses new requests; returns when the accepted ones have ended. `launch` calls it."""
        await self._router.drain()

    async def __del__(self) -> None:
        """Serve awaits this when the replica stops, after its requests have ended or their grace is over."""
        if hasattr(self, "_background"):
            await self._background.close()
        if hasattr(self, "_router"):  # else the constructor failed
            await self._router.close()
        if getattr(self, "_traces", None) is not None:
            await asyncio.to_thread(self._traces.shutdown)
        if hasattr(self, "_metrics") and self._metrics is not None:
            self._metrics.close()


def load_request_builder(config: ServeConfig) -> RequestBuilder:
    """What reads clients' requests, from all files of the model but its weights. Raises ModelLoadError."""
    return RequestBuilder.load(
        resolve(config.model),
        config.model_name,
        config.limits,
        config.override_generation_config,
        config.tokenizer,
    )
