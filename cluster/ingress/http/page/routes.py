"""The page's files, as they are in this folder. Everybody may read them, with a key or without: they say
nothing of the model, which the page asks the API for."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request, Response

_SCRIPT: Final = "text/javascript; charset=utf-8"
_MODULES: Final = (
    "api", "cluster", "code", "docs", "dom", "live", "main", "metrics", "microphone", "pictures", "streams",
    "tabs", "text", "transcribe", "translate",
)  # fmt: skip

# Each path, its file and the file's media type.
FILES: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/ui/style.css": ("style.css", "text/css; charset=utf-8"),
    "/ui/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/ui/{name}.js": (f"{name}.js", _SCRIPT) for name in _MODULES},
}

# No script and no style but these files, no address but this server's, and nothing that makes HTML of text.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, by its tag: a server may be another version
    "Vary": "Accept-Encoding",
}


def routes() -> APIRouter:
    router = APIRouter()
    for path, (name, media_type) in FILES.items():
        data = files(__package__).joinpath(name).read_bytes()
        router.add_api_route(
            path,
            _File(data, media_type),
            methods=["GET", "HEAD"],
            include_in_schema=False,
            response_class=Response,
            response_model=None,
        )
    return router


class _File:
    """Answers with a file, or says that the client has it."""

    def __init__(self, data: bytes, media_type: str) -> None:
        self._data, self._media_type = data, media_type
        self._packed = gzip.compress(data, mtime=0)
        self._tag = f'W/"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'

    async def __call__(self, request: Request) -> Response:
        headers = {**_HEADERS, "ETag": self._tag}
        if request.headers.get("if-none-match") == self._tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(self._packed, headers=headers, media_type=self._media_type)
        return Response(self._data, headers=headers, media_type=self._media_type)
