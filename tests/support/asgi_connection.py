"""A raw ASGI connection, whose client can hang up."""

from __future__ import annotations

import asyncio
from typing import Any

from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service


class Connection:
    def __init__(
        self, service: Service, body: bytes, path: str = "/v1/completions", content: str = "application/json"
    ) -> None:
        self._app, self._path, self._content = build_app(service), path, content
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": body})
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def open(self) -> asyncio.Task[None]:
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
            "method": "POST", "path": self._path, "raw_path": self._path.encode(), "scheme": "http",
            "query_string": b"", "headers": [(b"content-type", self._content.encode())],
        }  # fmt: skip
        return asyncio.create_task(self._app(scope, self._messages.get, self.sent.put))  # type: ignore[arg-type]

    def hang_up(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})
