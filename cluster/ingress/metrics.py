"""The metrics of `/metrics`: requests as this ingress replica sees them, workers as its router knows them.

Those of calls and of tokens have the label `tenant`, the name of the key's holder, "" where no keys are asked
for. Every series has the labels `model` and `replica` (of the ingress), because a scrape through a proxy or a
service meets one replica after another. Several routers report the same engine: take `max by (engine)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tandem.cluster.callers import ANYBODY, Caller
from tandem.cluster.router.router import RouterStats
from tandem.cluster.telemetry import disk, logs
from tandem.errors import Refusal, TandemError, status_of
from tandem.kernels.cpu.ops import COMPILED
from tandem.outputs import FinishReason
from tandem.transcription import TranscriptionMode

Protocol = Literal["grpc", "http"]

# Buckets in seconds, from a small model's step on a GPU to a long answer's end.
_LATENCY: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_REAL_TIME: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LABELS: Final = ("model", "replica")


class Metrics:
    """One registry for one ingress replica. It measures all intervals by its own monotonic clock."""

    def __init__(self, model: str, replica: str, router_stats: Callable[[], RouterStats]) -> None:
        self.registry = CollectorRegistry()
        labels = (model, replica)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(f"tandem_{name}", text, _LABELS, registry=self.registry, buckets=buckets)
            return metric.labels(*labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"tandem_{name}", text, _LABELS, registry=self.registry).labels(*labels)

        def by_tenant(name: str, text: str) -> Callable[[str], Counter]:
            metric = Counter(f"tandem_{name}", text, (*_LABELS, "tenant"), registry=self.registry)
            series = cache(lambda tenant: metric.labels(*labels, tenant))  # slow to find, for each piece
            series(ANYBODY.name)  # from the start
            return series

        self.first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _LATENCY
        )
        self.queue = histogram(
            "request_queue_time_seconds",
            "From a sequence's arrival at the router until it joined an engine's batch, encoding included.",
            _LATENCY,
        )
        self.between_tokens = histogram(
            "inter_token_latency_seconds",
            "From one token of a sample to its next; unless streamed, the mean over up to a second.",
            _TOKEN,
        )
        self.whole_request = histogram(
            "e2e_request_latency_seconds",
            "From a request's arrival to its last token, if it succeeded.",
            _LATENCY,
        )
        self._encoder_tokens = by_tenant(
            "prompt_tokens", "Encoder positions of accepted requests: tokens, and what media take."
        )
        self._media_tokens = by_tenant("prompt_media_tokens", "Encoder positions of media, among those.")
        self._generated_tokens = by_tenant("generation_tokens", "Tokens delivered to clients.")
        self.audio_seconds = counter("transcribed_audio_seconds", "Audio of recordings, once transcribed.")
        self.real_time = histogram(
            "transcription_real_time_factor",
            "Time a whole transcription took, from the request's arrival, over its recording's.",
            _REAL_TIME,
        )
        self._windows = Counter(
            "tandem_transcription_windows",
            "Windows of recordings that were decoded, by the way that is taken through a recording.",
            (*_LABELS, "mode"),
            registry=self.registry,
        )
        self.hypotheses = counter(
            "live_hypotheses", "Hypotheses about speech that goes on, or has just ended."
        )
        self.silent_windows = counter(
            "transcription_silent_windows", "Windows left out, as nobody speaks there."
        )
        self.refused_answers = counter(
            "transcription_refused_answers",
            "Answers that the thresholds refused: the window is decoded again, at the next temperature.",
        )
        self._ended = Counter(
            "tandem_requests",
            "Requests that have ended, by the name of their gRPC status.",
            (*_LABELS, "protocol", "method", "status", "tenant"),
            registry=self.registry,
        )
        self._finished = Counter(
            "tandem_finished",
            "Answers given, by how they ended: stop, length (at max_tokens), deadline (cut off).",
            (*_LABELS, "finish_reason"),
            registry=self.registry,
        )
        self._refused = Counter(
            "tandem_refused",
            "Requests of which nothing was done, by the reason: queue, media or audio (a limit of what one "
            "router has in work), wait (max_queue_wait_s), deadline (not whole in time), quota (its "
            "caller's), shutdown.",
            (*_LABELS, "reason"),
            registry=self.registry,
        )
        # Rates of what never happened are 0, not missing.
        for ended in ("stop", "length", "deadline"):
            self._finished.labels(*labels, ended)
        for reason in get_args(Refusal):
            self._refused.labels(*labels, reason)
        build = Gauge(
            "tandem_build_info",
            "1. What this replica runs.",
            (*_LABELS, "version", "torch", "ray", "cpu_kernels"),
            registry=self.registry,
        )
        build.labels(*labels, *map(version, ("tandem-serve", "torch", "ray")), str(COMPILED).lower()).set(1)
        room = Gauge(
            "tandem_disk_free_ratio",
            "How much is free of the disk that Ray's files are on, 0 to 1.",
            _LABELS,
            registry=self.registry,
        )
        room.labels(*labels).set_function(disk.free_ratio)
        self._labels = labels
        self.registry.register(_RouterCollector(labels, router_stats))

    def ended(self, protocol: Protocol, method: str, status: str, caller: Caller = ANYBODY) -> None:
        """Counts a call that has ended."""
        self._ended.labels(*self._labels, protocol, method, status, caller.name).inc()

    def turned_away(self, protocol: Protocol, method: str, error: TandemError) -> None:
        """Counts and logs a call that was not let in. It is nobody's, and over HTTP has no method."""
        status = status_of(error).grpc
        self.ended(protocol, method, status)
        self.refused(error)
        logs.call({"protocol": protocol, "method": method, "status": status, "refused": error.refused})

    def encoded(self, tokens: int, media_tokens: int, caller: Caller) -> None:
        """Counts an encoder input's positions, and those of its media among them."""
        self._encoder_tokens(caller.name).inc(tokens)
        self._media_tokens(caller.name).inc(media_tokens)
        caller.spend(tokens)

    def generated(self, tokens: int, caller: Caller) -> None:
        self._generated_tokens(caller.name).inc(tokens)
        caller.spend(tokens)

    def finished(self, reason: FinishReason) -> None:
        self._finished.labels(*self._labels, reason).inc()

    def refused(self, error: TandemError) -> None:
        """Counts a refusal, if the error is one."""
        if error.refused is not None:
            self._refused.labels(*self._labels, error.refused).inc()

    def windows(self, mode: TranscriptionMode, count: int) -> None:
        self._windows.labels(*self._labels, mode).inc(count)

    def text(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)


class _RouterCollector(Collector):
    def __init__(self, labels: tuple[str, str], stats: Callable[[], RouterStats]) -> None:
        self._labels, self._stats = labels, stats

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not ask a router that has not started

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        encoder = stats.encoder
        gauges: tuple[tuple[str, str, float], ...] = (
            ("encoder_replicas", "Encoder replicas known.", stats.encoder_replicas),
            ("engines", "Engines attached that accept requests.", len(stats.engines)),
            ("router_requests", "Sequences accepted and not ended.", stats.outstanding),
            ("router_requests_waiting", "Sequences that wait for room on an engine.", stats.waiting),
            ("encoder_queued_tokens", "Tokens waiting for an encoder.", stats.queued_encoder_tokens),
            ("encoder_cache_bytes", "Hidden states kept for reuse.", stats.encoder_cache_bytes),
            ("media_cache_bytes", "Vision models' outputs that encoders keep.", stats.media_cache_bytes),
        )
        counters: tuple[tuple[str, str, float], ...] = (
            ("encoder_batches", "Batches sent to encoders.", encoder.batches),
            ("encoder_batch_tokens", "Tokens in batches sent to encoders.", encoder.batch_tokens),
            ("encoder_time_seconds", "From sending batches to their answers.", encoder.seconds),
            ("encoder_retries", "Inputs encoded again.", encoder.retries),
            ("encoder_cache_hits", "Inputs not encoded again.", encoder.cache_hits),
            ("encoder_cache_misses", "Inputs encoded.", encoder.cache_misses),
            ("media_encoded", "Images that encoders' vision models computed.", encoder.media_encoded),
            ("media_reused", "Images that they did not compute again.", encoder.media_reused),
            ("resubmitted_requests", "Requests moved to another engine.", stats.resubmitted),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"tandem_{name}", text, labels=_LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        for name, text, value in counters:
            counter = CounterMetricFamily(f"tandem_{name}", text, labels=_LABELS)
            counter.add_metric(self._labels, value)
            yield counter
        yield from self._engines(stats)

    def _engines(self, stats: RouterStats) -> Iterable[Metric]:
        labels = (*_LABELS, "engine")
        gauges = {
            "num_requests_running": "Sequences in the batch.",
            "num_requests_waiting": "Sequences not admitted yet, preempted ones included.",
            "engine_slots": "Sequences that the batch has room for.",
            "kv_pages": "KV pages in the pool.",
            "kv_cache_usage": "Share of the KV pages in use, 0 to 1.",
            "cross_kv_pages": "Pages that hold cross-attention K/V.",
            "engine_media_cache_bytes": "Vision models' outputs that are kept, where it encodes by itself.",
        }
        counters = {
            "engine_steps": "Steps applied.",
            "engine_messages": "Messages with deltas to this router, one for a step or several.",
            "engine_generated_tokens": "Tokens generated.",
            "engine_encoded_tokens": "Encoder tokens of admitted inputs.",
            "engine_media_encoded": "Images that its vision model computed, where it encodes by itself.",
            "engine_media_reused": "Images that it did not compute again.",
            "engine_drafted_tokens": "Draft tokens computed.",
            "engine_accepted_tokens": "Draft tokens accepted.",
            "engine_compilations": "Kernels compiled and graphs captured while requests waited.",
            "preemptions": "Sequences taken out of the batch for want of pages.",
            "handoff_reads": "Batches of hidden states read from the node's object store.",
            "handoff_bytes": "Bytes of this engine's inputs in batches of hidden states read.",
            "handoff_seconds": "Until all ranks had hidden states, the rest of their encoding included.",
        }
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            name: GaugeMetricFamily(f"tandem_{name}", text, labels=labels) for name, text in gauges.items()
        }
        families |= {
            name: CounterMetricFamily(f"tandem_{name}", text, labels=labels)
            for name, text in counters.items()
        }
        waiting_for = CounterMetricFamily(
            "tandem_waiting_for",
            "Steps that the first waiting sequence did not join, by what it lacked: slots, pages, tokens of "
            "the step, the encoder, or its own last tokens, in flight.",
            labels=(*labels, "reason"),
        )
        for engine_id, engine in stats.engines.items():
            handoff = stats.handoffs[engine_id]
            values = {
                "num_requests_running": engine.running,
                "num_requests_waiting": engine.waiting,
                "engine_slots": engine.max_running,
                "kv_pages": engine.total_pages,
                "kv_cache_usage": 1 - engine.free_pages / engine.total_pages,
                "cross_kv_pages": engine.cross_pages,
                "engine_media_cache_bytes": engine.media_cache_bytes,
                "engine_steps": engine.steps,
                "engine_messages": stats.messages[engine_id],
                "engine_generated_tokens": engine.generated_tokens,
                "engine_encoded_tokens": engine.encoded_tokens,
                "engine_media_encoded": engine.media_encoded,
                "engine_media_reused": engine.media_reused,
                "engine_drafted_tokens": engine.drafted_tokens,
                "engine_accepted_tokens": engine.accepted_tokens,
                "engine_compilations": engine.compilations,
                "preemptions": engine.preemptions,
                "handoff_reads": handoff.reads,
                "handoff_bytes": handoff.nbytes,
                "handoff_seconds": handoff.seconds,
            }
            for name, value in values.items():
                families[name].add_metric((*self._labels, engine_id), value)
            for reason, steps in engine.waiting_for.items():
                waiting_for.add_metric((*self._labels, engine_id, reason), steps)
        return (*families.values(), waiting_for)
