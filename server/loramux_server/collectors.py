"""Numbers that are asked for when somebody scrapes, and kept by nobody in between.

Takes questions to ask; gives samples. They run on the HTTP server's threads, beside everything else.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from loramux_server.described import Described
from loramux_store.errors import StoreError
from loramux_store.record import StoreStats

STORE = (
    ("loramux_store_adapters", "Adapters on the shelf.", "adapters"),
    ("loramux_store_versions", "Versions on the shelf.", "versions"),
    ("loramux_store_blobs", "Distinct files kept.", "blobs"),
    ("loramux_store_bytes", "Bytes of the files kept.", "bytes"),
    ("loramux_store_free_bytes", "Bytes free on the store's disk.", "free_bytes"),
)
MEMORY = Described(
    "loramux_memory_bytes",
    "gauge",
    "Memory by what takes it: all that the process has of the machine's; the base's weights; rank rows that are "
    "allocated; adapters in host memory; what is kept of texts. On a GPU `base`, `pools` and `texts` are the device's.",
    {"kind": "process, base, pools, adapters, texts"},
)
GPU = Described(
    "loramux_gpu_memory_bytes",
    "gauge",
    "Of the device: what tensors take, what torch keeps reserved, what is free to any process, and all of it. No "
    "series on the CPU.",
    {"kind": "allocated, reserved, free, total", "device": "the base's"},
)
RESIDENT = Described(
    "loramux_adapter_resident",
    "gauge",
    "1 for each version that is in the tier now; the series is gone when it is put out. None with --adapter-series 0.",
    {"adapter": "names", "version": "numbers", "tier": "host, device"},
)
COLLECTED = (*(Described(name, "gauge", text) for name, text, _ in STORE), MEMORY, GPU, RESIDENT)


@dataclass(frozen=True, slots=True)
class Held:
    """A version in a tier."""

    adapter: str
    version: int
    tier: str


class StoreCollector(Collector):
    """What is on the shelf."""

    def __init__(self, stats: Callable[[], StoreStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge a count; none while the store cannot tell, for a failing disk must not take the other numbers."""
        try:
            stats = self._stats()
        except (StoreError, OSError):
            return
        for name, text, field in STORE:
            yield GaugeMetricFamily(name, text, value=getattr(stats, field))


class MemoryCollector(Collector):
    """taken: bytes by kind; of_gpu: bytes of the device by kind, empty on the CPU."""

    def __init__(
        self, taken: Callable[[], Mapping[str, float]], of_gpu: Callable[[], Mapping[str, float]], device: str
    ) -> None:
        self._taken, self._of_gpu, self._device = taken, of_gpu, device

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge for the process, one for the device."""
        memory = GaugeMetricFamily(MEMORY.name, MEMORY.text, labels=list(MEMORY.labels))
        for kind, size in self._taken().items():
            memory.add_metric([kind], size)
        gpu = GaugeMetricFamily(GPU.name, GPU.text, labels=list(GPU.labels))
        for kind, size in self._of_gpu().items():
            gpu.add_metric([kind, self._device], size)
        return iter((memory, gpu))


class ResidencyCollector(Collector):
    """Which versions are in memory. What is not has no series, so there are no more than the tiers hold."""

    def __init__(self, held: Callable[[], Iterable[Held]]) -> None:
        self._held = held

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge with a series a version. Two files may have been one name's version, after it was removed for good
        and used again: they are one series."""
        family = GaugeMetricFamily(RESIDENT.name, RESIDENT.text, labels=list(RESIDENT.labels))
        for each in sorted(set(self._held()), key=lambda held: (held.tier, held.adapter, held.version)):
            family.add_metric([each.adapter, str(each.version), each.tier], 1)
        yield family
