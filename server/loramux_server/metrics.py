"""The server's numbers, in one registry of its own.

Takes observations from the runner, the engine, the store's door and the interceptors; gives a registry to
scrape. It knows no request.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from loramux_store.record import StoreStats

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_STEP_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_LOAD_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
_COUNTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32)


class Metrics:
    """Every metric the server has, by the names people scrape."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._most = 0
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"loramux_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"loramux_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"loramux_{name}", text, labels, buckets=buckets, registry=registry)

        self.build_info = gauge("build_info", "Always 1; what is running.", "version", "base", "device", "kernels")
        self.service_up = gauge("service_up", "1 while the gRPC service works; 'all' is the whole server.", "service")
        self.runner_silent = gauge("runner_silent_seconds", "Since the tick thread last came round.")
        self.engine_up = gauge("engine_up", "1 while the engine's thread runs.")
        self.requests = counter("requests_total", "Requests that ended, by how.", "outcome")
        self.images = counter("images_total", "Pictures finished.")
        self.in_flight = gauge("requests_in_flight", "Requests taken in and not ended.")
        self.waiting = gauge("images_waiting", "Pictures whose adapters or prompt are not ready.")
        self.running = gauge("images_running", "Pictures ready to step.")
        self.admitted = counter("admitted_total", "Requests taken into the queue.", "priority")
        self.queue_seconds = histogram("request_queue_seconds", "Arrival to first step.", _SECONDS, "priority")
        self.speed = gauge("speed", "Rows times latent area that recent forwards made in a second.")
        self.max_rows = gauge("max_rows", "Most rows of a UNet forward at the base's own size.")
        self.request_seconds = histogram("request_seconds", "Arrival to end.", _SECONDS)
        self.step_seconds = histogram("denoise_step_seconds", "One UNet forward.", _STEP_SECONDS)
        self.batch_rows = histogram("batch_size", "Rows of a UNet forward.", _COUNTS)
        self.distinct_blends = histogram(
            "distinct_blends_per_forward",
            "Different blends in one UNet forward, counted from the tables handed to the op; rows without "
            "adapters count as one blend.",
            _COUNTS,
        )
        self.distinct_blends_max = gauge("distinct_blends_per_forward_max", "The most since the start.")
        self.cache_hits = counter("adapter_cache_hits_total", "Adapters of a request found in the tier.", "tier")
        self.cache_misses = counter("adapter_cache_misses_total", "Adapters not found in the tier.", "tier")
        self.cache_evictions = counter(
            "adapter_cache_evictions_total", "Adapters put out of the tier, by why.", "tier", "reason"
        )
        self.cache_budget = gauge("adapter_cache_budget_bytes", "Bytes that the tier may take.", "tier")
        self.resident = gauge("adapters_resident", "Adapters in the tier.", "tier")
        self.resident_bytes = gauge("adapter_resident_bytes", "Bytes of the adapters in the tier.", "tier")
        self.pinned = gauge("adapters_pinned", "Adapters kept in the tier by pins.", "tier")
        self.pins_unmet = gauge("adapter_pins_unmet", "Pins whose adapter cannot be kept where it is pinned.")
        self.text_cache_hits = counter("text_cache_hits_total", "Texts found in the cache.", "cache")
        self.text_cache_misses = counter("text_cache_misses_total", "Texts that had to be computed.", "cache")
        self.text_cache_evictions = counter("text_cache_evictions_total", "Texts put out of the cache.", "cache")
        self.text_cache_bytes = gauge("text_cache_bytes", "Bytes in the cache.", "cache")
        self.load_seconds = histogram(
            "adapter_load_seconds",
            "Stages of an adapter's way to the device: read and checked, made canonical factors, copied into the pool.",
            _LOAD_SECONDS,
            "stage",
        )
        self.rejected = counter("rejected_total", "Requests refused at the door, by ErrorInfo reason.", "reason")
        self.upload_seconds = histogram(
            "upload_seconds", "Calls that send an adapter file, from their first message to their end.", _SECONDS
        )
        self.uploads_in_progress = gauge("uploads_in_progress", "Calls that send an adapter file now.")
        self.uploads = counter("uploads_total", "Uploads that ended or were left, by how.", "outcome")
        self.adapter_changes = counter(
            "adapter_changes_total", "Adapters updated, deleted, undeleted, pinned, unpinned.", "action"
        )
        self.downloads = counter("downloads_total", "Downloads that ended, by how.", "outcome")
        self.download_bytes = counter("download_bytes_total", "Bytes of adapter files sent.")
        self.reloads = counter(
            "reloads_total", "Changed files of tokens or certificates read, by outcome.", "what", "outcome"
        )
        self.certificate_expiry = gauge(
            "tls_certificate_expiry_seconds", "Unix time at which the certificate expires; 0 without."
        )
        self.loop_lag = gauge("event_loop_lag_seconds", "How late the event loop last woke a sleeper.")
        self.upload_bytes = counter("upload_bytes_total", "Bytes of adapter files received.")
        self.reclaimed_bytes = counter(
            "store_reclaimed_bytes_total", "Bytes of leftovers of crashes and abandoned uploads removed."
        )
        self.catalog_faults = gauge(
            "store_catalog_faults",
            "What the check at the start found wrong with the store's catalog; -1 before its end.",
        )
        self.catalog_faults.set(-1)
        self.upload_failures = counter("upload_failures_total", "Uploads refused, by reason.", "reason")
        self.rpcs_started = Counter(
            "grpc_server_started_total", "RPCs started.", ("grpc_service", "grpc_method"), registry=registry
        )
        self.rpcs_handled = Counter(
            "grpc_server_handled_total",
            "RPCs ended, by status code.",
            ("grpc_service", "grpc_method", "grpc_code"),
            registry=registry,
        )
        self.rpc_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Duration of RPCs.",
            ("grpc_service", "grpc_method"),
            buckets=_SECONDS,
            registry=registry,
        )

    def observe_blends(self, distinct: int) -> None:
        """Different blends in one UNet forward."""
        self.distinct_blends.observe(distinct)
        self._most = max(self._most, distinct)
        self.distinct_blends_max.set(self._most)


class StoreCollector(Collector):
    """What is on the shelf, asked for at every scrape."""

    def __init__(self, stats: Callable[[], StoreStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge a count."""
        stats = self._stats()
        for name, text, value in (
            ("adapters", "Adapters on the shelf.", stats.adapters),
            ("versions", "Versions on the shelf.", stats.versions),
            ("blobs", "Distinct files kept.", stats.blobs),
            ("bytes", "Bytes of the files kept.", stats.bytes),
            ("free_bytes", "Bytes free on the store's disk.", stats.free_bytes),
        ):
            yield GaugeMetricFamily(f"loramux_store_{name}", text, value=value)
