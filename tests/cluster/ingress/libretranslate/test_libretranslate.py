"""LibreTranslate's endpoints as its clients and its own tests know them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from fake_router import FakeRouter

from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.workers.requests.languages.markers import Language
from tandem.workers.requests.parameters.defaults import GenerationDefaults
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.requests.tasks import Pair, Task, Tasks

SENTENCE = "le chat est sur le tapis"
BODY = {"q": "the cat", "source": "en", "target": "fr"}


async def test_a_text_gets_the_models_prefix(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    for source, target in (("en", "fr"), ("EN", "French"), ("eng_Latn", "fr-CA")):
        body = {**BODY, "source": source, "target": target, "format": "text"}
        assert (await http.post("/translate", json=body)).json() == {"translatedText": SENTENCE}
    expected = tuple(request_builder.tokenize("translate English to French: the cat"))
    assert [request.encoder.token_ids for request in router.requests] == [expected] * 3
    assert {request.decoding.temperature for request in router.requests} == {0.0}


async def test_several_texts(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/translate", json={**BODY, "q": ["the cat", "a", " ", "🎉", "1,000.5", "a\n5"]}
    )
    assert response.json() == {"translatedText": [SENTENCE, SENTENCE, " ", "🎉", "1,000.5", f"{SENTENCE}\n5"]}


async def test_alternatives_are_different_and_the_same_each_time(http: httpx.AsyncClient) -> None:
    answers = [(await http.post("/translate", json={**BODY, "alternatives": 3})).json() for _ in range(2)]
    assert answers[0] == answers[1]
    texts = [answers[0]["translatedText"], *answers[0]["alternatives"]]
    assert texts[0] == SENTENCE
    assert len(texts) == len(set(texts)) == 4
    many = (await http.post("/translate", json={**BODY, "q": ["a", "b"], "alternatives": 2})).json()
    assert [len(each) for each in many["alternatives"]] == [2, 2]
    # More than there are beams: as many as there are.
    most = (await http.post("/translate", json={**BODY, "alternatives": 63})).json()
    assert 5 < len(set(most["alternatives"])) == len(most["alternatives"]) < 63
    none = (await http.post("/translate", json={**BODY, "alternatives": -1})).json()
    assert none == {"translatedText": SENTENCE}


@pytest.mark.parametrize("kind", ["json", "form", "multipart", "query"])
async def test_every_kind_of_body(http: httpx.AsyncClient, kind: str) -> None:
    fields = {**BODY, "q": "the cat\r\non the mat", "api_key": "k", "secret": "", "alternatives": "1"}
    sent: dict[str, dict[str, Any]] = {
        "json": {"json": {**fields, "q": "the cat\non the mat"}},
        "form": {"data": fields},
        "multipart": {"files": {name: (None, value) for name, value in fields.items()}},
        "query": {"params": fields},
    }
    answer = (await http.post("/translate", **sent[kind])).json()
    assert answer["translatedText"] == f"{SENTENCE}\n{SENTENCE}"
    assert len(answer["alternatives"]) == 1


async def test_lists_in_forms(http: httpx.AsyncClient) -> None:
    for q in (["a", "b"], '["a", "b"]'):
        for sent in ({"data": {**BODY, "q": q}}, {"params": {**BODY, "q": q}}):
            response = await http.post("/translate", **sent)  # type: ignore[arg-type]
            assert response.json() == {"translatedText": [SENTENCE, SENTENCE]}
    for q in ("[a, b]", "[1]", "[]", '{"a": 1}'):
        response = await http.post("/translate", data={**BODY, "q": q})
        assert response.json() == {"translatedText": SENTENCE if any(map(str.isalpha, q)) else q}


async def test_html(http: httpx.AsyncClient) -> None:
    page = '<p class="x">the cat</p><script>let a = "<b>";</script><p>a <code>b</code></p>&copy; '
    answer = (
        await http.post("/translate", json={**BODY, "q": page, "format": "html", "alternatives": 2})
    ).json()
    assert answer == {
        "translatedText": f'<p class="x">{SENTENCE}</p><script>let a = "<b>";</script>'
        f"<p>{SENTENCE} <code>b</code></p>&copy; ",
        "alternatives": [],
    }
    pages = await http.post("/translate", json={**BODY, "q": ["<i>a</i>", ""], "format": "html"})
    assert pages.json() == {"translatedText": [f"<i>{SENTENCE}</i>", ""]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "es"}, "es is not supported; there is French (fr), German (de)"),
        ({"source": "Klingon"}, "Klingon is not supported; there is English (en)"),
        ({"target": "Japanese"}, "Japanese is not supported; there is French (fr), German (de)"),
        ({"target": "at"}, "at is not supported; nearest: German (de)"),
        ({"target": "zz"}, "zz is not supported"),
        ({"source": "Englsh"}, "Englsh is not supported; nearest: English (en)"),
        ({"target": "French (wild)"}, "French (wild) is not supported; nearest: French (fr)"),
        ({"q": None}, "Invalid request: missing q parameter"),
        ({"source": ""}, "Invalid request: missing source parameter"),
        ({"q": []}, "Invalid request: missing q parameter"),
        ({"q": ["a"] * 9}, "Invalid request: request (9) exceeds text limit (8)"),
        ({"q": 3}, "q: must be text or a list"),
        ({"q": ["a", 3]}, "q: must be text, or a list of texts"),
        ({"format": "pdf"}, "pdf format is not supported"),
        ({"split": "word"}, "split: must be one of none, line, sentence, got 'word'"),
        ({"alternatives": 64}, "Invalid request: alternatives parameter must be <= 63"),
        ({"alternatives": "many"}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": 2.7}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": [1]}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": "1e999"}, "Invalid request: alternatives parameter is not a number"),
        ({"wild": 1}, "wild: unknown parameter"),
    ],
)
async def test_a_bad_value_is_refused_in_libretranslates_words(
    http: httpx.AsyncClient, change: dict[str, Any], message: str
) -> None:
    response = await http.post("/translate", json={**BODY, **change})
    assert response.status_code == 400
    assert response.json() == {"error": message}


async def test_numbers_and_characters_that_json_alone_has(http: httpx.AsyncClient) -> None:
    for written in ("1e999", "-1e999", "NaN"):
        body = json.dumps(BODY)[:-1] + f', "alternatives": {written}}}'
        response = await http.post("/translate", content=body, headers={"content-type": "application/json"})
        assert (response.status_code, list(response.json())) == (400, ["error"])
    for value in (2, 2.0, "2", True):
        response = await http.post("/translate", json={**BODY, "alternatives": value})
        assert len(response.json()["alternatives"]) == int(value)
    for q in ('["\\ud800"]', '["<script>\\ud800</script>"]'):
        for form in ("text", "html"):
            response = await http.post("/translate", data={**BODY, "q": q, "format": form})
            assert response.status_code == 400
            assert response.json()["error"].startswith("q: lone surrogate at character")
        assert (await http.post("/detect", data={"q": q})).status_code == 400
    deep = await http.post("/translate", data={**BODY, "q": "[" * 6_000})
    assert deep.json() == {"translatedText": "[" * 6_000}


async def test_so_are_other_errors(http: httpx.AsyncClient, router: FakeRouter) -> None:
    assert (await http.get("/translate")).json() == {"error": "Method Not Allowed: GET /translate"}
    for sent in (
        {"content": b"x"}, {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        {"content": b"q=\xff", "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {"json": [1]}, {"files": {"q": ("name", b"x")}},
    ):  # fmt: skip
        response = await http.post("/translate", **sent)  # type: ignore[arg-type]
        assert (response.status_code, list(response.json())) == (400, ["error"]), sent
    for path in ("/translate", "/translate_file", "/detect"):
        response = await http.post(path, files={"q": (None, "x" * 30_000)})
        assert (response.status_code, list(response.json())) == (413, ["error"])
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


async def test_what_its_page_asks_for(http: httpx.AsyncClient) -> None:
    settings = (await http.get("/frontend/settings")).json()
    assert settings["language"] == {
        "source": {"code": "auto", "name": "Auto Detect"}, "target": {"code": "fr", "name": "French"},
    }  # fmt: skip
    assert settings["supportedFilesFormat"] == [".txt", ".srt", ".html", ".htm", ".docx"]
    assert settings.keys() == {
        "charLimit", "frontendTimeout", "apiKeys", "keyRequired", "suggestions", "filesTranslation",
        "supportedFilesFormat", "language",
    }  # fmt: skip
    refused = await http.post("/suggest", files=dict.fromkeys(("q", "s", "source", "target"), (None, "x")))
    assert (refused.status_code, refused.json()) == (
        403,
        {"error": "Suggestions are disabled on this server."},
    )
    assert "/translate" in (await http.get("/spec")).json()["paths"]


async def test_pages_of_other_origins_may_call_it_and_no_other_api(http: httpx.AsyncClient) -> None:
    origin = {"origin": "https://example.com"}
    for response in (
        await http.post("/translate", json=BODY, headers=origin),
        await http.post("/translate", json={}, headers=origin),
        await http.options("/translate", headers={**origin, "access-control-request-method": "POST",
                                                  "access-control-request-headers": "content-type"}),
    ):  # fmt: skip
        assert response.headers["access-control-allow-origin"] == "*"
    for path in ("/v1/models", "/health"):
        assert "access-control-allow-origin" not in (await http.get(path, headers=origin)).headers


# -- languages of models


def client_of(service: Service, tasks: Tasks) -> httpx.AsyncClient:
    service.request_builder.tasks = tasks
    transport = httpx.ASGITransport(build_app(service))
    return httpx.AsyncClient(transport=transport, base_url="http://tandem")


def with_prefixes(service: Service, prefixes: dict[str, str]) -> tuple[dict[str, Task], GenerationDefaults]:
    own = service.request_builder.info.defaults
    return {name: Task({"prefix": prefix}, own) for name, prefix in prefixes.items()}, own


def with_pairs(service: Service, pairs: Sequence[Pair]) -> Tasks:
    return Tasks(*with_prefixes(service, {}), pairs=pairs)


@pytest.fixture
def own_info(service: Service) -> Iterator[Service]:
    tasks = service.request_builder.tasks
    yield service
    service.request_builder.tasks = tasks


async def test_a_model_without_tasks_says_so(own_info: Service) -> None:
    async with client_of(own_info, Tasks(*with_prefixes(own_info, {"summarization": "summarize: "}))) as http:
        response = await http.post("/translate", json=BODY)
        assert response.status_code == 400
        assert response.json() == {"error": "target: this model says nothing of languages"}
        assert (await http.get("/languages")).json() == []
        assert (await http.get("/frontend/settings")).status_code == 200


async def test_a_pair_that_is_not_there(own_info: Service) -> None:
    tasks = {"translation_en_to_fr": "a: ", "translation_de_to_fr": "b: ", "translation_de_to_en": "c: "}
    async with client_of(own_info, Tasks(*with_prefixes(own_info, tasks))) as http:
        refused = await http.post("/translate", json={**BODY, "target": "en"})
        assert refused.status_code == 400
        assert refused.json() == {
            "error": "English (en) is not available as a target language from English (en)"
        }
        assert (await http.post("/translate", json={**BODY, "source": "de", "target": "en"})).is_success
        french = await http.post("/translate", json={**BODY, "q": "Das ist eine Katze.", "source": "auto"})
        assert french.json()["detectedLanguage"]["language"] == "de"


MANY = {
    "eng_Latn": Language(50, (50,), (1,), (50,), (1,)),
    "fra_Latn": Language(51, (51,), (1,), (51,), (1,)),
    "zho_Hans": Language(52, (52,), (1,), (52,), (1,)),
    "zho_Hant": Language(53, (53,), (1,), (53,), (1,)),
}


async def test_a_multilingual_model_is_told_the_languages(own_info: Service, router: FakeRouter) -> None:
    async with client_of(own_info, Tasks(*with_prefixes(own_info, {}), MANY)) as http:
        for target, token_id in (("fr", 51), ("zh", 52), ("zh-Hans", 52), ("zt", 53), ("zh-TW", 53)):
            answer = await http.post("/translate", json={**BODY, "target": target})
            assert answer.json() == {"translatedText": SENTENCE}
            sample = router.requests[-1]
            assert (sample.encoder.token_ids[0], sample.encoder.token_ids[-1]) == (50, 1)
            # This model's decoder does not start from EOS, so it starts from the language.
            assert sample.prefix_ids == (token_id,)
        for field in ("source", "target"):
            refused = await http.post("/translate", json={**BODY, field: "de"})
            assert refused.status_code == 400
            assert refused.json()["error"].startswith(
                "de is not supported; there is Chinese (Simplified) (zh"
            )
        known = ["en", "fr", "zh-Hans", "zh-Hant"]
        listed = (await http.get("/languages")).json()
        assert [one["code"] for one in listed] == known
        assert [one["name"] for one in listed] == [
            "English", "French", "Chinese (Simplified)", "Chinese (Traditional)",
        ]  # fmt: skip
        assert all(one["targets"] == known for one in listed)


@pytest.mark.parametrize(
    ("text", "language", "token_id"),
    [
        ("This is a sentence in English.", "en", 50), ("Ceci est une phrase en français.", "fr", 51),
        ("这是一个简体中文句子，汉语没有时态变化。", "zh-Hans", 52),
        ("這是一個繁體中文句子，漢語沒有時態變化。", "zh-Hant", 53),
    ],
)  # fmt: skip
async def test_auto_detects_among_the_models_languages(
    own_info: Service, router: FakeRouter, text: str, language: str, token_id: int
) -> None:
    async with client_of(own_info, Tasks(*with_prefixes(own_info, {}), MANY)) as http:
        answer = (await http.post("/translate", json={"q": text, "source": "auto", "target": "fr"})).json()
        assert answer["detectedLanguage"]["language"] == language
        assert 50 < answer["detectedLanguage"]["confidence"] <= 100
        assert router.requests[-1].encoder.token_ids[0] == token_id
        several = await http.post("/translate", json={"q": [text, "?"], "source": "auto", "target": "en"})
        assert [one["language"] for one in several.json()["detectedLanguage"]] == [language] * 2
        [first, *_] = (await http.post("/detect", data={"q": text})).json()
        assert first == answer["detectedLanguage"]


async def test_detect_says_languages_that_the_model_does_not_have(http: httpx.AsyncClient) -> None:
    texts = {
        "ja": "これは日本語の文です。", "ru": "Это предложение на русском языке.",
        "en": "This is a sentence.",
        "es": "Esta es una frase en español, y no muy larga.", "ar": "هذه جملة باللغة العربية.",
    }  # fmt: skip
    for language, text in texts.items():
        found = (await http.post("/detect", json={"q": text})).json()
        assert found[0]["language"] == language
        assert 50 < found[0]["confidence"] <= 100
        assert sum(one["confidence"] for one in found) <= 101
    # The model reads English alone, and it is sure that this is none.
    body = {**BODY, "q": texts["ja"], "source": "auto"}
    assert (await http.post("/translate", json=body)).json()["detectedLanguage"] == {
        "confidence": 0.0, "language": "en",
    }  # fmt: skip
    for nothing in ("!!", "12", "🎉"):
        unknown = {"confidence": 0.0, "language": "en"}
        assert (await http.post("/detect", json={"q": nothing})).json() == [unknown]
        answer = await http.post("/translate", json={**BODY, "q": nothing, "source": "auto"})
        assert answer.json()["detectedLanguage"] == unknown


async def test_targets_among_a_vocabularys_tokens(own_info: Service, router: FakeRouter) -> None:
    pairs = [Pair("ROMANCE", code, prefix=f">>{code}<< ") for code in ("deu", "eng", "cmn_Hans")]
    async with client_of(own_info, with_pairs(own_info, pairs)) as http:
        assert (await http.get("/languages")).json() == [
            {"code": "ROMANCE", "name": "ROMANCE", "targets": ["de", "en", "zh-Hans"]},
            {"code": "de", "name": "German", "targets": []}, {"code": "en", "name": "English", "targets": []},
            {"code": "zh-Hans", "name": "Chinese (Simplified)", "targets": []},
        ]  # fmt: skip
        tokenize = own_info.request_builder.tokenize
        for source, target, token in (("fr", "de", "deu"), ("Italian", "zh", "cmn_Hans")):
            await http.post("/translate", json={"q": "the cat", "source": source, "target": target})
            assert router.requests[-1].encoder.token_ids == tuple(tokenize(f">>{token}<< the cat"))
        answer = await http.post(
            "/translate", json={"q": "Ceci est une phrase.", "source": "auto", "target": "en"}
        )
        assert answer.json()["detectedLanguage"]["language"] == "fr"
        # A text's own token stays, for each of its sentences.
        await http.post("/translate", json={"q": ">>deu<< the cat. le chat.", "source": "fr", "target": "en"})
        assert [request.encoder.token_ids for request in router.requests[-2:]] == [
            tuple(tokenize(f">>deu<< {text}")) for text in ("the cat.", "le chat.")
        ]


async def test_a_model_of_one_pair_needs_no_task(own_info: Service, router: FakeRouter) -> None:
    async with client_of(own_info, with_pairs(own_info, [Pair("en", "fr")])) as http:
        assert (await http.post("/translate", json=BODY)).json() == {"translatedText": SENTENCE}
        expected = tuple(own_info.request_builder.tokenize("the cat"))
        assert router.requests[-1].encoder.token_ids == expected
        assert (await http.post("/translate", json={**BODY, "target": "de"})).status_code == 400
