"""The HTTP application of the ingress, and the routes that belong to no API of their own."""

from __future__ import annotations

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from tandem.cluster.ingress.edge.cors import Cors
from tandem.cluster.ingress.edge.key_check import KeyCheck
from tandem.cluster.ingress.http import openai as openai_api
from tandem.cluster.ingress.http import score as score_api
from tandem.cluster.ingress.http import tokenize as tokenize_api
from tandem.cluster.ingress.http.errors import add_error_handlers
from tandem.cluster.ingress.http.libretranslate import routes as libretranslate_api
from tandem.cluster.ingress.http.speech import audio as audio_api
from tandem.cluster.ingress.http.speech import realtime as realtime_api
from tandem.cluster.ingress.service import Service
from tandem.cluster.telemetry import disk


def build_app(service: Service) -> FastAPI:
    """The ASGI application. It has no documentation pages: they load scripts from elsewhere."""
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

    @app.get("/")
    async def endpoints() -> Response:
        """What a browser shows: the model and the endpoints."""
        routes = [route for api in (*apis, app) for route in api.routes if isinstance(route, APIRoute)]
        asked = [f"{method} {route.path}" for route in routes for method in sorted(route.methods or ())]
        return JSONResponse({"model": service.model.id, "endpoints": list(dict.fromkeys(asked))})

    @app.get("/health")
    async def health() -> Response:
        problem = await service.health.problem()
        if problem is not None:
            return JSONResponse({"status": "unhealthy", "reason": problem}, status_code=503)
        warning = disk.problem()
        return JSONResponse({"status": "ok"} if warning is None else {"status": "ok", "warning": warning})

    if service.config.metrics_port is None:

        @app.get("/metrics")
        async def metrics() -> Response:
            return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app
