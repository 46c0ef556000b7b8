"""The ingress' service and its HTTP application over a fake router or a speech model's: no Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fake_router import FakeRouter
from fake_service import ANSWER, LIMITS, connected, make_service
from local_router import LocalRouter
from tiny_t5 import write_model
from whisper import make_whisper

from tandem import LLM
from tandem.cluster.ingress.service import Service
from tandem.workers.requests.request_builder import RequestBuilder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model; a file of tests may have another."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A speech model; a file of tests may have another."""
    return make_whisper(tmp_path_factory.mktemp("whisper"), "base", times=True)


@pytest.fixture(scope="module")
def llm(whisper: Path) -> Iterator[LLM]:
    with LLM(str(whisper), dtype="float32") as llm:
        yield llm


@pytest.fixture
def local_router(llm: LLM) -> LocalRouter:
    return LocalRouter(llm._engine)
