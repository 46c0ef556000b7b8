"""Browsers let pages of the named origins call, and ask without a key whether they may."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_router import FakeRouter
from fake_service import connected, make_service

from tandem.cluster.config import ServeConfig, parse_args
from tandem.cluster.ingress.edge.guard import Guard
from tandem.cluster.ingress.service import Service
from tandem.cluster.keys import Keys, sha256
from tandem.workers.requests.request_builder import RequestBuilder

PAGE = "https://app.example"
BODY = {"model": "tiny", "prompt": "the cat", "max_tokens": 4}


def asks(origin: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }


@pytest.fixture
def service(folder: Path, request_builder: RequestBuilder, router: FakeRouter) -> Service:
    service = make_service(folder, request_builder, router)
    service.config = replace(service.config, allow_origins=(PAGE,))
    service.guard = Guard(Keys(None, sha256("key")))
    return service


async def test_a_named_page_may_call_and_another_may_not(service: Service) -> None:
    async with connected(service) as http:
        allowed = await http.options("/v1/completions", headers=asks(PAGE))
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
        assert (
            await http.options("/v1/completions", headers=asks("https://evil.example"))
        ).status_code == 400
        answer = await http.post(
            "/v1/completions", json=BODY, headers={"Origin": PAGE, "Authorization": "Bearer key"}
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        refused = await http.post("/v1/completions", json=BODY, headers={"Origin": PAGE})
        assert refused.status_code == 401  # which the page may read
        assert refused.headers["access-control-allow-origin"] == PAGE
        assert (await http.options("/translate", headers=asks("https://x.example"))).status_code in (200, 400)
        other = await http.post("/v1/completions", json=BODY, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_without_named_pages_none_may_call(
    folder: Path, request_builder: RequestBuilder, router: FakeRouter
) -> None:
    async with connected(make_service(folder, request_builder, router)) as http:
        assert (await http.options("/v1/completions", headers=asks(PAGE))).status_code == 405


@pytest.mark.parametrize(
    ("given", "origins"),
    [({"allow_origins": f"{PAGE},*"}, (PAGE, "*")), ({"allow_origins": [PAGE], "page_size": 16}, (PAGE,))],
)
def test_origins_are_said_as_text_or_as_a_list(given: dict[str, object], origins: tuple[str, ...]) -> None:
    assert parse_args(given).allow_origins == origins
    assert ServeConfig().allow_origins == ()
