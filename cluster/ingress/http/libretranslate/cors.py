"""Pages of any origin may call LibreTranslate's API, as they may LibreTranslate, and no other API."""

from __future__ import annotations

from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tandem.cluster.ingress.http.errors import LIBRETRANSLATE

_MAX_AGE_S: Final = 20 * 24 * 60 * 60  # LibreTranslate's


class OfLibreTranslate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open = CORSMiddleware(
            app,
            allow_origins=["*"],
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Authorization"],
            max_age=_MAX_AGE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._open if scope.get("path", "").startswith(LIBRETRANSLATE) else self._app
        await app(scope, receive, send)
