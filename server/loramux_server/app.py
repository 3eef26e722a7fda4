"""The composition root: loads, wires, starts, drains, stops. The only module that may import everything."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, cast

import grpc.aio
import structlog
import torch
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from loramux.v1 import (
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
)
from loramux_server import images
from loramux_server.access import read_access
from loramux_server.adapter_service import AdapterService
from loramux_server.admission import Admission
from loramux_server.base_facts import base_facts
from loramux_server.collectors import Held, MemoryCollector, ResidencyCollector, StoreCollector
from loramux_server.device import find_device, find_kernels
from loramux_server.engine import memory_use, row_budget, sampling
from loramux_server.engine.compiled_reader import CompiledReader
from loramux_server.engine.engine import Engine, Fixed, Observer
from loramux_server.engine.host_tier import HostTier
from loramux_server.engine.load_base import find_base, load_base
from loramux_server.engine.pipeline import Base
from loramux_server.engine.warm_up import warm_up
from loramux_server.errors import BadSetting
from loramux_server.first_request import first_request
from loramux_server.gate import Gate
from loramux_server.http import AdminServer
from loramux_server.interceptors import Interceptor
from loramux_server.janitor import keep_clean
from loramux_server.listening import address, bare, listen, refuse_openness, refuse_strange
from loramux_server.metrics import Metrics
from loramux_server.open_calls import OpenCalls
from loramux_server.reloading import Watched, keep_current
from loramux_server.request_log import RequestLog
from loramux_server.requests import ServerFacts
from loramux_server.runner import Runner
from loramux_server.scheduler import Scheduler
from loramux_server.seeding import seed
from loramux_server.service import GenerationService
from loramux_server.settings import BUILTIN, Settings
from loramux_server.tiers import Tiers
from loramux_server.tls import Credentials, files, read_identity
from loramux_server.tracing import Tracing, open_tracing
from loramux_server.watchdog import Service, Watchdog
from loramux_store.layout import KNOWN_NAMES, Layout
from loramux_store.sniff import MAX_FILE
from loramux_store.store import Store

BUILTIN_FOLDER = Path(__file__).parent / "builtin"
_SERVICES = (
    generation_service_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
    adapter_service_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name,
)
_OPTIONS = [
    ("grpc.so_reuseport", 0),  # else a second server takes the same port in silence
    ("grpc.max_concurrent_streams", 256),
    # A connection takes no new calls after half an hour, give or take a tenth: its client looks up the name again and
    # finds servers that have come since. Calls that run stay on it to their end, for no grace is set that would cut
    # off pictures and uploads that take longer.
    ("grpc.max_connection_age_ms", 30 * 60 * 1000),
    # A client whose machine or network has gone never says so. A connection over which nothing came for a minute is
    # asked, and closed after twenty seconds without an answer, whether calls run on it or not. Of the two timeouts
    # grpcio 1.85 keeps the second (a dead connection was closed after 3 s with 1 s and 2 s, after 61 s without it).
    # Proxies that close what is idle see traffic meanwhile.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),  # of clients, who are cut off where they ask oftener
    # Calls that wait to be taken up while the loop is busy: above the first number some are cancelled at random, above
    # the second all are. The default of 1,000 turns callers away who would be answered a moment later.
    ("grpc.server.max_pending_requests", 8192),
    ("grpc.server.max_pending_requests_hard_limit", 16384),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_receive_message_length", 2 * images.MAX_BYTES + (1 << 20)),  # image, mask and the rest of a request
]
DETERMINISTIC_ROWS = 4  # of every forward with --deterministic: two guided pictures
_CPU_ROWS = 32  # of a forward on the CPU, where memory is no bound
_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "pillow")  # of what a picture is made with
_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a server listens."""

    host: str
    grpc_port: int
    http_host: str
    http_port: int
    base: str

    @property
    def grpc(self) -> str:
        """HOST:PORT."""
        return address(self.host, self.grpc_port)

    @property
    def http(self) -> str:
        """HOST:PORT."""
        return address(self.http_host, self.http_port)


class App:
    """Everything a server is made of. Build it, `await run(...)` it once. metrics: where they are read already."""

    def __init__(
        self,
        settings: Settings,
        observer: Observer | None = None,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings
        refuse_openness(settings)
        self._gate = Gate(None if settings.tokens is None else read_access(settings.tokens))
        self._open_calls = OpenCalls()
        self._identity = read_identity(settings)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.version = package_version("loramux")
        self.metrics = metrics or Metrics(settings.adapter_series)
        self.tracing = tracing or _tracing(settings, self.version)
        base = _load(settings)
        impl = find_kernels(settings.kernels, base.device, base.unet.dtype, deterministic=settings.deterministic)
        graphs = settings.graphs if impl == "triton" and base.device.type == "cuda" else 0
        _log.info("kernels", implementation=impl, device=str(base.device), graphs=graphs)
        self.store = Store.open(
            settings.store, quota_bytes=settings.quota_bytes, upload_idle_s=settings.upload_idle_seconds
        )
        self.engine = Engine(
            base,
            HostTier(CompiledReader(self.store.read_compiled, self.metrics), settings.host_cache_bytes, self.metrics),
            self.metrics,
            version=self.version,
            pool_bytes=settings.pool_bytes,
            side_bytes=settings.side_bytes,
            prompt_cache_bytes=settings.prompt_cache_bytes,
            # a captured forward projects texts itself: copying what was kept would take the host as long
            cross_attention_cache_bytes=0 if graphs else settings.cross_attention_cache_bytes,
            graphs=graphs,
            impl=impl,
            fixed=_fixed(settings),
            observer=observer,
        )
        self._collect()
        layout = _registered(self.engine.layout, self.store)
        self.store.serve_base(layout)
        if settings.base == BUILTIN:
            seed(self.store, BUILTIN_FOLDER / "adapters", settings.store / "seeded")
        max_rows = _max_rows(settings, base, self.engine.later_bytes, graphs > 0)
        self.metrics.max_rows.set(max_rows((base.side // base.latent_scale) ** 2))
        self.metrics.queue_limit.set(settings.max_queue)
        self.runner = Runner(self.engine, Scheduler(settings.max_queue, max_rows), self.metrics)
        self.admission = Admission(
            self.store,
            base_facts(self.engine, layout, settings),
            check_blends=self.engine.adapters.check,
            check_sampling=partial(sampling.violations, scheduler_config=base.scheduler_config),
            check_prompts=self.engine.conditioner.violations,
            blocks=self.engine.blocks,
        )
        self.metrics.build_info.labels(self.version, base.name, str(base.device), impl).set(1)
        self.metrics.certificate_expiry.set(self._identity.expires.timestamp() if self._identity else 0)
        self._ready = False

    async def run(
        self, on_ready: Callable[[Ready], None], stop: asyncio.Event, admin: AdminServer | None = None
    ) -> None:
        """Serves until `stop` is set, then drains: health first, then new calls, then running ones.

        admin: the HTTP side, where it answers already; it is closed in the end.
        """
        settings = self.settings
        admin = admin or open_http(settings, self.metrics)
        tiers = Tiers(self.store, self.engine.adapters, self.admission.suits, self.metrics)
        shelf = AdapterService(self.store, tiers, self.metrics)
        log = RequestLog(self.metrics, self.tracing, prompts=settings.log_prompts)
        pictures = GenerationService(self.admission, self.runner, self._server_facts(), log, self.metrics, self.tracing)
        server, checks = self._server(pictures, shelf)
        watchdog = Watchdog(self._services(), checks, self.metrics)
        beside = list[asyncio.Task[None]]()
        try:
            credentials = None if self._identity is None else Credentials(self._identity)
            port = listen(server, settings, credentials)
            await asyncio.to_thread(self._warm_up)
            self.runner.start()
            admin.ask(live=lambda: self.runner.alive, ready=lambda: self._ready and watchdog.ready)
            await server.start()
            await watchdog.look()
            self._ready = True
            on_ready(Ready(settings.host, port, settings.http_host, admin.port, self.engine.base.name))
            work = (
                _watch_lag(self.metrics, stop),
                watchdog.watch(stop),
                keep_clean(self.store, self.metrics, stop),
                keep_current(self._watched(credentials), self.metrics, stop),
                tiers.keep(stop),
            )
            beside += map(asyncio.create_task, work)
            for task in beside:
                task.add_done_callback(lambda ended: None if _well(ended) else stop.set())
            await stop.wait()
        finally:
            stop.set()  # for what works beside, whose end, which may have to wait for the disk, nobody waits for yet
            self._ready = False
            await checks.enter_graceful_shutdown()
            await asyncio.sleep(settings.linger_seconds)
            self._gate.drain()
            self.runner.turn_away()
            with ThreadPoolExecutor(1, thread_name_prefix="stop") as threads:  # of its own: a disk may hold all others
                wait = partial(asyncio.get_running_loop().run_in_executor, threads)
                await wait(self.runner.drain, settings.drain_seconds)
                await wait(self.runner.stop)  # what still runs hears why, while its call is open
                await self._open_calls.end(1.0)
                await server.stop(grace=1.0)
                await wait(pictures.close)
                await shelf.close()
                await wait(admin.close)
                ended = await asyncio.gather(*beside, return_exceptions=True)
                self.store.close()
                if self.tracing is not None:
                    await wait(self.tracing.close)
        for fault in filter(None, ended):
            raise fault

    def _warm_up(self) -> None:
        """Draws the smallest picture there is, in one step."""
        started = time.monotonic()
        warm_up(self.engine, self.admission.admit(first_request(self.engine.base)))
        _log.info("warm", seconds=round(time.monotonic() - started, 3))

    def _collect(self) -> None:
        """Numbers that are asked for at every scrape."""
        device, register = self.engine.base.device, self.metrics.registry.register
        register(StoreCollector(self.store.stats))
        register(MemoryCollector(memory_use.of_process(self.engine), memory_use.of_gpu(device), str(device)))
        if self.settings.adapter_series:
            register(ResidencyCollector(lambda: _held(self.engine)))

    def _services(self) -> tuple[Service, ...]:
        """What health is told of."""

        def runs() -> bool:
            silent = self.runner.silent_seconds
            self.metrics.runner_silent.set(silent)
            return self.runner.alive and silent < self.settings.stall_seconds

        pictures, shelf = _SERVICES
        return (
            Service(("", pictures), runs, "the runner stalls or has ended"),
            Service((shelf,), self.store.writable, "the store's disk is full, read-only or failing", on_disk=True),
        )

    def _watched(self, credentials: Credentials | None) -> list[Watched]:
        """Files that are read again when they change."""
        settings, watched = self.settings, list[Watched]()
        if (tokens := settings.tokens) is not None:
            watched.append(Watched("tokens", [tokens], lambda: self._gate.exchange(read_access(tokens))))
        if credentials is not None:

            def exchange() -> None:
                if (identity := read_identity(settings)) is not None:
                    credentials.exchange(identity)
                    self.metrics.certificate_expiry.set(identity.expires.timestamp())

            watched.append(Watched("certificate", files(settings), exchange))
        return watched

    def _server_facts(self) -> ServerFacts:
        libraries = tuple((name, package_version(name)) for name in _LIBRARIES)
        return ServerFacts(self.version, str(self.engine.base.device), MAX_FILE, sampling.facts(), libraries)

    def _server(self, pictures: GenerationService, shelf: AdapterService) -> tuple[grpc.aio.Server, Any]:
        door = Interceptor(self.metrics, self._gate, self.tracing, self._open_calls)
        server = grpc.aio.server(interceptors=[door], options=_OPTIONS)
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(pictures, server)
        adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(shelf, server)
        checks: Any = cast("Any", health).aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)  # pyright: ignore[reportUnknownMemberType]
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server, checks


def open_http(settings: Settings, metrics: Metrics) -> AdminServer:
    """The HTTP side, which answers from now on.

    Raises:
        BadSetting: where strangers could reach the server, or nobody could.
    """
    refuse_openness(settings)
    refuse_strange("host", settings.host)
    refuse_strange("metrics_host", settings.http_host)
    return AdminServer(
        bare(settings.http_host), settings.metrics_port, metrics.registry, version=package_version("loramux")
    )


async def serve(settings: Settings, on_ready: Callable[[Ready], None]) -> None:
    """Builds an app and runs it until SIGTERM or SIGINT; HTTP answers meanwhile, for building takes minutes on a large
    base. A signal that comes while it is built ends the process at once: there is nothing to bring to an end."""
    metrics = Metrics(settings.adapter_series)
    with contextlib.closing(open_http(settings, metrics)) as admin:
        app = App(settings, metrics=metrics)
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await app.run(on_ready, stop, admin)


def _well(ended: asyncio.Task[None]) -> bool:
    return not ended.cancelled() and ended.exception() is None


async def _watch_lag(metrics: Metrics, stop: asyncio.Event) -> None:
    """Until `stop`, notes once a second how late the loop wakes a sleeper."""
    while not stop.is_set():
        started = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=1.0)
            return
        metrics.loop_lag.observe(max(0.0, time.monotonic() - started - 1.0))


def _tracing(settings: Settings, version: str) -> Tracing | None:
    """Where an endpoint is set. One that is only in OpenTelemetry's own variables, which may be there for other
    programs, is left where the packages are not installed."""
    if settings.otel_endpoint is None:
        return None
    try:
        return open_tracing(settings.otel_endpoint, settings.otel_ratio, version)
    except BadSetting as error:
        if "otel_endpoint" in settings.model_fields_set:
            raise
        _log.warning("no traces", because=str(error))
        return None


def _held(engine: Engine) -> list[Held]:
    adapters = engine.adapters
    tiers = (("host", adapters.host.versions), ("device", adapters.on_device))
    return [Held(version.adapter, version.number, tier) for tier, versions in tiers for version in versions]


def _load(settings: Settings) -> Base:
    device = find_device(settings.device)
    if settings.base == BUILTIN:
        return load_base(BUILTIN_FOLDER / "base", BUILTIN, device)
    return load_base(*find_base(settings.base), device)


def _fixed(settings: Settings) -> Fixed | None:
    if not settings.deterministic:
        return None
    fixed = Fixed(DETERMINISTIC_ROWS, settings.deterministic_rank)
    _log.warning(
        "deterministic", rows_of_every_forward=fixed.rows, rank_of_every_blend=fixed.rank, cost="docs/isolation.md"
    )
    return fixed


def _max_rows(settings: Settings, base: Base, later_bytes: int, captures: bool) -> Callable[[int], int]:
    """Most rows of a forward by latent area: as set, or what fits beside what the engine takes up later, twice where
    forwards are captured."""
    if settings.deterministic:
        return lambda _area: DETERMINISTIC_ROWS
    if settings.max_rows is None and base.device.type == "cuda":
        return row_budget.on_cuda(base, later_bytes, 2 if captures else 1).rows
    rows = settings.max_rows or _CPU_ROWS
    return lambda _area: rows


def _registered(layout: Layout, store: Store) -> Layout:
    """The base's layout under the name that the store knows it by; told to the store where it is new."""
    for known in store.layouts():
        if known.digest == layout.digest:
            return known
    if layout.name in KNOWN_NAMES:  # a folder that happens to be called sd1
        layout = Layout(f"base-{layout.name}", layout.modules)
    store.register_layout(layout)
    return layout
