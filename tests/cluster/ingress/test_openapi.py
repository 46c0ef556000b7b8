"""`/openapi.json`: valid, complete, and true: what it describes is accepted."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fake_service import connected
from fastapi.openapi.models import OpenAPI
from fastapi.routing import APIRoute

from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.http.page.routes import FILES
from tandem.cluster.ingress.service import Service

NEEDED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the cat", "max_tokens": 4},
    "/v1/embeddings": {"input": "the cat"},
    "/score": {"prompt": "the cat", "targets": ["the mat"]},
    "/tokenize": {"text": "the cat"},
    "/detokenize": {"tokens": [3, 4]},
}


@pytest.fixture
async def described(service: Service) -> dict[str, Any]:
    async with connected(service) as http:
        found: dict[str, Any] = (await http.get("/openapi.json")).json()
    return found


def test_it_is_openapi(described: dict[str, Any]) -> None:
    OpenAPI.model_validate(described)
    names = [one["operationId"] for item in described["paths"].values() for one in item.values()]
    assert len(names) == len(set(names))
    text = json.dumps(described)
    assert "$defs" not in text
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in described["components"]["schemas"]


def test_it_has_every_route_but_the_pages(service: Service, described: dict[str, Any]) -> None:
    def flat(routes: Any) -> set[str]:
        found: set[str] = set()
        for route in routes:
            inner = getattr(route, "original_router", None)
            if isinstance(route, APIRoute):
                found.add(route.path.replace(":path}", "}"))
            elif inner is not None:
                found |= flat(inner.routes)
        return found

    there = flat(build_app(service).routes)
    assert len(there) > 20
    assert set(described["paths"]) == there - set(FILES)


def test_every_body_is_described(described: dict[str, Any]) -> None:
    for path, item in described["paths"].items():
        if "post" in item and path != "/suggest":  # which refuses whatever it is sent
            content = item["post"]["requestBody"]["content"]
            assert all(one["schema"]["properties"] for one in content.values()), path
        if "get" in item:
            assert "requestBody" not in item["get"]


@pytest.mark.parametrize("path", NEEDED)
async def test_every_field_is_one(http: httpx.AsyncClient, described: dict[str, Any], path: str) -> None:
    """A field that is not known is refused by name; one that is described never is."""
    (content,) = described["paths"][path]["post"]["requestBody"]["content"].values()
    properties, needed = content["schema"]["properties"], NEEDED[path]
    assert needed.keys() <= properties.keys()
    assert set(content["schema"].get("required", ())) <= needed.keys()
    assert (await http.post(path, json=needed)).status_code == 200
    for name, schema in properties.items():
        value = schema.get("default", None)
        answer = await http.post(path, json={name: value, **needed})
        assert answer.status_code == 200 or "unknown" not in answer.text, (name, answer.text)
    refused = await http.post(path, json={**needed, "no_such_field": 1})
    assert refused.status_code == 400


async def test_its_examples_are_answered(http: httpx.AsyncClient, described: dict[str, Any]) -> None:
    for path in NEEDED:
        example = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        answer = await http.post(path, json=example)
        assert answer.status_code == 200, (path, answer.text)
