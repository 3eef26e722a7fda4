"""TLS, tokens and limits over the wire; files that change while the server serves. No base, no engine."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from bad_wire import Wire
from certificates import Signed, authority, sign
from cryptography import x509
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from loading import Pool
from structlog.testing import capture_logs

from loramux.v1 import adapter_service_pb2 as pb
from loramux.v1 import adapter_service_pb2_grpc
from loramux_client import AsyncClient, Client, tls_credentials
from loramux_client.errors import InvalidArgument, PermissionDenied, ResourceExhausted, Unavailable
from loramux_server.access import Access, Holder, Limits, Scope, digest_of, read_access
from loramux_server.adapter_service import AdapterService
from loramux_server.callers import Caller, answering
from loramux_server.errors import BadSetting, OverLimit
from loramux_server.gate import Gate
from loramux_server.interceptors import Interceptor
from loramux_server.listening import is_loopback, listen, refuse_openness
from loramux_server.metrics import Metrics
from loramux_server.reloading import Watched, keep_current
from loramux_server.request_log import RequestLog
from loramux_server.requests import Done, Job, Output, Priority, Sampler, Sampling, TextMode, Timings
from loramux_server.settings import Settings
from loramux_server.tiers import Tiers
from loramux_server.tls import Credentials, read_identity
from loramux_store import Store

EVERY = {"reader": Scope.ADAPTERS_READ, "writer": Scope.ADAPTERS_WRITE, "boss": Scope.ADMIN}


@pytest.fixture(scope="module")
def ca() -> Signed:
    return authority()


class Door:
    """A server with a store behind TLS and tokens; everybody's token is their name."""

    def __init__(self, folder: Path, ca: Signed, **settings: Any) -> None:
        self.folder, self.ca = folder, ca
        self.cert, self.key = sign(ca, "server").write(folder, "server")
        self.ca_file, _ = ca.write(folder, "ca")
        self.tokens = folder / "tokens.toml"
        self.write_tokens(EVERY)
        named = {"tls_cert": self.cert, "tls_key": self.key, "tokens": self.tokens, "port": 0, **settings}
        self.settings = Settings(store=folder / "store", **named)

    def write_tokens(self, holders: dict[str, Scope], limits: str = "") -> None:
        text = "".join(f'[{n}]\nsha256 = "{digest_of(n)}"\nscopes = ["{s}"]\n{limits}\n' for n, s in holders.items())
        self.tokens.write_text(text)

    async def open(self) -> None:
        settings, self.metrics = self.settings, Metrics()
        gate = Gate(None if settings.tokens is None else read_access(settings.tokens))
        identity = read_identity(settings)
        credentials = None if identity is None else Credentials(identity)
        self.store = Store.open(settings.store)
        cache = Pool(rows=16).cache
        self.close_cache = cache.close
        self.service = AdapterService(self.store, Tiers(self.store, cache, lambda _: None, self.metrics), self.metrics)
        self.server = grpc.aio.server(interceptors=[Interceptor(self.metrics, gate)])
        adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(self.service, self.server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, self.server)
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection((reflection.SERVICE_NAME,), self.server)
        self.port = listen(self.server, settings, credentials)
        await self.server.start()

        def exchange() -> None:
            renewed = read_identity(settings)
            assert renewed is not None and credentials is not None
            credentials.exchange(renewed)

        watched = [
            Watched("tokens", [self.tokens], lambda: gate.exchange(read_access(self.tokens))),
            Watched("certificate", [self.cert, self.key], exchange),
        ]
        self.stop = asyncio.Event()
        self.watching = asyncio.create_task(keep_current(watched, self.metrics, self.stop, period_s=0.01))

    async def shut(self) -> None:
        self.stop.set()
        await self.watching
        await self.server.stop(None)
        await self.service.close()
        self.close_cache()
        self.store.close()

    def client(self, token: str | None, **files: Path) -> AsyncClient:
        credentials = tls_credentials(self.ca_file, **files)
        return AsyncClient(f"localhost:{self.port}", token=token, credentials=credentials, timeout=10)

    async def reloads(self, what: str, outcome: str) -> None:
        labels = {"what": what, "outcome": outcome}
        async with asyncio.timeout(10):
            while not self.metrics.registry.get_sample_value("loramux_reloads_total", labels):
                await asyncio.sleep(0.01)


@pytest.fixture
async def door(tmp_path: Path, ca: Signed) -> AsyncIterator[Door]:
    made = Door(tmp_path, ca)
    await made.open()
    yield made
    await made.shut()


async def names(client: AsyncClient) -> list[str]:
    return [adapter.name async for adapter in client.list_adapters()]


async def test_who_may_reads_and_nobody_else(door: Door) -> None:
    async with door.client("reader") as client:
        assert await names(client) == []
        with pytest.raises(PermissionDenied) as caught:
            await client.delete_adapter("x")
        assert caught.value.reason == "SCOPE_MISSING" and caught.value.metadata == {"scope": "adapters.write"}
    for token, reason in (("stranger", "TOKEN_UNKNOWN"), (None, "TOKEN_MISSING")):
        async with door.client(token) as client:
            with pytest.raises(PermissionDenied) as caught:
                await names(client)
            assert caught.value.reason == reason
            assert (await client.health()).name == "SERVING"  # probes have no tokens
    refused = door.metrics.registry.get_sample_value("loramux_rejected_total", {"reason": "TOKEN_UNKNOWN"})
    assert refused == 1


async def test_a_stream_of_a_stranger_is_refused_before_it_is_read(door: Door) -> None:
    def send() -> grpc.StatusCode:  # an asyncio client may lose the status of a call that ends while it writes
        messages = (pb.UploadAdapterRequest(chunk=bytes(1 << 16)) for _ in range(100))
        with grpc.secure_channel(f"localhost:{door.port}", tls_credentials(door.ca_file)) as channel:
            stub = adapter_service_pb2_grpc.AdapterServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.UploadAdapter(messages, metadata=[("authorization", "Bearer reader")])
            return caught.value.code()

    assert await asyncio.to_thread(send) is grpc.StatusCode.PERMISSION_DENIED
    assert door.metrics.registry.get_sample_value("loramux_upload_bytes_total") == 0


class Taking(grpc.GenericRpcHandler):
    """Generate and GenerateStream, which note what they read."""

    def __init__(self) -> None:
        self.read = list[int]()

    def service(self, handler_call_details: Any) -> Any:
        def parse(data: bytes) -> bytes:
            self.read.append(len(data))
            return data

        async def unary(request: bytes, context: Any) -> bytes:
            return b"drawn"

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield b"drawn"

        if handler_call_details.method.endswith("Stream"):
            return grpc.unary_stream_rpc_method_handler(stream, parse)
        return grpc.unary_unary_rpc_method_handler(unary, parse)


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [
        (None, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("b", grpc.StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN"),
        ("reader", grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"),
        ("often", grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_RATE"),
        ("boss", None, None),
    ],
)
async def test_a_message_of_a_stranger_is_refused_before_it_is_taken(
    method: str, token: str | None, code: grpc.StatusCode | None, reason: str | None
) -> None:
    """A unary one too, of which gRPC by itself receives and parses all bytes before anybody is asked."""
    size, path = 32 << 20, f"/loramux.v1.GenerationService/{method}"
    often = Holder("often", frozenset({Scope.ADMIN}), Limits(requests_per_second=1e-9))
    holders = [often, *(Holder(name, frozenset({scope})) for name, scope in EVERY.items())]
    gate, taking, metrics = Gate(Access({digest_of(each.name): each for each in holders})), Taking(), Metrics()
    with pytest.raises(OverLimit):
        while True:
            gate.enter(path, [("authorization", "Bearer often")])
    server = grpc.aio.server(
        interceptors=[Interceptor(metrics, gate)],
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 2 * size)],
    )
    server.add_generic_rpc_handlers((taking,))
    port, wire = server.add_insecure_port("127.0.0.1:0"), Wire()
    await server.start()
    metadata = None if token is None else [("authorization", f"Bearer {token}")]

    def send(target: str) -> grpc.StatusCode | None:
        with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
            try:
                if method == "Generate":
                    assert channel.unary_unary(path)(bytes(size), metadata=metadata) == b"drawn"
                else:
                    assert list(channel.unary_stream(path)(bytes(size), metadata=metadata)) == [b"drawn"]
            except grpc.RpcError as refused:
                return refused.code()  # type: ignore[attr-defined]
            return None

    with capture_logs() as lines:
        async with wire.to(port) as target:
            assert await asyncio.to_thread(send, target) is code
    await server.stop(None)
    named = {"grpc_service": "loramux.v1.GenerationService", "grpc_method": method}
    handled = metrics.registry.get_sample_value(
        "grpc_server_handled_total", {**named, "grpc_code": code.name if code else "OK"}
    )
    assert handled == metrics.registry.get_sample_value("grpc_server_started_total", named) == 1
    (line,) = [line for line in lines if line["event"] == "rpc"]
    assert (line["code"], line.get("reason")) == (code.name if code else "OK", reason)
    if code is None:
        assert taking.read == [size] and wire.passed > size
    else:
        assert taking.read == [] and wire.passed < size / 4, "gRPC takes 4 MiB of a call that nobody reads"


@pytest.mark.parametrize(("token", "code"), [("reader", grpc.StatusCode.PERMISSION_DENIED), ("boss", None)])
async def test_reflection_is_for_admins(door: Door, token: str, code: grpc.StatusCode | None) -> None:
    async with grpc.aio.secure_channel(f"localhost:{door.port}", tls_credentials(door.ca_file)) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        asked = stub.ServerReflectionInfo(iter([request]), metadata=[("authorization", f"Bearer {token}")])
        if code is None:
            assert [answer async for answer in asked]
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in asked:
                    pass
            assert caught.value.code() is code


async def test_tokens_are_read_again_while_all_others_wait_for_a_disk(door: Door) -> None:
    disk_answers, threads = threading.Event(), ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    waiting = asyncio.create_task(asyncio.to_thread(disk_answers.wait))
    await asyncio.sleep(0)  # it has its thread
    door.write_tokens({"newcomer": Scope.ADAPTERS_READ})
    try:
        await door.reloads("tokens", "done")
    finally:
        disk_answers.set()
        await waiting


async def test_tokens_are_read_again_and_a_wrong_file_changes_nothing(door: Door) -> None:
    async with door.client("reader") as client, door.client("newcomer") as newcomer:
        assert await names(client) == []
        door.write_tokens({"newcomer": Scope.ADAPTERS_READ})
        await door.reloads("tokens", "done")
        assert await names(newcomer) == []
        with pytest.raises(PermissionDenied):
            await names(client)  # on the connection it had
        door.tokens.write_text("nonsense")
        await door.reloads("tokens", "refused")
        assert await names(newcomer) == []


def test_files_are_read_only_when_they_change(tmp_path: Path) -> None:
    file, read = tmp_path / "a", list[str]()
    watched = Watched("a", [file], lambda: read.append(file.read_text()))
    assert not watched.look()
    for text in ("x", "y"):
        file.write_text(text)
        assert watched.look() and not watched.look()
    assert read == ["x", "y"]


async def test_the_certificate_is_exchanged_for_new_connections(door: Door) -> None:
    first = await shown(door)
    async with door.client("reader") as client:
        assert await names(client) == []
        sign(door.ca, "server", timedelta(hours=12)).write(door.folder, "server")
        await door.reloads("certificate", "done")
        assert await shown(door) != first
        assert await names(client) == []  # the connection it had goes on
    renewed = await shown(door)
    door.key.write_text("nonsense")
    await door.reloads("certificate", "refused")
    assert await shown(door) == renewed
    async with door.client("reader") as client:
        assert await names(client) == []


async def shown(door: Door) -> str:
    """What the server shows to a new connection."""
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", door.port))
    return str(x509.load_pem_x509_certificate(pem.encode()).serial_number)


async def test_strangers_to_the_authority_are_not_trusted(door: Door, tmp_path: Path) -> None:
    other, _ = authority("other").write(tmp_path, "other")
    async with AsyncClient(f"localhost:{door.port}", credentials=tls_credentials(other), timeout=3) as client:
        with pytest.raises(Unavailable):
            await names(client)


async def test_clients_with_certificates_need_no_tokens_and_are_known_by_name(tmp_path: Path, ca: Signed) -> None:
    ca_file, _ = ca.write(tmp_path, "clients-ca")
    door = Door(tmp_path, ca, tls_client_ca=ca_file, tokens=None)
    cert, key = sign(ca, "ann").write(tmp_path, "ann")
    await door.open()
    try:
        async with door.client(None, client_cert=cert, client_key=key) as client:
            with pytest.raises(Exception, match="x"):
                await client.delete_adapter("x")
            assert await names(client) == []
        async with door.client(None) as client:
            client._timeout = 3
            with pytest.raises(Unavailable):
                await names(client)
    finally:
        await door.shut()


async def test_a_limit_is_told_with_the_time_to_wait(door: Door) -> None:
    door.write_tokens(EVERY, "requests_per_second = 0.2")  # two calls saved up, one overdrawn
    await door.reloads("tokens", "done")
    async with grpc.aio.secure_channel(f"localhost:{door.port}", tls_credentials(door.ca_file)) as channel:
        stub = adapter_service_pb2_grpc.AdapterServiceStub(channel)
        metadata = [("authorization", "Bearer reader")]
        for _ in range(3):
            await stub.ListAdapters(pb.ListAdaptersRequest(), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListAdapters(pb.ListAdaptersRequest(), metadata=metadata)
        await stub.ListAdapters(pb.ListAdaptersRequest(), metadata=[("authorization", "Bearer boss")])
    status = rpc_status.from_call(caught.value)
    assert status is not None and caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info, retry, quota = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.QuotaFailure(),
    )
    assert [d.Unpack(k) for d, k in zip(status.details, (info, retry, quota), strict=True)] == [True] * 3
    assert info.reason == "REQUEST_RATE" and retry.retry_delay.seconds >= 1
    assert quota.violations[0].subject == "reader"


async def test_uploads_are_counted_in_bytes(door: Door) -> None:
    door.write_tokens(EVERY, "upload_bytes_per_day = 100")
    await door.reloads("tokens", "done")
    async with door.client("writer") as client:
        with pytest.raises(ResourceExhausted) as caught:
            await client.upload(bytes(3 << 20), "x", retries=0)
    assert caught.value.reason == "UPLOAD_BYTES" and (caught.value.retry_after or 0) > 60


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.7", "example.org", "")],
)
def test_only_this_machine_is_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({}, True),
        ({"insecure": True}, False),
        ({"tokens": "t"}, True),
        ({"tls_cert": "c", "tls_key": "k"}, True),
        ({"tls_cert": "c", "tls_key": "k", "tokens": "t"}, False),
        ({"tls_cert": "c", "tls_key": "k", "tls_client_ca": "a"}, False),
        ({"tls_client_ca": "a"}, True),
        ({"host": "127.0.0.1"}, False),
    ],
)
def test_strangers_are_let_in_only_encrypted_and_known(given: dict[str, Any], refused: bool) -> None:
    settings = Settings(**{"host": "0.0.0.0", **given})
    if not refused:
        refuse_openness(settings)
        return
    with pytest.raises(BadSetting) as caught:
        refuse_openness(settings)
    assert all(way in str(caught.value) for way in ("--tls-cert", "--tokens", "--insecure"))


def test_wrong_certificates_are_told(tmp_path: Path, ca: Signed) -> None:
    cert, key = sign(ca, "a").write(tmp_path, "a")
    _, other = sign(ca, "b").write(tmp_path, "b")
    old, old_key = sign(ca, "old", -timedelta(days=1)).write(tmp_path, "old")
    text = tmp_path / "text"
    text.write_text("text")
    for told, settings in (
        ("not the key of", {"tls_cert": cert, "tls_key": other}),
        ("expired on", {"tls_cert": old, "tls_key": old_key}),
        ("no certificates", {"tls_cert": text, "tls_key": key}),
        ("no private key", {"tls_cert": cert, "tls_key": text}),
        ("cannot be read", {"tls_cert": tmp_path / "none", "tls_key": key}),
        ("tls_client_ca", {"tls_cert": cert, "tls_key": key, "tls_client_ca": text}),
        ("expected both", {"tls_cert": cert}),
        ("expected both", {"tls_client_ca": cert}),
    ):
        with pytest.raises(BadSetting, match=told):
            read_identity(Settings(**settings))
    identity = read_identity(Settings(tls_cert=cert, tls_key=key))
    assert identity is not None and identity.client_ca is None
    assert read_identity(Settings()) is None


def test_a_token_never_travels_unencrypted() -> None:
    with pytest.raises(InvalidArgument, match="unencrypted"):
        Client("example.org:1", token="secret")
    Client("127.0.0.1:1", token="secret").close()
    Client("example.org:1", token="secret", credentials=tls_credentials()).close()


@pytest.mark.parametrize("asked", [False, True])
async def test_prompts_are_logged_only_where_that_is_asked_for(asked: bool) -> None:
    answering(Caller("10.0.0.7", "gallery"))
    sampling = Sampling(Sampler.EULER, 20)
    asking = "a secret wish", "no luck", TextMode(), (), None, sampling, 7, 2, 64, 32, Output(), Priority.NORMAL
    log = RequestLog(Metrics(), prompts=asked)
    with capture_logs() as lines, log.following(Job("id-1", *asking)) as heard:
        heard.hear(Done(Timings(0.1, 0.2, 0.3, 0.6, load=0.04, encode=0.05)))
    (line,) = lines
    assert ("secret wish" in str(line)) is asked and ("no luck" in str(line)) is asked
    assert (line["request_id"], line["outcome"], line["caller"]) == ("id-1", "done", "gallery")
    assert (line["queue_seconds"], line["denoise_seconds"], line["decode_seconds"]) == (0.1, 0.2, 0.3)
    assert (line["load_seconds"], line["encode_seconds"]) == (0.04, 0.05)
    for error, outcome in ((asyncio.CancelledError(), "cancelled"), (BadSetting("x"), "BadSetting")):
        with pytest.raises(type(error)), capture_logs() as lines, log.following(Job("id-1", *asking)):
            raise error
        assert lines[0]["outcome"] == outcome
