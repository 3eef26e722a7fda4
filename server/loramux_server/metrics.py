"""The server's numbers, in one registry of its own.

Takes observations from the runner, the engine, the store's door and the interceptors; gives a registry to
scrape, and what people are told of each number. It knows no request. No label has values that callers choose.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from loramux_server.collectors import COLLECTED
from loramux_server.described import Described
from loramux_server.frequent_adapters import REQUESTS, FrequentAdapters

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_STEP_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_LOAD_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_COUNTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32)
_TIERS = "host, device"
_PRIORITIES = "interactive, normal, batch"
_TEXTS = "prompt, cross_attention"


class Metrics:
    """Every metric the server has, by the names people scrape.

    described: what is said of each; adapter_series: adapters that have series of their own.
    """

    def __init__(self, adapter_series: int = 0) -> None:
        self.registry = CollectorRegistry()
        self.described = [*COLLECTED, REQUESTS]
        self._most = 0
        ProcessCollector(registry=self.registry)
        self.adapters = FrequentAdapters(adapter_series)
        self.registry.register(self.adapters)
        self._of_requests()
        self._of_the_engine()
        self._of_adapters()
        self._of_the_store()
        self._of_the_process()
        self._of_rpcs()
        self._begin_at_zero()

    def _of_requests(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.requests = counter("requests_total", "Requests that ended, by how.", outcome="ok, failed, cancelled")
        self.cancelled = counter(
            "cancelled_total",
            "Requests that their callers gave up, by what they were at: waiting for adapters, prompts or their turn, "
            "being drawn, or being decoded.",
            stage="queue, denoise, decode",
        )
        self.images = counter("images_total", "Pictures finished.")
        self.in_flight = gauge("requests_in_flight", "Requests taken in and not ended.")
        self.waiting = gauge("images_waiting", "Pictures whose adapters or prompt are not ready.")
        self.running = gauge("images_running", "Pictures ready to step, of which each forward takes as many as fit.")
        self.queue_limit = gauge("queue_limit", "Most pictures waiting or running, as --max-queue says.")
        self.admitted = counter("admitted_total", "Requests taken into the queue.", priority=_PRIORITIES)
        self.repeated = counter(
            "repeated_requests_total",
            "Requests answered by the drawing of an earlier one with their id: one that was under way, or one that was "
            "kept.",
            how="joined, kept",
        )
        self.queue_seconds = histogram(
            "request_queue_seconds", "Arrival to first step.", _SECONDS, priority=_PRIORITIES
        )
        self.request_seconds = histogram("request_seconds", "Arrival to end.", _SECONDS)
        self.phase_seconds = histogram(
            "request_phase_seconds",
            "What a request's time went into: having adapters and images ready, encoding its texts, first to last "
            "step, and decoding after that.",
            _SECONDS,
            phase="load, encode, denoise, decode",
        )
        self.rejected = counter(
            "rejected_total",
            "Requests refused at the door.",
            reason="ErrorInfo's: QUEUE_FULL, DEADLINE_TOO_SHORT, DRAINING, INVALID_FIELD, LAYOUT_MISMATCH, "
            "BLEND_TOO_LARGE, PINS_FULL, SCOPE_MISSING, those of limits and of tokens",
        )

    def _of_the_engine(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.engine_up = gauge("engine_up", "1 while the engine's thread runs.")
        self.runner_silent = gauge("runner_silent_seconds", "Since the tick thread last came round.")
        self.speed = gauge("speed", "Rows times latent area that recent forwards made in a second.")
        self.max_rows = gauge("max_rows", "Most rows of a UNet forward at the base's own size.")
        self.step_seconds = histogram("denoise_step_seconds", "One UNet forward.", _STEP_SECONDS)
        self.tick_seconds = histogram(
            "tick_seconds",
            "One turn of the engine's thread: choosing pictures, their forward and what follows from it.",
            _STEP_SECONDS,
        )
        self.batch_rows = histogram("batch_size", "Rows of a UNet forward.", _COUNTS)
        self.distinct_blends = histogram(
            "distinct_blends_per_forward",
            "Different blends in one UNet forward, counted from the tables handed to the op; rows without "
            "adapters count as one blend.",
            _COUNTS,
        )
        self.forwards = counter(
            "forwards_total",
            "UNet forwards, by how: launched kernel by kernel, captured as a CUDA graph, or replayed from one.",
            how="launched, captured, replayed",
        )
        self.graphs = gauge("captured_forwards", "CUDA graphs held, as many as --graphs says at most.")
        self.distinct_blends_max = gauge("distinct_blends_per_forward_max", "The most since the start.")
        self.out_of_memory = counter(
            "out_of_memory_total",
            "Times that memory ran out. A forward is then split and tried again; a picture fails where it does not fit "
            "alone.",
            stage="load, forward, decode",
        )
        self.text_cache_hits = counter("text_cache_hits_total", "Texts found in the cache.", cache=_TEXTS)
        self.text_cache_misses = counter("text_cache_misses_total", "Texts that had to be computed.", cache=_TEXTS)
        self.text_cache_evictions = counter("text_cache_evictions_total", "Texts put out of the cache.", cache=_TEXTS)
        self.text_cache_bytes = gauge("text_cache_bytes", "Bytes in the cache.", cache=_TEXTS)

    def _of_adapters(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.cache_hits = counter("adapter_cache_hits_total", "Adapters of a request found in the tier.", tier=_TIERS)
        self.cache_misses = counter("adapter_cache_misses_total", "Adapters not found in the tier.", tier=_TIERS)
        self.cache_evictions = counter(
            "adapter_cache_evictions_total",
            "Adapters put out of the tier.",
            tier=_TIERS,
            reason="room, unused, deleted",
        )
        self.cache_budget = gauge("adapter_cache_budget_bytes", "Bytes that the tier may take.", tier=_TIERS)
        self.resident = gauge("adapters_resident", "Adapters in the tier.", tier=_TIERS)
        self.resident_bytes = gauge("adapter_resident_bytes", "Bytes of the adapters in the tier.", tier=_TIERS)
        self.pinned = gauge("adapters_pinned", "Adapters kept in the tier by pins.", tier=_TIERS)
        self.pins_unmet = gauge("adapter_pins_unmet", "Pins whose adapter cannot be kept where it is pinned.")
        self.load_seconds = histogram(
            "adapter_load_seconds",
            "Stages of an adapter's way to the device: read and checked, made canonical factors, copied into the pool.",
            _LOAD_SECONDS,
            stage="read, convert, copy",
        )
        self.adapter_changes = counter(
            "adapter_changes_total", "Changes to adapters on the shelf.", action="update, delete, undelete, pin, unpin"
        )

    def _of_the_store(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.upload_seconds = histogram(
            "upload_seconds", "Calls that send an adapter file, from their first message to their end.", _SECONDS
        )
        self.uploads_in_progress = gauge("uploads_in_progress", "Calls that send an adapter file now.")
        self.uploads = counter(
            "uploads_total",
            "Uploads that ended or were left, by how.",
            outcome="created, unchanged, checked, refused, failed, interrupted, aborted",
        )
        self.upload_bytes = counter("upload_bytes_total", "Bytes of adapter files received.")
        self.upload_failures = counter(
            "upload_failures_total", "Uploads refused.", reason="those of docs/formats.md, without their detail"
        )
        self.downloads = counter(
            "downloads_total", "Downloads that ended, by how.", outcome="done, refused, interrupted"
        )
        self.download_bytes = counter("download_bytes_total", "Bytes of adapter files sent.")
        self.reclaimed_bytes = counter(
            "store_reclaimed_bytes_total", "Bytes of leftovers of crashes and abandoned uploads removed."
        )
        self.catalog_faults = gauge(
            "store_catalog_faults",
            "What the check at the start found wrong with the store's catalog; -1 before its end.",
        )
        self.catalog_faults.set(-1)

    def _of_the_process(self) -> None:
        counter, gauge = self._counter, self._gauge
        self.build_info = gauge(
            "build_info",
            "Always 1; what is running.",
            version="of LoRAMux",
            base="its name",
            device="cpu, cuda",
            kernels="reference, triton",
        )
        self.service_up = gauge(
            "service_up",
            "1 while the gRPC service works.",
            service="all (the whole server), loramux.v1.GenerationService, loramux.v1.AdapterService",
        )
        self.reloads = counter(
            "reloads_total",
            "Changed files of tokens or certificates read.",
            what="tokens, certificate",
            outcome="done, refused",
        )
        self.certificate_expiry = gauge(
            "tls_certificate_expiry_seconds", "Unix time at which the certificate expires; 0 without."
        )
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds", "How late the event loop woke a sleeper, once a second.", _LAG_SECONDS
        )

    def _of_rpcs(self) -> None:
        """By the names that gRPC's servers have in other languages too."""
        method = {"grpc_service": "services of the server; unknown", "grpc_method": "their methods; unknown"}
        self.rpcs_started = self._rpc_counter("started", "RPCs started.", method)
        coded = method | {"grpc_code": "gRPC's status codes"}
        self.rpcs_handled = self._rpc_counter("handled", "RPCs ended.", coded)
        self.rpc_received = self._rpc_counter("msg_received", "Messages received.", method)
        self.rpc_sent = self._rpc_counter("msg_sent", "Messages sent.", method)
        name, text = "grpc_server_handling_seconds", "Duration of RPCs."
        self._describe(name, "histogram", text, method)
        self.rpc_seconds = Histogram(name, text, list(method), buckets=_SECONDS, registry=self.registry)

    def _begin_at_zero(self) -> None:
        """Series that alerts and ratios need from the start: a counter that begins at one has never increased."""
        for stage in ("load", "forward", "decode"):
            self.out_of_memory.labels(stage)
        for stage in ("queue", "denoise", "decode"):
            self.cancelled.labels(stage)
        for outcome in ("ok", "failed", "cancelled"):
            self.requests.labels(outcome)
        for what, outcome in product(("tokens", "certificate"), ("done", "refused")):
            self.reloads.labels(what, outcome)
        for tier in ("host", "device"):
            self.cache_hits.labels(tier)
            self.cache_misses.labels(tier)
            self.cache_evictions.labels(tier, "room")

    def observe_blends(self, distinct: int) -> None:
        """Different blends in one UNet forward."""
        self.distinct_blends.observe(distinct)
        self._most = max(self._most, distinct)
        self.distinct_blends_max.set(self._most)

    def _describe(self, name: str, kind: str, text: str, labels: Mapping[str, str]) -> dict[str, Any]:
        self.described.append(Described(name, kind, text, labels))
        return {"name": name, "documentation": text, "labelnames": list(labels), "registry": self.registry}

    def _counter(self, name: str, text: str, **labels: str) -> Counter:
        return Counter(**self._describe(f"loramux_{name}", "counter", text, labels))

    def _gauge(self, name: str, text: str, **labels: str) -> Gauge:
        return Gauge(**self._describe(f"loramux_{name}", "gauge", text, labels))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], **labels: str) -> Histogram:
        return Histogram(**self._describe(f"loramux_{name}", "histogram", text, labels), buckets=buckets)

    def _rpc_counter(self, what: str, text: str, labels: Mapping[str, str]) -> Counter:
        return Counter(**self._describe(f"grpc_server_{what}_total", "counter", text, labels))
