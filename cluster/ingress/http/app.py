"""The HTTP application of the ingress, and the routes that belong to no API of their own."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from tandem.cluster.ingress.http import openai as openai_api
from tandem.cluster.ingress.http import score as score_api
from tandem.cluster.ingress.http.body import read_json, unless_disconnected
from tandem.cluster.ingress.http.errors import add_error_handlers
from tandem.cluster.ingress.http.libretranslate import cors
from tandem.cluster.ingress.http.libretranslate import routes as libretranslate_api
from tandem.cluster.ingress.service import Service
from tandem.errors import InvalidRequest


def build_app(service: Service) -> FastAPI:
    """The ASGI application. It has no documentation pages: they load scripts from elsewhere."""
    app = FastAPI(title="Tandem", openapi_url=None, docs_url=None, redoc_url=None)
    add_error_handlers(app)
    app.add_middleware(cors.OfLibreTranslate)
    apis = [api.routes(service) for api in (openai_api, libretranslate_api, score_api)]
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
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        """{"text" or "prompt": str, "model"?: str} → {"tokens": [int], "count": int, "max_model_len": int}:
        an encoder input, special tokens included."""
        with service.call("http", "tokenize") as call:
            body = await read_json(request, service.config.limits)
            model = body.pop("model", None)
            if model is not None and not isinstance(model, str):
                raise InvalidRequest("must be a string", field="model")
            for name in body.keys() - {"text", "prompt"}:
                raise InvalidRequest("unknown parameter", field=name)
            if len(body) != 1:
                raise InvalidRequest("exactly one of text and prompt is required", field="text")
            [(field, text)] = body.items()
            if not isinstance(text, str):
                raise InvalidRequest("must be a string", field=field)
            ids = await unless_disconnected(request.receive, call.tokenize(text, field=field, model=model))
        return JSONResponse(
            {"tokens": ids, "count": len(ids), "max_model_len": service.request_builder.max_prompt_tokens}
        )

    return app
