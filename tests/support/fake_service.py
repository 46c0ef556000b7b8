"""The ingress' service over a fake router, and a client of its HTTP application: no Ray, no sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import httpx
from fake_router import FakeRouter

from tandem.cluster.config import ServeConfig
from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Router, Service
from tandem.limits import Limits
from tandem.workers.requests.request_builder import RequestBuilder

ANSWER = "le chat est sur le tapis"  # what the ingress' tests have routers answer
LIMITS = Limits(
    message_bytes=20_000, media_bytes=10_000, encoder_tokens=64, decoder_tokens=64, prompts=8, timeout_s=60
)


def make_service(
    folder: Path, request_builder: RequestBuilder, router: FakeRouter, limits: Limits = LIMITS
) -> Service:
    """A service of the model `tiny`."""
    config = replace(ServeConfig(model=str(folder)), served_model_name="tiny", limits=limits)
    # Its routed_requests are the requests themselves, which the service hands back unseen.
    return Service(config, request_builder, cast("Router", router), "replica-1")


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client. Errors nobody expected are answered with 500 and then raised for the server's log."""
    transport = httpx.ASGITransport(build_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
        yield client
