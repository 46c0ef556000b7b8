"""HTTP/1.1 as uvicorn speaks it, with bounds for what comes before a body: size, time, connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tandem.cluster.ingress.http.errors import error_body
from tandem.cluster.listening import Listening
from tandem.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestTooLarge, TandemError

_LINGER_S: Final = 1.0  # of a client whose head is refused
_DROPPED: Final = 2**26  # bytes a second that all refused clients of a process may still send


@dataclass(slots=True, eq=False)
class Connections:
    """Those of one process."""

    of: Counter[str] = field(default_factory=Counter)  # by their clients' addresses
    lingering: int = 0  # of those, the refused ones


class BoundedHttp(HttpToolsProtocol):
    """One connection. uvicorn's own protocol reads headers of any size, and looks at a whole one whenever
    more of it comes."""

    def __init__(self, listening: Listening, connections: Connections, **given: Any) -> None:
        """`connections`: all of the process; `given`: uvicorn's arguments."""
        super().__init__(**given)
        self._listening, self._connections = listening, connections
        self._address = ""
        self._timer: asyncio.TimerHandle | None = None  # for the head, then for a refused client
        self._refused = self._lingering = False
        self._in_message = False  # between a head and its message's end
        self._unread = 0  # bytes since the parser has last delivered anything but headers
        self._size = self._count = 0  # of this message's line and headers, trailers included
        self._fault: tuple[HTTPStatus, TandemError] | None = None  # why a callback has ended the parsing

    # --- The connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._connections.of[self._address] += 1
        most = self._listening.connections_per_address
        if most and self._connections.of[self._address] > most:
            error = Overloaded(f"an address may have {most} connections")
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, error)
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._drop(len(data))
            return
        if not self._in_message and self._timer is None:
            self._await_head()
        self._unread += len(data)
        super().data_received(data)
        if self._unread > self._listening.header_bytes and not self._refused:
            self._refuse(*self._too_large())

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The rest of a request that was answered before its end is dropped. Over TLS only a close would say
        # so, and the client would lose the answer.
        cycle = self.cycle
        if cycle.response_complete and cycle.more_body and self.transport.can_write_eof():
            self._unset_keepalive_if_required()
            self._hang_up(self._listening.head_s)

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        ended = protocol.connection_lost

        def connection_lost(error: Exception | None) -> None:
            self._leave()
            ended(error)

        protocol.connection_lost = connection_lost  # type: ignore[assignment]

    def send_400_response(self, msg: str) -> None:
        self._refuse(*(self._fault or (HTTPStatus.BAD_REQUEST, InvalidRequest(msg))))

    # --- What the parser finds ---

    def on_message_begin(self) -> None:
        self._size = self._count = 0
        if self._timer is None:
            self._await_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._add(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        self._add(len(name) + len(value) + len(b": \r\n"))
        try:
            name.decode()
            value.decode()
        except UnicodeDecodeError:
            error = InvalidRequest("is not UTF-8", field=name.decode(errors="replace"))
            self._fault = HTTPStatus.BAD_REQUEST, error
            raise
        if not self._in_message:  # else it is a trailer: nothing here has a use for one
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_message, self._unread = True, 0
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._unread = 0

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message, self._unread = False, 0
        super().on_message_complete()

    # --- Within ---

    def _add(self, size: int) -> None:
        """Counts a part of the head. Raises ValueError beyond the bounds, which ends the parsing."""
        self._size += size
        if self._count > self._listening.headers or self._size > self._listening.header_bytes:
            self._fault = self._too_large()
            raise ValueError

    def _too_large(self) -> tuple[HTTPStatus, TandemError]:
        listening = self._listening
        error = RequestTooLarge(
            f"headers may have {listening.header_bytes} bytes in all, and be {listening.headers}"
        )
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, error

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self._listening.head_s, self._late)

    def _late(self) -> None:
        if self._answering:  # the client is early with its next request, and may wait itself
            self._await_head()
            return
        error = DeadlineExceeded(f"the headers have not arrived within {self._listening.head_s:g} s")
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, error)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: HTTPStatus, error: TandemError) -> None:
        """Says why and ends the connection."""
        if self._answering:
            self._refused = True
            self.transport.close()
            return
        path = self.url.decode("latin-1") if getattr(self, "url", None) else ""
        body = to_json(error_body(error, path))
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._hang_up(_LINGER_S)

    def _hang_up(self, linger_s: float) -> None:
        """Ends the connection, once the client does or `linger_s` have passed. What it sends meanwhile is
        dropped: were it not read, the client would lose the answer."""
        self._refused = True
        self._stop_timer()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._timer = self.loop.call_later(linger_s, self.transport.abort)
            self._lingering = True
            self._connections.lingering += 1
        else:  # TLS
            self.transport.close()

    def _drop(self, size: int) -> None:
        """So many bytes that nobody wants were read: no more are, until all who send such are within their
        rate."""
        if self._lingering and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_later(size * self._connections.lingering / _DROPPED, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _leave(self) -> None:
        self._connections.lingering -= self._lingering
        self._connections.of[self._address] -= 1
        if not self._connections.of[self._address]:
            del self._connections.of[self._address]
