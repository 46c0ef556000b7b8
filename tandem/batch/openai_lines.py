"""OpenAI's lines of a batch: requests with `custom_id`, `method`, `url` and `body`, which are posted to the
server's HTTP API as they stand, and its answers with `response` and `error`."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from tandem.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    TandemError,
    Unauthenticated,
    Unavailable,
    status_of,
)

URLS: Final = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
_MEMBERS: Final = ("custom_id", "method", "url", "body")
_GRACE_S: Final = 5.0  # that the client waits longer than the server may take


class Response(NamedTuple):
    """What the server answered: a 200, or the refusal of a request."""

    status: int
    request_id: str
    body: dict[str, Any]


def is_request(values: Mapping[str, Any]) -> bool:
    return "custom_id" in values


def request(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A line's URL and body, which has the defaults where it does not set them. Raises InvalidRequest."""
    for name in values.keys() - set(_MEMBERS):
        raise InvalidRequest(f"unknown: a request line has {', '.join(_MEMBERS)}", field=name)
    if not isinstance(values["custom_id"], str):
        raise InvalidRequest("must be a string", field="custom_id")
    if values.get("method", "POST") != "POST":
        raise InvalidRequest("must be POST", field="method")
    url, body = values.get("url"), values.get("body")
    if url not in URLS:
        raise InvalidRequest(f"must be one of {', '.join(URLS)}", field="url")
    if not isinstance(body, dict):
        raise InvalidRequest("must be an object", field="body")
    if body.get("stream"):
        raise InvalidRequest("a batch's answers are whole", field="body.stream")
    own = {} if url == "/v1/embeddings" else dict(defaults)
    if body.get("max_completion_tokens") is not None:
        own.pop("max_tokens", None)
    return url, own | body


def answer(values: Mapping[str, Any], response: Response) -> dict[str, Any]:
    """OpenAI's line of a request that the server answered."""
    return _line(
        values, {"status_code": response.status, "request_id": response.request_id, "body": response.body}
    )


def failure(values: Mapping[str, Any], error: TandemError) -> dict[str, Any]:
    """OpenAI's line of a request that has no answer."""
    return _line(values, None, {"code": status_of(error).grpc.lower(), "message": str(error)})


def tokens(line: Mapping[str, Any]) -> int | None:
    """How many were generated for an answer's line; None where it is an error."""
    response = line["response"]
    if response is None or response["status_code"] != 200:
        return None
    return int(response["body"].get("usage", {}).get("completion_tokens", 0))


def message(line: Mapping[str, Any]) -> str | None:
    """What is wrong, of an answer's line; None where nothing is."""
    if line["error"] is not None:
        return str(line["error"]["message"])
    if line["response"]["status_code"] == 200:
        return None
    body = line["response"]["body"]
    error = body.get("error", body)
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _line(
    values: Mapping[str, Any], response: dict[str, Any] | None, error: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": values["custom_id"],
        "response": response,
        "error": error,
    }


class HttpServer:
    """A server's HTTP API. One event loop makes, uses and closes it."""

    def __init__(self, urls: Sequence[str], api_key: str | None = None) -> None:
        """`urls`: its replicas', "http://host:port" each, with or without the "/v1" that OpenAI's clients
        are given; `api_key`: one that the server knows, where it asks for keys."""
        import aiohttp

        self._urls = itertools.cycle(url.rstrip("/").removesuffix("/v1") for url in urls)
        # Who posts bounds its requests, and none waits for a connection in its own time.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
        )

    async def close(self) -> None:
        await self._session.close()

    async def post(self, url: str, body: Mapping[str, Any], timeout_s: float) -> Response:
        """Raises Unauthenticated; Unavailable, Overloaded, DeadlineExceeded and InternalError, which may go
        better another time."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=timeout_s + _GRACE_S)
        try:
            async with self._session.post(next(self._urls) + url, json=body, timeout=limit) as response:
                said: Any = await response.json(content_type=None)
                status, request_id = response.status, response.headers.get("x-request-id", "")
        except TimeoutError:
            raise DeadlineExceeded(f"not finished after {timeout_s:g} s") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise Unavailable(f"the server does not answer: {error!r}") from None
        if not isinstance(said, dict):
            raise Unavailable(f"the server's answer is no object: status {status}")
        if (kind := _PASSING.get(status)) is not None:
            raise kind(str(said.get("error", said)))
        return Response(status, request_id or str(said.get("id", "")), said)


_PASSING: Final[dict[int, type[TandemError]]] = {
    401: Unauthenticated,
    429: Overloaded,
    500: InternalError,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
