"""OpenAI's request lines in a batch, against an HTTP server whose answers each test scripts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest
from batches import Server, in_process, output, read, write

from tandem.batch import answerer
from tandem.batch import run as batch
from tandem.batch.openai_lines import HttpServer
from tandem.errors import InvalidRequest


class Handler(BaseHTTPRequestHandler):
    """Answers with the prompt in capitals, but first with the statuses that a test lists."""

    posts: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    statuses: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.posts.append((self.path, body))
        status = self.statuses.pop(0) if self.statuses else 400 if "wild" in body else 200
        said: dict[str, Any] = {"id": "cmpl-1", "choices": [{"text": body.get("prompt", "").upper()}]}
        said |= {"usage": {"completion_tokens": 3}}
        data = json.dumps(said if status == 200 else {"error": {"message": "no", "param": "wild"}}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    Handler.posts.clear()
    Handler.statuses.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def line(custom_id: Any, body: Any, url: str = "/v1/completions", **others: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **others}


def run(
    files: tuple[Path, Path], url: str | None, server: Server | None = None, **options: Any
) -> batch.Summary:
    return batch.run(
        *files,
        None if server is None else lambda: server,
        connect_http=None if url is None else lambda: HttpServer([url]),
        use_tqdm=False,
        pipeline=in_process,
        **options,
    )


def test_each_line_is_posted_and_has_openais_answer(files: tuple[Path, Path], url: str) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 7}
    write(
        files[0],
        line("a", {"prompt": "hi", "max_tokens": 9}),
        line("b", chat, "/v1/chat/completions"),
        line("c", {"input": "x"}, "/v1/embeddings"),
        line("d", {"prompt": "x", "wild": 1}),
    )
    assert run(files, url, defaults={"max_tokens": 5, "temperature": 0}) == batch.Summary(3, 1, 9)
    first, second, third, fourth = read(files[1])
    assert [one["custom_id"] for one in (first, second, third, fourth)] == ["a", "b", "c", "d"]
    assert len({one["id"] for one in (first, second, third, fourth)}) == 4
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    assert first["response"]["body"]["choices"] == [{"text": "HI"}]
    assert fourth["response"]["status_code"] == 400
    assert fourth["response"]["body"] == {"error": {"message": "no", "param": "wild"}}
    bodies = {path: body for path, body in Handler.posts if "wild" not in body}
    common = {"priority": -10, "timeout_s": 600}
    assert bodies["/v1/completions"] == {**common, "prompt": "hi", "max_tokens": 9, "temperature": 0}
    assert bodies["/v1/chat/completions"] == {**common, **chat, "temperature": 0}
    assert bodies["/v1/embeddings"] == {**common, "input": "x"}


def test_lines_of_both_kinds_and_a_run_that_goes_on(files: tuple[Path, Path], url: str) -> None:
    write(files[0], line("a", {"prompt": "hi"}), {"prompt": "b"}, line("c", {"prompt": "ho"}))
    run(files, url, Server())
    whole = files[1].read_text()
    assert read(files[1])[1]["outputs"] == [{"text": "B", "finish_reason": "stop", "tokens": 3}]
    files[1].write_text("".join(whole.splitlines(keepends=True)[:1]) + '{"id": "batch_r')
    assert run(files, url, Server()) == batch.Summary(2, 0, 6)
    assert [one.get("custom_id") for one in read(files[1])] == ["a", None, "c"]
    write(files[0], line("z", {"prompt": "hi"}), {"prompt": "b"}, line("q", {"prompt": "ho"}))
    with pytest.raises(InvalidRequest, match="does not answer line 3"):
        run(files, url, Server())


@pytest.mark.parametrize("custom_id", [None, ["a"], 1.5, 5, ""])
def test_a_run_goes_on_after_a_line_whose_custom_id_is_none(
    files: tuple[Path, Path], url: str, custom_id: Any
) -> None:
    write(files[0], line(custom_id, {"prompt": "hi"}), line("b", {"prompt": "ho"}))
    run(files, url)
    whole = files[1].read_text()
    files[1].write_text(whole.splitlines(keepends=True)[0])
    assert run(files, url) == batch.Summary(1, 0, 3)
    assert read(files[1])[1]["custom_id"] == "b"
    files[1].write_text('{"something": "else"}\n')
    with pytest.raises(InvalidRequest, match="does not answer line 1"):
        run(files, url)


def test_a_url_with_the_version_and_connections_that_are_closed(
    files: tuple[Path, Path], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[aiohttp.ClientSession] = []
    session = aiohttp.ClientSession

    def remembered(**given: Any) -> aiohttp.ClientSession:
        made.append(session(**given))
        return made[-1]

    monkeypatch.setattr(aiohttp, "ClientSession", remembered)
    write(files[0], *(line(f"{n}", {"prompt": "hi"}) for n in range(20)))
    for base in (f"{url}/v1", f"{url}/v1/", f"{url}/"):
        files[1].unlink(missing_ok=True)
        assert run(files, base).answered == 20
    assert {path for path, _ in Handler.posts} == {"/v1/completions"}
    assert len(made) == 6, "one for each chunk, where one is at work at a time"
    assert all(one.closed for one in made)


def test_a_server_that_is_full_or_gone_is_tried_again(
    files: tuple[Path, Path], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerer, "_FIRST_PAUSE_S", 0.01)
    Handler.statuses.extend([503, 429, 500, 200])
    write(files[0], line("a", {"prompt": "hi"}))
    assert run(files, url).answered == 1
    Handler.statuses.extend([500, 500, 500])
    files[1].unlink()
    assert run(files, url).refused == 1
    [said] = read(files[1])
    assert said["response"] is None
    assert said["error"]["code"] == "internal"


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (line("a", {"prompt": "x"}, wild=1), "wild"),
        (line("a", {"prompt": "x"}, url="/v1/responses"), "url"),
        ({**line("a", {"prompt": "x"}), "method": "GET"}, "method"),
        (line("a", "x"), "body"),
        (line("a", {"prompt": "x", "stream": True}), "body.stream"),
        (line(3, {"prompt": "x"}), "custom_id"),
        ({"custom_id": "a"}, "url"),
    ],
)
def test_a_bad_line_is_refused_by_name_and_alone(
    files: tuple[Path, Path], url: str, bad: dict[str, Any], field: str
) -> None:
    write(files[0], bad, line("b", {"prompt": "hi"}))
    assert run(files, url) == batch.Summary(1, 1, 3)
    said, _ = read(files[1])
    assert said["custom_id"] == bad["custom_id"]
    assert said["error"]["code"] == "invalid_argument"
    assert said["error"]["message"].startswith(f"{field}: ")


def test_lines_without_a_connection_say_which_is_needed(files: tuple[Path, Path], url: str) -> None:
    write(files[0], line("a", {"prompt": "hi"}), {"prompt": "b"})
    assert run(files, None, Server()) == batch.Summary(1, 1, 3)
    assert "http://HOST:PORT" in read(files[1])[0]["error"]["message"]
    files[1].unlink()
    assert run(files, url) == batch.Summary(1, 1, 3)
    assert "the gRPC endpoint" in read(files[1])[1]["error"]["message"]
    assert output("x").outputs
