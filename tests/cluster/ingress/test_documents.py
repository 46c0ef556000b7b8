"""/translate with texts of many sentences: cut, translated a few at a time, and put together."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_router import FakeRouter

from tandem.cluster.ingress import documents
from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.errors import Overloaded
from tandem.workers.request import Delta, EngineRequest
from tandem.workers.requests.request_builder import RequestBuilder

SENTENCE = "le chat est sur le tapis"
BODY = {"q": "the cat", "source": "en", "target": "fr"}


async def test_a_text_is_translated_sentence_by_sentence(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    text = "  The cat. A cat?\r\n\r\nthe mat\n"
    answer = (await http.post("/translate", json={**BODY, "q": text})).json()
    assert answer == {"translatedText": f"  {SENTENCE} {SENTENCE}\r\n\r\n{SENTENCE}\n"}

    def read() -> list[tuple[int, ...]]:
        asked = sorted(request.encoder.token_ids for request in router.requests)
        router.requests.clear()
        return asked

    def ids(*texts: str) -> list[tuple[int, ...]]:
        prefix = "translate English to French: "
        return sorted(tuple(request_builder.tokenize(prefix + text)) for text in texts)

    assert read() == ids("The cat.", "A cat?", "the mat")
    by_line = (await http.post("/translate", json={**BODY, "q": text, "split": "line"})).json()
    assert by_line == {"translatedText": f"  {SENTENCE}\r\n\r\n{SENTENCE}\n"}
    assert read() == ids("The cat. A cat?", "the mat")
    whole = (await http.post("/translate", json={**BODY, "q": text, "split": "none"})).json()
    assert whole == {"translatedText": SENTENCE}
    assert read() == ids(text)
    several = await http.post("/translate", data={**BODY, "q": ["One. Two.", "C\nD"], "split": "line"})
    assert several.json() == {"translatedText": [SENTENCE, f"{SENTENCE}\n{SENTENCE}"]}


async def test_blank_in_blank_out(http: httpx.AsyncClient, router: FakeRouter) -> None:
    for text in ("", "   ", "\n", " \u200b\r\n"):
        for split in ("sentence", "line", "none"):
            answer = await http.post(
                "/translate", json={**BODY, "q": text, "split": split, "alternatives": 2}
            )
            assert answer.json() == {"translatedText": text, "alternatives": []}
    assert router.requests == []
    answer = await http.post("/translate", json={**BODY, "q": ["the cat", "", " ", "a"]})
    assert answer.json() == {"translatedText": [SENTENCE, "", " ", SENTENCE]}
    # Nor is there anything to translate in what has no letter and no digit.
    assert (await http.post("/translate", json={**BODY, "q": "😀 …"})).json() == {"translatedText": "😀 …"}


async def test_alternatives_of_a_text_of_sentences(http: httpx.AsyncClient) -> None:
    alone = (await http.post("/translate", json={**BODY, "alternatives": 2})).json()
    body = {**BODY, "q": "the cat\nthe cat", "alternatives": 2}
    both = (await http.post("/translate", json=body)).json()
    twice = [f"{text}\n{text}" for text in (alone["translatedText"], *alone["alternatives"])]
    assert [both["translatedText"], *both["alternatives"]] == twice


async def test_a_long_text_is_translated_a_little_at_a_time(
    http: httpx.AsyncClient, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_IN_FLIGHT", 3)
    most, router.delay_s = 0, 0.0001
    deltas = router.deltas

    async def counted(request: EngineRequest, gather_s: Any) -> AsyncGenerator[Delta]:
        nonlocal most
        async with aclosing(deltas(request, gather_s)) as stream:
            async for delta in stream:
                most = max(most, len(router.live))
                yield delta

    monkeypatch.setattr(router, "deltas", counted)
    text = "\n".join(f"the cat {'a' * (1 + n % 8)}" for n in range(300))
    answer = (await http.post("/translate", json={**BODY, "q": text})).json()
    assert answer == {"translatedText": "\n".join([SENTENCE] * 300)}
    assert most == 3
    assert len(router.requests) == 8, "equal sentences are translated once"


async def test_a_full_router_refuses_a_text_or_holds_it_up(
    http: httpx.AsyncClient, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_PAUSE_S", 0.001)
    monkeypatch.setattr(documents, "_IN_FLIGHT", 1)
    router.full = True
    assert (await http.post("/translate", json={**BODY, "q": "One. Two."})).status_code == 429
    router.full, refused = False, 0

    def check_room(sequences: int = 1, *, priority: int | None = 0) -> None:  # noqa: ARG001
        nonlocal refused
        if len(router.requests) == 1 and refused < 3:
            refused += 1
            raise Overloaded("full")

    monkeypatch.setattr(router, "check_room", check_room)
    answer = await http.post("/translate", json={**BODY, "q": "One. Two."})
    assert (answer.json(), refused) == ({"translatedText": f"{SENTENCE} {SENTENCE}"}, 3)


async def test_a_translation_that_is_cut_off_by_time_is_none(
    service: Service, http: httpx.AsyncClient, router: FakeRouter
) -> None:
    router.deadline_after = 2
    late = {"error": "not all of the 2 segments were answered in time: send less at a time"}
    answer = await http.post("/translate", json={**BODY, "q": "One. Two."})
    assert (answer.status_code, answer.json()) == (504, late)
    router.deadline_after, router.stall_after = None, 1
    limits = replace(service.config.limits, timeout_s=0.05)
    service.config = replace(service.config, limits=limits)
    transport = httpx.ASGITransport(build_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as http:
        answer = await http.post("/translate", json={**BODY, "q": "One. Two."})
    assert (answer.status_code, answer.json()["error"][:21]) == (504, "not all of the 2 segm")
    assert not router.live
