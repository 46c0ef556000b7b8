"""The gRPC methods, called as Serve calls them: with bytes and its context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from tandem.cluster.ingress.grpc_api import GrpcApi
from tandem.cluster.ingress.service import Service
from tandem.errors import TandemError


class Context:
    """What Serve's gRPC context offers to a handler, as far as it is used."""

    def __init__(self, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self._metadata = list(metadata)

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


class Api(GrpcApi):
    def __init__(self, service: Service) -> None:
        self._service = service


async def consume(answer: Any) -> None:
    if hasattr(answer, "__aiter__"):
        async for _ in answer:
            pass
    else:
        await answer


async def refused(answer: Any, context: Context) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(TandemError):
        await consume(answer)
    assert context.code is not None
    return context.code, context.details
