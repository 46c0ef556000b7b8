"""A small Hugging Face hub on the loopback: the endpoints that huggingface_hub fetches models by."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repository:
    """Files by commit; `revisions` are the branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    gated: bool = False  # the listing may be read, the files may not

    def commit(self, files: dict[str, bytes], *names: str) -> str:
        """Adds a commit that `main` and the names then stand for. Returns it."""
        digest = hashlib.sha1()
        for name, content in sorted(files.items()):
            digest.update(name.encode() + b"\0" + content)
        self.commits[digest.hexdigest()] = files
        self.revisions |= dict.fromkeys(("main", *names), digest.hexdigest())
        return digest.hexdigest()


class Hub:
    """The repositories by id, and what has been asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.status: int | None = None  # what every request is answered with
        self.calls: list[str] = []  # method and path
        self.endpoint = ""

    def add(self, repository: str, folder: Path, **more: bytes) -> Repository:
        """A repository of a folder's files."""
        files = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        made = self.repositories.setdefault(repository, Repository())
        made.commit(files | more)
        return made

    @property
    def fetched(self) -> set[str]:
        """The names of the files whose content was sent."""
        return {
            call.partition("/resolve/")[2].partition("/")[2]
            for call in self.calls
            if call[:4] == "GET " and "/resolve/" in call
        }


@contextmanager
def running(cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub asks in this process, with an empty cache."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:  # read from the environment at import only
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.calls.append(f"{self.command} {path}")
        if self.hub.status is not None:
            self._send(self.hub.status, b"", {})
        elif path.startswith("/api/models/"):
            self._listing(path.removeprefix("/api/models/"))
        else:
            repository, _, rest = path[1:].partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._file(repository, revision, name)

    def _listing(self, path: str) -> None:
        repository, tree, revision = path.partition("/tree/")
        if not tree:
            repository, _, revision = path.partition("/revision/")
        known = self.hub.repositories.get(repository)
        if known is None:  # as for a private one
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return
        commit = known.revisions.get(revision or "main", revision)
        if commit not in known.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        files = known.commits[commit]
        value: Any = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        if tree:
            value = [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                for name, content in files.items()
            ]
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, revision: str, name: str) -> None:
        known = self.hub.repositories.get(repository)
        if known is None:
            self._send(404, b"", {})
            return
        commit = known.revisions.get(revision, revision)
        if known.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Repo-Commit": commit})
            return
        content = known.commits[commit].get(name)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        self._send(200, content, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
