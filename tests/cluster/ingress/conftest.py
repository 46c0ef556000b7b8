"""The ingress' service and its HTTP application over a fake router: no Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fake_router import FakeRouter
from fake_service import LIMITS, connected, make_service
from tiny_t5 import write_model

from tandem.cluster.ingress.service import Service
from tandem.workers.requests.request_builder import RequestBuilder

ANSWER = "le chat est sur le tapis"


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
    return make_service(folder, request_builder, router)


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connected(service) as client:
        yield client
