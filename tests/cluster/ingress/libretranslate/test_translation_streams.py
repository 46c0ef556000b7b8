"""`/translate` with `stream`: the events add up to the answer that is not streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_service import make_service
from hypothesis import given
from hypothesis import strategies as st
from local_router import LocalRouter

from tandem import LLM
from tandem.cluster.ingress.http.libretranslate.growing import Growing
from tandem.cluster.ingress.service import Service
from tandem.errors import Unavailable
from tandem.limits import DEFAULT_LIMITS
from tandem.workers.models.model_folder import resolve
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.requests.segmentation.segments import Document

LONG = "".join(f"  I have {n} dogs. Where do you live?\n\n{n}\n" for n in range(2, 32))  # 60 sentences


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve("quickstart")


@pytest.fixture(scope="module")
def request_builder(folder: Path) -> RequestBuilder:
    return RequestBuilder.load(folder, "tiny", DEFAULT_LIMITS)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("quickstart") as llm:
        yield llm


@pytest.fixture
def service(folder: Path, request_builder: RequestBuilder, local_router: LocalRouter) -> Service:
    return make_service(folder, request_builder, local_router, DEFAULT_LIMITS)


async def stream(http: httpx.AsyncClient, **body: Any) -> list[Any]:
    answer = await http.post("/translate", json={"source": "en", "target": "fr", **body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [one.removeprefix("data: ") for one in answer.text.split("\n\n")[:-1]]
    if data[-1] == "[DONE]":
        data.pop()
    return [json.loads(one) for one in data]


@pytest.mark.parametrize("text", ["I am tired.", LONG, "", "42", " \n", "  I am tired.\n"])
async def test_it_adds_up(http: httpx.AsyncClient, text: str) -> None:
    body = {"q": text, "source": "auto", "target": "fr"}
    expected = (await http.post("/translate", json=body)).json()
    *deltas, last = await stream(http, **body)
    assert last == expected
    assert "".join(one["delta"] for one in deltas) == expected["translatedText"]
    assert deltas[0]["detectedLanguage"] == expected["detectedLanguage"]
    if text == LONG:
        assert len(deltas) > 60


async def test_what_is_not_streamed_is_refused_by_name(http: httpx.AsyncClient) -> None:
    asked = {"q": "I am tired.", "source": "en", "target": "fr", "stream": True}
    for more in ({"q": ["I am tired."]}, {"format": "html"}, {"alternatives": 2}, {"stream": "perhaps"}):
        answer = await http.post("/translate", json={**asked, **more})
        assert answer.status_code == 400
        assert "stream" in answer.json()["error"]
    for wrong in ({"target": "xx"}, {"source": "de"}):  # errors before the first event have their status
        assert (await http.post("/translate", json={**asked, **wrong})).status_code == 400
    form = await http.post("/translate", data={**asked, "stream": "true"})
    assert form.text.endswith("data: [DONE]\n\n")


async def test_an_error_within_is_the_last_event(http: httpx.AsyncClient, local_router: LocalRouter) -> None:
    local_router.error = (32, Unavailable("gone"))  # the second lot of segments
    events = await stream(http, q=LONG)
    assert events[-1] == {"error": "gone"}
    assert "translatedText" not in events[-2]
    assert not local_router.live


TEXTS = st.text("a \n。é", max_size=6)


@given(
    parts=st.lists(st.tuples(st.text("ab。", min_size=1, max_size=3), TEXTS, st.integers(0, 6)), max_size=5),
    gaps=st.lists(st.sampled_from(["", " ", "\n"]), min_size=6, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_segments_grow_in_any_order(parts: list[tuple[str, str, int]], gaps: list[str], order: Any) -> None:
    document = Document(tuple(part[0] for part in parts), tuple(gaps[: len(parts) + 1]))
    growing, shown = Growing(document), []
    left = {number: [text[:at], text[at:]] for number, (_, text, at) in enumerate(parts)}
    whole = document.join([text for _, text, _ in parts])
    while left:
        number = order.choice(sorted(left))
        text = left[number].pop(0)
        shown.append(growing.add(number, text, ended=not left[number]))
        if not left[number]:
            del left[number]
        assert whole.startswith("".join(shown))
    if parts:
        assert "".join(shown) == whole
