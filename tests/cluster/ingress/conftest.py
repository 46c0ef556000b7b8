"""The ingress' service and its HTTP application over a fake router: no Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import httpx
import pytest
from fake_router import FakeRouter
from tiny_t5 import write_model

from tandem.cluster.config import ServeConfig
from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Router, Service
from tandem.limits import Limits
from tandem.workers.requests.request_builder import RequestBuilder

ANSWER = "le chat est sur le tapis"
LIMITS = Limits(
    message_bytes=20_000, media_bytes=10_000, encoder_tokens=64, decoder_tokens=64, prompts=8, timeout_s=60
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def request_builder(folder: Path) -> RequestBuilder:
    return RequestBuilder.load(folder, "tiny", LIMITS)


@pytest.fixture
def router(request_builder: RequestBuilder) -> FakeRouter:
    return FakeRouter(request_builder.tokenize(ANSWER)[:-1])


@pytest.fixture
def service(folder: Path, request_builder: RequestBuilder, router: FakeRouter) -> Service:
    config = replace(ServeConfig(model=str(folder)), served_model_name="tiny", limits=LIMITS)
    # Its routed_requests are the requests themselves, which the service hands back unseen.
    return Service(config, request_builder, cast("Router", router), "replica-1")


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    # Errors nobody expected are answered with 500 and then raised for the server's log.
    transport = httpx.ASGITransport(build_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
        yield client
