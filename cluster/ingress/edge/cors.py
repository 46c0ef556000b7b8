"""Which pages a browser lets call: LibreTranslate's API those of any origin, as with LibreTranslate; the
others those of the origins that the server names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tandem.cluster.ingress.http.errors import LIBRETRANSLATE

_MAX_AGE_S: Final = 20 * 24 * 60 * 60  # LibreTranslate's


class Cors:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """`origins`: "https://host:port" each, or "*" for any."""
        self._others = app
        if origins:
            self._others = CORSMiddleware(
                app,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],  # OpenAI's clients send many of their own
                expose_headers=["x-request-id", "Retry-After"],
                max_age=_MAX_AGE_S,
            )
        self._libretranslate = CORSMiddleware(
            app,
            allow_origins=["*"],
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
            expose_headers=["Authorization"],
            max_age=_MAX_AGE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        libretranslate = scope.get("path", "").startswith(LIBRETRANSLATE)
        await (self._libretranslate if libretranslate else self._others)(scope, receive, send)
