"""LibreTranslate's own tests, and its Python client, against a server that listens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from libretranslatepy import LibreTranslateAPI

from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service

SENTENCE = "le chat est sur le tapis"


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
    assert api.translate("the cat", "auto", "fr", timeout=60) == SENTENCE
    assert api.detect("Hello World")[0]["language"] == "en"
    assert [language["code"] for language in api.languages()] == ["en", "fr", "de"]
    found = api.detect("This is a sentence in English.")
    assert found[0]["language"] == "en"
    assert found[0].keys() == {"confidence", "language"}


class FlaskClient:
    """Flask's test client, as LibreTranslate's tests use it."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str) -> Any:
        return self._answer(httpx.get(self._address + path, timeout=60))

    def post(self, path: str, **sent: Any) -> Any:
        return self._answer(httpx.post(self._address + path, timeout=60, **sent))

    def _answer(self, response: httpx.Response) -> Any:
        class Answer:
            status_code, data = response.status_code, response.text
            json = response.json() if response.text else None

        return Answer


def test_libretranslates_own_tests(address: str) -> None:
    """LibreTranslate's tests of its API (libretranslate/tests/test_api/), with a target that there is."""
    client = FlaskClient(address)
    detected = client.post("/detect", data={"q": "Hello"})
    assert detected.status_code == 200
    assert "confidence" in json.loads(detected.data)[0]
    assert "language" in json.loads(detected.data)[0]
    missing = client.post("/detect")
    assert (missing.status_code, "error" in missing.json) == (400, True)
    assert client.get("/detect").status_code == 405
    assert client.get("/frontend/settings").status_code == 200
    languages = client.get("/languages")
    assert languages.status_code == 200
    assert {"code", "name"} <= languages.json[0].keys()
    assert client.post("/languages").status_code == 405
    assert client.get("/health").json == {"status": "ok"}
    assert client.post("/health").status_code == 405
    assert client.get("/spec").status_code == 200
    assert client.post("/spec").status_code == 405
    translated = client.post(
        "/translate", data={"q": "Hello", "source": "en", "target": "fr", "format": "text"}
    )
    assert (translated.status_code, "translatedText" in translated.json) == (200, True)
    batch = client.post(
        "/translate", json={"q": ["Hello", "World"], "source": "en", "target": "fr", "format": "text"}
    )
    assert (batch.status_code, len(batch.json["translatedText"])) == (200, 2)
    unknown = client.post("/translate", data={"q": "Hello", "source": "en", "target": "zz", "format": "text"})
    assert (unknown.status_code, unknown.json["error"]) == (400, "zz is not supported")
    unknown = client.post("/translate", data={"q": "Hello", "source": "zz", "target": "fr"})
    assert (unknown.status_code, unknown.json["error"]) == (400, "zz is not supported")
    for path in ("/translate", "/detect"):
        listed = client.post(path, json=["not", "a", "dict"])
        assert (listed.status_code, listed.json["error"]) == (400, "Invalid JSON format")
    for field in ("source", "target"):
        given = {"q": "Hello", "source": "en", "target": "fr"}
        del given[field]
        without = client.post("/translate", data=given)
        assert without.json["error"] == f"Invalid request: missing {field} parameter"
    detected = client.post(
        "/translate", json={"q": ["Hello there", "Good morning"], "source": "auto", "target": "fr"}
    )
    assert [one["language"] for one in detected.json["detectedLanguage"]] == ["en", "en"]
    program = client.post(
        "/translate_file", data={"source": "en", "target": "fr"}, files={"file": ("program.exe", b"MZ\x90")}
    )
    assert program.json["error"] == "Invalid request: file format not supported"
    without = client.post("/translate", data={"source": "en", "target": "fr", "format": "text"})
    assert (without.status_code, without.json["error"]) == (400, "Invalid request: missing q parameter")
