"""/translate and /languages as LibreTranslate's clients know them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fake_router import FakeRouter
from libretranslatepy import LibreTranslateAPI

from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.workers.requests.defaults import GenerationDefaults
from tandem.workers.requests.languages import Language
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.requests.tasks import Task, Tasks

SENTENCE = "le chat est sur le tapis"
BODY = {"q": "the cat", "source": "en", "target": "fr"}


async def test_a_text_gets_the_models_prefix(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    for source in ("en", "auto"):
        response = await http.post("/translate", json={**BODY, "source": source, "format": "text"})
        assert response.json() == {"translatedText": SENTENCE}
    expected = tuple(request_builder.tokenize("translate English to French: the cat"))
    assert [request.encoder.token_ids for request in router.requests] == [expected] * 2
    assert {request.decoding.temperature for request in router.requests} == {0.0}


async def test_several_texts(http: httpx.AsyncClient) -> None:
    response = await http.post("/translate", json={**BODY, "q": ["the cat", "a"]})
    assert response.json() == {"translatedText": [SENTENCE, SENTENCE]}


async def test_alternatives_are_different_and_the_same_each_time(http: httpx.AsyncClient) -> None:
    answers = [(await http.post("/translate", json={**BODY, "alternatives": 3})).json() for _ in range(2)]
    assert answers[0] == answers[1]
    texts = [answers[0]["translatedText"], *answers[0]["alternatives"]]
    assert texts[0] == SENTENCE
    assert 1 < len(texts) == len(set(texts)) <= 4
    many = (await http.post("/translate", json={**BODY, "q": ["a", "b"], "alternatives": 2})).json()
    assert len(many["alternatives"]) == 2


async def test_forms(http: httpx.AsyncClient) -> None:
    response = await http.post("/translate", data={**BODY, "api_key": "k", "alternatives": "1"})
    assert response.json()["translatedText"] == SENTENCE
    response = await http.post("/translate", data={**BODY, "q": ["a", "b"]})
    assert response.json() == {"translatedText": [SENTENCE, SENTENCE]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "es"}, "target: 'es' is not one of this model's languages: de, fr"),
        ({"source": "fr"}, "source: 'fr' is not one of this model's languages from which there is"),
        ({"q": []}, "q: 1 to 8 texts, got 0"),
        ({"q": ["a"] * 9}, "q: 1 to 8 texts, got 9"),
        ({"q": 3}, "q"),
        ({"q": "a b c d " * 30, "split": "none"}, "q: has"),
        ({"q": "a", "split": "word"}, "split: Input should be 'none', 'line' or 'sentence'"),
        ({"q": " ", "target": "es"}, "target: 'es' is not one of"),
        ({"format": "html"}, "format"),
        ({"alternatives": 64}, "alternatives"),
        ({"alternatives": -1}, "alternatives"),
        ({"wild": 1}, "wild: unknown parameter"),
    ],
)
async def test_a_bad_value_is_refused_in_libretranslates_shape(
    http: httpx.AsyncClient, change: dict[str, Any], message: str
) -> None:
    response = await http.post("/translate", json={**BODY, **change})
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(message)


async def test_so_are_other_errors(http: httpx.AsyncClient, router: FakeRouter) -> None:
    assert (await http.get("/translate")).json() == {"error": "Method Not Allowed: GET /translate"}
    assert "error" in (await http.post("/translate", content=b"x")).json()
    router.fail(RuntimeError("secret"))
    assert (await http.post("/translate", json=BODY)).json() == {
        "error": "internal error, see the server's log"
    }


async def test_languages(http: httpx.AsyncClient) -> None:
    assert (await http.get("/languages")).json() == [
        {"code": "en", "name": "English", "targets": ["fr", "de"]},
        {"code": "fr", "name": "French", "targets": []},
        {"code": "de", "name": "German", "targets": []},
    ]


def with_tasks(service: Service, prefixes: dict[str, str]) -> httpx.AsyncClient:
    service.request_builder.tasks = Tasks(*with_prefixes(service, prefixes))
    return client_of(service)


def with_prefixes(service: Service, prefixes: dict[str, str]) -> tuple[dict[str, Task], GenerationDefaults]:
    own = service.request_builder.info.defaults
    return {name: Task({"prefix": prefix}, own) for name, prefix in prefixes.items()}, own


def client_of(service: Service) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_app(service))
    return httpx.AsyncClient(transport=transport, base_url="http://tandem")


@pytest.fixture
def own_info(service: Service) -> Iterator[Service]:
    tasks = service.request_builder.tasks
    yield service
    service.request_builder.tasks = tasks


async def test_a_model_without_tasks_says_so(own_info: Service) -> None:
    async with with_tasks(own_info, {"summarization": "summarize: "}) as http:
        response = await http.post("/translate", json=BODY)
        assert response.status_code == 400
        assert response.json() == {"error": "target: this model says nothing of languages"}
        assert (await http.get("/languages")).json() == []


async def test_auto_is_refused_where_it_would_be_a_guess(own_info: Service) -> None:
    tasks = {"translation_en_to_fr": "a: ", "translation_de_to_fr": "b: ", "translation_de_to_en": "c: "}
    async with with_tasks(own_info, tasks) as http:
        refused = await http.post("/translate", json={**BODY, "source": "auto"})
        assert refused.json()["error"].startswith("source: is needed: one of de, en")
        assert (await http.post("/translate", json={**BODY, "source": "auto", "target": "en"})).is_success


async def test_a_multilingual_model_is_told_the_languages(own_info: Service, router: FakeRouter) -> None:
    languages = {
        "en_XX": Language(50, (50,), (1,), (50,), (1,)),
        "fr_XX": Language(51, (51,), (1,), (51,), (1,)),
    }
    own_info.request_builder.tasks = Tasks(*with_prefixes(own_info, {}), languages)
    async with client_of(own_info) as http:
        assert (await http.post("/translate", json=BODY)).json() == {"translatedText": SENTENCE}
        sample = router.requests[-1]
        assert (sample.encoder.token_ids[0], sample.encoder.token_ids[-1]) == (50, 1)
        # This model's decoder does not start from EOS, so it starts from the language.
        assert sample.prefix_ids == (51,)
        for field, code in (("source", "auto"), ("target", "de")):
            refused = await http.post("/translate", json={**BODY, field: code})
            assert refused.status_code == 400
            assert refused.json()["error"].startswith(
                f"{field}: '{code}' is not one of 2 languages: en_XX, fr_XX"
            )
        known = ["en_XX", "fr_XX"]
        assert (await http.get("/languages")).json() == [
            {"code": code, "name": code, "targets": known} for code in known
        ]


async def test_a_model_of_one_pair_needs_no_task(own_info: Service, router: FakeRouter) -> None:
    own_info.request_builder.tasks = Tasks(*with_prefixes(own_info, {}), pair=("en", "fr"))
    async with client_of(own_info) as http:
        assert (await http.post("/translate", json=BODY)).json() == {"translatedText": SENTENCE}
        expected = tuple(own_info.request_builder.tokenize("the cat"))
        assert router.requests[-1].encoder.token_ids == expected
        assert (await http.post("/translate", json={**BODY, "target": "de"})).status_code == 400


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(build_app(service), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_libretranslatepy(address: str) -> None:
    api = LibreTranslateAPI(address, api_key="k")
    assert api.translate("the cat", "en", "fr") == SENTENCE
    assert [language["code"] for language in api.languages()] == ["en", "fr", "de"]
