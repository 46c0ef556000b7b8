"""Spans of calls: a child of the client's own span, with encoding, hand-off and decoding within it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fake_cluster import FakeCluster, request
from fake_router import FakeRouter
from fake_service import connected, make_service
from grpc_calls import Api, Context, refused
from models import make_checkpoint
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tandem.cluster.telemetry import traces
from tandem.errors import InvalidRequest
from tandem.workers.requests.request_builder import RequestBuilder

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"  # the example of W3C's recommendation


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces.use(provider)
    yield exporter
    traces.use(None)
    traces.TRACE.set(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "flan")


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9, span.end_time / 1e9


async def test_a_call_is_a_child_of_its_clients_span(folder: Path, spans: InMemorySpanExporter) -> None:
    service = make_service(folder, RequestBuilder.load(folder, "tiny"), FakeRouter([5, 6]))
    async with connected(service) as http:
        headers = {"traceparent": TRACEPARENT, "x-request-id": "mine"}
        answer = await http.post("/v1/completions", json={"prompt": [3], "max_tokens": 2}, headers=headers)
        assert answer.status_code == 200
        other = await http.post("/v1/completions", json={"prompt": [3]}, headers={"traceparent": "x"})
        assert other.status_code == 200
    context = Context(traceparent=TRACEPARENT)
    await refused(Api(service).Generate(b"\xff", context), context)
    whole, orphan, bad = spans.get_finished_spans()
    assert whole.name == "http completions"
    assert whole.kind is SpanKind.SERVER
    assert whole.attributes is not None
    assert whole.attributes["tandem.request_id"] == "mine"
    assert whole.attributes["tandem.status"] == "OK"
    assert whole.attributes["tandem.generated_tokens"] == 2
    for span in (whole, bad):
        assert span.parent is not None
        assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert bad.name == "grpc Generate"
    assert bad.attributes is not None
    assert bad.attributes["tandem.status"] == "INVALID_ARGUMENT"
    assert bad.status.is_unset  # the client's fault
    assert orphan.parent is None
    first, last = seconds(whole)
    assert 0 <= last - first < 60


@pytest.mark.parametrize("disaggregated", [True, False])
async def test_the_parts_of_a_call_follow_one_another(
    disaggregated: bool, spans: InMemorySpanExporter
) -> None:
    async with FakeCluster(disaggregated=disaggregated) as cluster:
        if disaggregated:
            cluster.encoders.step_s = 0.02
        await cluster.collect(request("untraced"))
        now = time.monotonic()
        trace = traces.begin("grpc", "Generate", {"traceparent": TRACEPARENT}, now)
        assert trace is not None
        await cluster.collect(request("r", tokens=7))
        trace.end({"status": "OK"})
    *parts, call = spans.get_finished_spans()
    expected = ["encode", "handoff", "decode"] if disaggregated else ["queue", "decode"]
    assert [part.name for part in parts] == expected
    begun, ended = seconds(call)
    for part, later in zip(parts, [*parts[1:], None], strict=True):
        assert part.parent is not None
        assert part.parent.span_id == call.context.span_id
        first, last = seconds(part)
        assert begun - 0.01 <= first <= last <= ended + 0.01
        if later is not None:
            assert last == pytest.approx(seconds(later)[0], abs=0.02)
    assert parts[-1].attributes == {"tandem.generated_tokens": 7}
    if disaggregated:
        assert seconds(parts[0])[1] - seconds(parts[0])[0] >= 0.02


async def test_without_an_endpoint_nothing_is_made() -> None:
    traces.start(None, model="tiny", replica="r")
    assert traces.begin("http", "completions", {}, 0.0) is None
    assert traces.parent_of([(b"traceparent", TRACEPARENT.encode())]) == {}
    async with FakeCluster() as cluster:
        await cluster.collect(request("r"))


def test_spans_arrive_at_the_endpoint() -> None:
    received: list[tuple[str, ExportTraceServiceRequest]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            received.append((self.path, ExportTraceServiceRequest.FromString(data)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    provider = traces.start(f"http://127.0.0.1:{server.server_port}/", model="tiny", replica="r1")
    try:
        trace = traces.begin("http", "completions", {}, time.monotonic())
        assert trace is not None
        trace.end({"status": "UNAVAILABLE", "tenant": "", "refused": None})
        assert provider is not None
        provider.force_flush()
    finally:
        traces.use(None)
        traces.TRACE.set(None)
        provider.shutdown()
        server.shutdown()
    [(path, message)] = received
    assert path == "/v1/traces"
    [resource] = message.resource_spans
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (attributes["service.name"], attributes["tandem.model"]) == ("tandem", "tiny")
    [span] = resource.scope_spans[0].spans
    assert span.name == "http completions"
    assert [each.key for each in span.attributes] == ["tandem.status"]
    assert span.status.code == span.status.STATUS_CODE_ERROR


@pytest.mark.parametrize(
    ("endpoint", "missing", "said"),
    [("localhost:4318", False, "must be an OTLP/HTTP"), ("http://x", True, r"tandem-serve\[otlp\]")],
)
def test_what_cannot_be_sent_is_refused_before_anything_starts(
    endpoint: str, missing: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        monkeypatch.setattr(traces, "find_spec", lambda _: None)
    with pytest.raises(InvalidRequest, match=said) as caught:
        traces.check(endpoint)
    assert caught.value.field == "otlp_endpoint"
