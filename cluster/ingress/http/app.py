"""The HTTP application of the ingress, and the routes that belong to no API of their own."""

from __future__ import annotations

from functools import cache

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from tandem.cluster.ingress.edge.cors import Cors
from tandem.cluster.ingress.edge.key_check import KeyCheck
from tandem.cluster.ingress.http import openai as openai_api
from tandem.cluster.ingress.http import score as score_api
from tandem.cluster.ingress.http import tokenize as tokenize_api
from tandem.cluster.ingress.http.errors import add_error_handlers
from tandem.cluster.ingress.http.libretranslate import routes as libretranslate_api
from tandem.cluster.ingress.http.openapi import document
from tandem.cluster.ingress.http.page import routes as page
from tandem.cluster.ingress.http.speech import audio as audio_api
from tandem.cluster.ingress.http.speech import realtime as realtime_api
from tandem.cluster.ingress.service import Service
from tandem.cluster.telemetry import disk


def build_app(service: Service) -> FastAPI:
    """The ASGI application. FastAPI's own documentation pages, which load scripts from elsewhere, are left
    out: the page has its own."""
    app = FastAPI(title="Tandem", openapi_url=None, docs_url=None, redoc_url=None)
    add_error_handlers(app)
    app.add_middleware(KeyCheck, service=service)
    app.add_middleware(
        Cors, origins=service.config.allow_origins
    )  # before the keys: browsers ask without one whether they may
    apis = [
        api.routes(service)
        for api in (openai_api, audio_api, realtime_api, libretranslate_api, score_api, tokenize_api)
    ]
    for api in apis:
        app.include_router(api)

    if service.config.ui:
        app.include_router(page.routes())

    @app.get("/openapi.json")
    async def openapi() -> Response:
        """This description of the API."""
        return JSONResponse(described())

    @app.get("/health")
    async def health() -> Response:
        """Whether requests would be answered now: 200, or 503 and why not."""
        problem = await service.health.problem()
        if problem is not None:
            return JSONResponse({"status": "unhealthy", "reason": problem}, status_code=503)
        warning = disk.problem()
        return JSONResponse({"status": "ok"} if warning is None else {"status": "ok", "warning": warning})

    if service.config.metrics_port is None:

        @app.get("/metrics")
        async def metrics() -> Response:
            """Requests, tokens, latencies and workers, for Prometheus."""
            return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    described = cache(lambda: document(app.routes, service.config.limits))
    return app
