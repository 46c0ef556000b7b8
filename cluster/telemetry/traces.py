"""Spans of clients' calls, in OpenTelemetry's protocol: a call, and within it, for each of its sequences, the
encoding of its input, the hand-off to a decoder and the decoding.

The ingress makes all of them, from what it sees and what the engines say of their time. A client's W3C trace
context is the parent. Without an endpoint nothing here costs anything, nor is OpenTelemetry's SDK needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, Final

from tandem.errors import InvalidRequest

_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http"
_PARENT: Final = ("traceparent", "tracestate")  # of W3C's Trace Context, in headers and metadata
_NS: Final = 1e9

_tracer: Any = None  # of OpenTelemetry; None: there is no endpoint

# The trace of the call that a task works for; None: it is not traced.
TRACE: ContextVar[CallTrace | None] = ContextVar("TRACE", default=None)


def check(endpoint: str | None) -> None:
    """Raises InvalidRequest where spans are to be sent and cannot be."""
    if endpoint is None:
        return
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidRequest(f"must be an OTLP/HTTP receiver's URL, got {endpoint!r}", field="otlp_endpoint")
    try:
        found = find_spec(_EXPORTER)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise InvalidRequest(
            "needs OpenTelemetry's exporter: pip install 'tandem-serve[otlp]'", field="otlp_endpoint"
        )


def start(endpoint: str | None, *, model: str, replica: str) -> Any:
    """Sends this process's spans to the endpoint, if there is one. Returns OpenTelemetry's provider, whose
    `shutdown` sends the last; else None. Raises what `check` raises."""
    check(endpoint)
    if endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create(
        {"service.name": "tandem", "service.instance.id": replica, "tandem.model": model}
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    use(provider)
    return provider


def use(provider: Any) -> None:
    """Makes spans with a provider of OpenTelemetry's; None: no more."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("tandem")


def parent_of(headers: Iterable[tuple[str | bytes, str | bytes]]) -> dict[str, str]:
    """A client's trace context, where calls are traced; headers have names in lower case."""
    if _tracer is None:
        return {}
    return {name: _text(value) for each, value in headers if (name := _text(each)) in _PARENT}


def begin(protocol: str, method: str, parent: Mapping[str, str], arrived: float) -> CallTrace | None:
    """The trace of a call that arrived then, on the event loop's clock, which is `TRACE` from here on; None
    where calls are not traced."""
    if _tracer is None:
        return None
    trace = CallTrace(_tracer, f"{protocol} {method}", parent, arrived)
    TRACE.set(trace)
    return trace


class CallTrace:
    """A call's span, and those within it. All times are on the event loop's clock, in seconds."""

    def __init__(self, tracer: Any, name: str, parent: Mapping[str, str], arrived: float) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._ahead_s = time.time() - time.monotonic()  # of the event loop's clock
        context = TraceContextTextMapPropagator().extract(parent)
        self._span = tracer.start_span(
            name, context=context, kind=SpanKind.SERVER, start_time=self._ns(arrived)
        )
        self._within = set_span_in_context(self._span)

    def add(self, name: str, begun: float, ended: float, **attributes: int) -> None:
        """A part of the call that has ended."""
        span = self._tracer.start_span(
            name,
            context=self._within,
            start_time=self._ns(begun),
            attributes={f"tandem.{name}": value for name, value in attributes.items()},
        )
        span.end(self._ns(max(begun, ended)))

    def end(self, fields: Mapping[str, object]) -> None:
        """Ends the call's span. `fields` are those of its line in the log."""
        from opentelemetry.trace import Status, StatusCode

        for name, value in fields.items():
            if value is not None and value != "":
                self._span.set_attribute(f"tandem.{name}", value)
        if fields["status"] in ("INTERNAL", "UNAVAILABLE"):  # the server's fault
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _ns(self, at: float) -> int:
        return int((at + self._ahead_s) * _NS)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
