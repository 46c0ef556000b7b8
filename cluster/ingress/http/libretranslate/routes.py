"""LibreTranslate's endpoints, with its fields, statuses and words."""

from __future__ import annotations

import asyncio
import re
from importlib.metadata import version
from pathlib import PurePath
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tandem.cluster.ingress.arrivals import http_arrival
from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.http.body import unless_disconnected
from tandem.cluster.ingress.http.forms import Fields, FormFile, read_fields
from tandem.cluster.ingress.http.libretranslate.fields import (
    Translation,
    file_to_translate,
    text_to_detect,
    translation,
)
from tandem.cluster.ingress.http.libretranslate.files import FORMATS, read_file
from tandem.cluster.ingress.http.libretranslate.languages import AUTO, Detected, Languages
from tandem.cluster.ingress.http.libretranslate.markup import Markup
from tandem.cluster.ingress.http.libretranslate.translator import Translator
from tandem.cluster.ingress.service import Service
from tandem.errors import InvalidRequest
from tandem.inputs import TaskOptions

_FRONTEND_TIMEOUT_MS: Final = 500  # LibreTranslate's own: how long its page waits for another key
_BYTES_A_CHARACTER: Final = 4  # at most, in UTF-8
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    limits = service.config.limits
    languages = Languages(service.request_builder.tasks)

    async def fields_of(request: Request, limit: int) -> Fields:
        return await read_fields(request, limits, limit, no_object="Invalid JSON format")

    @router.post("/translate")
    async def translate(request: Request) -> Response:
        """Text or HTML, one or a list. `split` is Tandem's own: "sentence", "line" or "none"."""
        with Call(service, "http", "translate", http_arrival(request.scope)) as call:
            asked = translation(await fields_of(request, limits.message_bytes), limits)
            work = _Work(service, languages, call, request.headers.get("x-request-id"))
            return JSONResponse(await unless_disconnected(request.receive, work.translate(asked)))

    @router.post("/translate_file")
    async def translate_file(request: Request) -> Response:
        """A file in a form; the answer says where the translated one is."""
        with Call(service, "http", "translate_file", http_arrival(request.scope)) as call:
            file, source, target = file_to_translate(await fields_of(request, limits.media_bytes))
            work = _Work(service, languages, call, request.headers.get("x-request-id"))
            name, truncated = await unless_disconnected(
                request.receive, work.translate_file(file, source, target)
            )
            body: dict[str, Any] = {"translatedFileUrl": str(request.url_for("download_file", name=name))}
            return JSONResponse(body | {"truncated": True} if truncated else body)

    @router.get("/download_file/{name}")
    async def download_file(name: str) -> Response:
        """A translated file, for half an hour."""
        key, _, shown = name.partition(".")
        if not key:
            raise InvalidRequest("Invalid filename")
        data = await service.files.get(key)
        if data is None:
            raise HTTPException(404, "No such file, or no more: translate it again")
        shown = _UNSAFE.sub("_", shown)
        headers = {
            "Content-Disposition": f'attachment; filename="{shown}"',
            "X-Content-Type-Options": "nosniff",
        }
        return Response(data, headers=headers, media_type="application/octet-stream")

    @router.post("/detect")
    async def detect(request: Request) -> Response:
        """The likeliest languages of a text."""
        with Call(service, "http", "detect", http_arrival(request.scope)):
            text = text_to_detect(await fields_of(request, limits.message_bytes))
            found = await service.tokenizing(lambda: languages.detected(text), text)
        return JSONResponse([one.body() for one in found])

    @router.get("/languages")
    async def listed() -> Response:
        """The languages and what each is translated to."""
        return JSONResponse(languages.listed)

    @router.post("/suggest")
    async def suggest() -> Response:
        """Suggestions are refused: nothing here learns from them."""
        return JSONResponse({"error": "Suggestions are disabled on this server."}, 403)

    @router.get("/frontend/settings")
    async def settings() -> Response:
        """What LibreTranslate's page asks for."""
        first = next((one for one in languages.listed if one["targets"]), {"code": "", "targets": [""]})
        others = [code for code in first["targets"] if code != first["code"]]
        names = {one["code"]: one["name"] for one in languages.listed}
        target = (others or first["targets"])[0]
        return JSONResponse(
            {
                "charLimit": limits.message_bytes // _BYTES_A_CHARACTER,
                "frontendTimeout": _FRONTEND_TIMEOUT_MS,
                "apiKeys": service.guard.closed,
                "keyRequired": service.guard.closed,
                "suggestions": False,
                "filesTranslation": True,
                "supportedFilesFormat": list(FORMATS),
                "language": {
                    "source": {"code": AUTO, "name": "Auto Detect"},
                    "target": {"code": target, "name": names.get(target, target)},
                },
            }
        )

    @router.get("/spec")
    async def spec() -> Response:
        """These endpoints."""
        shown = get_openapi(title="Tandem", version=version("tandem-serve"), routes=router.routes)
        return JSONResponse(shown)

    return router


class _Work:
    """One call of a client."""

    def __init__(self, service: Service, languages: Languages, call: Call, request_id: str | None) -> None:
        self._service, self._languages, self._call = service, languages, call
        self._request_id = request_id

    async def translate(self, asked: Translation) -> dict[str, Any]:
        """The body of the answer."""
        pages = await asyncio.to_thread(lambda: [Markup(text) for text in asked.texts]) if asked.html else []
        read = [page.text for page in pages] if asked.html else asked.texts
        told, detected = await self._direction(asked.source, asked.target, "\n".join(read))
        translator = Translator(self._service, self._call, told, asked.split, self._request_id)
        if asked.html:
            made = iter(await translator.phrases([phrase for page in pages for phrase in page.phrases]))
            found = [[page.render([next(made) for _ in page.phrases])] for page in pages]
        else:
            found = await translator.alternatives(asked.texts, asked.alternatives)
        best, others = [each[0] for each in found], [each[1:] for each in found]
        body: dict[str, Any] = {"translatedText": best if asked.several else best[0]}
        if detected is not None:
            body["detectedLanguage"] = [detected.body()] * len(best) if asked.several else detected.body()
        if translator.truncated:  # Tandem's own: the model's limit has cut a translation off
            body["truncated"] = True
        if asked.alternatives:  # HTML has none, as with LibreTranslate
            body["alternatives"] = others if asked.several else others[0]
        return body

    async def translate_file(self, file: FormFile, source: str, target: str) -> tuple[str, bool]:
        """The name under which the translated file is kept, and whether a translation in it is cut off."""
        parsed = await asyncio.to_thread(read_file, file.name, file.data)
        told, _ = await self._direction(source, target, parsed.text)
        translator = Translator(self._service, self._call, told, "sentence", self._request_id)
        made = await translator.phrases(parsed.phrases)
        name = PurePath(file.name)
        shown = _UNSAFE.sub("_", f"{name.stem}_{target}{name.suffix}").lstrip("._")
        key = await self._service.files.put(await asyncio.to_thread(parsed.render, made))
        return f"{key}.{shown}", translator.truncated

    async def _direction(self, source: str, target: str, text: str) -> tuple[TaskOptions, Detected | None]:
        """The languages as the model's requests call them, and what was detected where it was asked for."""
        code = self._languages.target(target)
        detected = None
        if source == AUTO:
            look = lambda: self._languages.detected_source(text, code)  # noqa: E731
            source, detected = await self._service.tokenizing(look, text)
        else:
            source = self._languages.source(source, code)
        return TaskOptions(source_language=source, target_language=code), detected
