"""What Serve's proxies answer whose replica died with the request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import grpc
from ray.exceptions import RayActorError
from ray.serve._private import proxy
from ray.serve._private.proxy_request_response import ResponseStatus


def answer_unavailable(message: str) -> None:
    """Makes the proxies of this process answer UNAVAILABLE, or 503, with this message. Serve's own answer is
    INTERNAL, or 500, with Ray's account of the death, and no client tries that again."""
    codes: dict[str, Any] = {
        "get_http_response_status": 503,
        "get_grpc_response_status": grpc.StatusCode.UNAVAILABLE,
    }
    for name, code in codes.items():
        asked = getattr(proxy, name)
        if not hasattr(asked, "__wrapped__"):
            setattr(proxy, name, _saying(message, code, asked))


def _saying(message: str, code: Any, asked: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(asked)
    def status(error: BaseException, *arguments: Any) -> Any:
        if isinstance(error, RayActorError):
            return ResponseStatus(code=code, is_error=True, message=message)
        return asked(error, *arguments)

    return status
