"""`/translate_file`, and the store that holds what it makes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tandem.cluster.ingress.files import FileStore

SENTENCE = "le chat est sur le tapis"


async def test_files_are_translated_and_fetched_by_their_address(http: httpx.AsyncClient) -> None:
    for name, data, expected in (
        ("my notes.txt", b"the cat\r\n\r\na\n", f"{SENTENCE}\r\n\r\n{SENTENCE}\n"),
        ("../a.html", b"<p>a</p>", f"<p>{SENTENCE}</p>"),
        (
            "ü.srt",
            b"1\n00:00:01,000 --> 00:00:02,000\na\n",
            f"1\n00:00:01,000 --> 00:00:02,000\n{SENTENCE}\n",
        ),
    ):
        sent = await http.post(
            "/translate_file", files={"file": (name, data)}, data={"source": "en", "target": "fr"}
        )
        url = sent.json()["translatedFileUrl"]
        assert url.startswith("http://tandem/download_file/")
        got = await http.get(url)
        assert got.content.decode() == expected
        assert got.headers["content-disposition"].startswith('attachment; filename="')
        assert got.headers["content-disposition"].endswith(f'fr.{name.rpartition(".")[2]}"')
    other = await http.get("http://tandem/download_file/guess.a_fr.txt")
    assert (other.status_code, list(other.json())) == (404, ["error"])


@pytest.mark.parametrize(("files", "data", "message"), [
    ({}, {"source": "en", "target": "fr"}, "Invalid request: missing file parameter"),
    ({"file": ("a.txt", b"a")}, {"target": "fr"}, "Invalid request: missing source parameter"),
    ({"file": ("a.xyz", b"a")}, {"source": "en", "target": "fr"},
     "Invalid request: file format not supported"),
    ({"file": ("a.txt", b"\xe9")}, {"source": "en", "target": "fr"}, "file: is not UTF-8: save it as UTF-8"),
    ({"file": ("a.txt", b"a")}, {"source": "en", "target": "zz"}, "zz is not supported"),
    ({}, {"file": "text", "source": "en", "target": "fr"}, "file: must be a file"),
])  # fmt: skip
async def test_bad_files(http: httpx.AsyncClient, files: Any, data: dict[str, str], message: str) -> None:
    response = await http.post("/translate_file", files=files or None, data=data)
    assert (response.status_code, response.json()) == (400, {"error": message})


def test_the_store_of_files_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    store = FileStore(lambda: now)
    monkeypatch.setattr("tandem.cluster.ingress.files._BYTES", 10)
    names = [store.put(bytes([n]) * 4) for n in range(3)]
    assert [store.get(name) for name in names] == [None, b"\1" * 4, b"\2" * 4]
    assert store.put(b"x" * 11) is not None, "what is larger than the store is gone at once"
    kept = store.put(b"y")
    now = 1799.0
    assert store.get(kept) == b"y"
    now = 1801.0
    assert store.get(kept) is None
    assert len({store.put(b"") for _ in range(100)}) == 100
    assert min(len(store.put(b"")) for _ in range(100)) >= 22
