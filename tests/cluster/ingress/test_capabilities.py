"""`/v1/models` says what a model can be asked: one model of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from florence import make_florence
from mllama import make_mllama
from openai import AsyncOpenAI
from tiny_t5 import write_model
from vision import make_vision
from whisper import make_whisper

from tandem.cluster.ingress.http.capabilities import capabilities
from tandem.limits import DEFAULT_LIMITS
from tandem.workers.models.model_folder import resolve
from tandem.workers.requests.request_builder import RequestBuilder


def of(folder: Path) -> dict[str, Any]:
    return capabilities(RequestBuilder.load(folder, "tiny", DEFAULT_LIMITS))


def test_a_translation_model() -> None:
    assert of(resolve("quickstart")) == {
        "completion": True,
        "chat": False,
        "images": False,
        "translation": True,
        "tasks": ["translation_en_to_de", "translation_en_to_fr"],
        "transcription": None,
    }


def test_a_chat_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path, chat_template="{{ messages[0].content }}", task_specific_params={"qa": {}})
    found = of(folder)
    assert (found["chat"], found["translation"], found["tasks"]) == (True, False, ["qa"])


def test_speech_models(tmp_path: Path) -> None:
    english = of(resolve("quickstart-speech"))
    assert english["transcription"] == {"languages": ["en"], "translation": False}
    assert not any(english[name] for name in ("completion", "chat", "translation", "images"))
    multilingual = of(make_whisper(tmp_path, "base", times=True))["transcription"]
    assert {"de", "en"} <= set(multilingual["languages"])
    assert multilingual["translation"]


def test_models_of_images(tmp_path: Path) -> None:
    reader = of(make_vision(tmp_path / "vision", "trocr"))
    assert (reader["images"], reader["completion"]) == (True, False)
    florence = of(make_florence(tmp_path / "florence"))
    assert (florence["images"], florence["completion"]) == (True, True)
    mllama = of(make_mllama(tmp_path / "mllama"))
    assert (mllama["images"], mllama["completion"]) == (True, True)


async def test_openais_client_reads_it(http: httpx.AsyncClient) -> None:
    client: Any = http
    openai = AsyncOpenAI(base_url="http://tandem/v1", api_key="none", http_client=client)
    (model,) = (await openai.models.list()).data
    extra: Any = model.model_extra
    assert extra["capabilities"]["completion"] is True
