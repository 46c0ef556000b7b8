"""What clients are told where they are refused, or an answer is cut off; and what is counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import httpx
import pytest
from fake_router import FakeRouter
from grpc_calls import Api, Context, refused
from prometheus_client.parser import text_string_to_metric_families

from tandem.cluster.ingress.edge.listeners import Arrivals
from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.cluster.serve_compat.grpc_handlers import ARRIVED, DEADLINE
from tandem.errors import DeadlineExceeded, Overloaded, TandemError
from tandem.v1 import inference_pb2 as pb

SENTENCE = "le chat est sur le tapis"
BODY = {"q": "the cat", "source": "en", "target": "fr"}
GENERATE = pb.GenerateRequest(encoder_prompt=pb.EncoderPrompt(text="the cat")).SerializeToString()


def counted(service: Service, name: str, label: str) -> dict[str, float]:
    """A counter's values that are not 0, by a label's."""
    families = text_string_to_metric_families(service.metrics.text().decode())
    [family] = [family for family in families if family.name == name]
    totals = [sample for sample in family.samples if sample.name.endswith("_total")]
    return {sample.labels[label]: sample.value for sample in totals if sample.value}


@pytest.mark.parametrize(
    ("error", "status", "after"),
    [
        (Overloaded("full", refused="wait", retry_after_s=2.25), 429, "3"),
        (Overloaded("full", refused="queue"), 429, None),
        (DeadlineExceeded("too late", refused="deadline", retry_after_s=0.04), 504, "1"),
    ],
)
async def test_http_says_when_to_try_again(
    service: Service,
    http: httpx.AsyncClient,
    router: FakeRouter,
    error: TandemError,
    status: int,
    after: str | None,
) -> None:
    router.fail(error)
    for path, body in (("/v1/completions", {"prompt": "the cat"}), ("/translate", BODY)):
        answer = await http.post(path, json=body)
        assert (answer.status_code, answer.headers.get("retry-after")) == (status, after)
        assert str(error) in answer.text
    assert counted(service, "tandem_refused", "reason") == {error.refused: 2}


async def test_grpc_says_when_to_try_again(service: Service, router: FakeRouter) -> None:
    """In the details, of which the listener makes metadata: see test_grpc_handlers.py."""
    router.full = True
    context = Context()
    status = await refused(Api(service).Generate(GENERATE, context), context)
    assert status == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full; try again in 2.2 s")
    assert counted(service, "tandem_refused", "reason") == {"queue": 1}


async def test_answers_are_counted_by_how_they_ended(
    service: Service, http: httpx.AsyncClient, router: FakeRouter
) -> None:
    def counts() -> dict[str, float]:
        return counted(service, "tandem_finished", "finish_reason")

    for body in ({"n": 3}, {"max_tokens": 2}, {"stop": "chat"}):
        assert (await http.post("/v1/completions", json={"prompt": "the cat", **body})).is_success
    assert counts() == {"stop": 4, "length": 1}
    router.deadline_after = 2
    await Api(service).Generate(GENERATE, Context())
    assert counts() == {"stop": 4, "length": 1, "deadline": 1}
    router.deadline_after = 0
    assert (await http.post("/v1/completions", json={"prompt": "the cat"})).status_code == 504
    assert counts() == {"stop": 4, "length": 1, "deadline": 2}
    assert not counted(service, "tandem_refused", "reason")


async def test_time_counts_from_the_read_of_the_head(service: Service, router: FakeRouter) -> None:
    """However long the body takes, and a thread for the tokenizer."""
    transport = httpx.ASGITransport(Arrivals(build_app(service)))

    async def body() -> Any:
        yield b'{"prompt": "the '
        await asyncio.sleep(0.3)
        yield b'cat"}'

    began = asyncio.get_running_loop().time()
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as http:
        json = {"content-type": "application/json"}
        assert (await http.post("/v1/completions", content=body(), headers=json)).is_success
        [arrival] = router.arrivals
        assert arrival is not None
        assert arrival.at - began < 0.2
        assert (await http.post("/v1/embeddings", json={"input": "the cat"})).is_success
        assert (
            await http.post("/v1/score", json={"text_1": "the cat", "text_2": "le chat"})
        ).status_code < 500
    noted = {ARRIVED: repr(time.time() - 2), DEADLINE: repr(time.time() + 3)}
    await Api(service).Generate(GENERATE, Context(**noted))
    last = router.arrivals[-1]
    assert last is not None
    now = asyncio.get_running_loop().time()
    assert now - last.at == pytest.approx(2, abs=0.5)
    assert last.deadline - now == pytest.approx(3, abs=0.5)


async def test_the_time_of_a_texts_segments_is_the_calls_and_their_place_is_their_own(
    service: Service, router: FakeRouter
) -> None:
    """Else the rest of a long text would go before all that has come meanwhile."""
    router.delay_s = 0.02
    transport = httpx.ASGITransport(Arrivals(build_app(service)))
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as http:
        lines = "\n".join(f"Line {number}." for number in range(130))
        assert (await http.post("/translate", json={**BODY, "q": lines, "split": "line"})).is_success
    came = [one.at for one in router.arrivals if one is not None]
    assert max(came) - min(came) > 0.1


@pytest.mark.parametrize("several", [False, True])
async def test_a_translation_that_the_models_limit_cuts_off_says_so(
    http: httpx.AsyncClient, router: FakeRouter, several: bool
) -> None:
    q = ["the cat", "a"] if several else "the cat"
    whole = await http.post("/translate", json={**BODY, "q": q})
    assert "truncated" not in whole.json()
    router.eos_id = 5  # never comes within the limit
    router.answer = router.answer * 30
    for kind in ("text", "html"):
        cut = await http.post("/translate", json={**BODY, "q": q, "format": kind})
        assert cut.status_code == 200
        assert cut.json()["truncated"] is True
    file, languages = {"file": ("a.txt", b"the cat\n")}, {"source": "en", "target": "fr"}
    answer = (await http.post("/translate_file", files=file, data=languages)).json()
    assert answer["truncated"] is True
    assert "translatedFileUrl" in answer
