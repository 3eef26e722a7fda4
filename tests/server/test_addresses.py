"""Where a server listens: IPv6 addresses with and without brackets, all of them, and none that are not its own."""

import socket
from pathlib import Path

import pytest
from living import Living
from processes import start

from loramux_client import AsyncClient
from loramux_server.errors import BadSetting
from loramux_server.listening import address, refuse_strange


@pytest.fixture
def ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error}")


@pytest.mark.parametrize(
    ("host", "written"),
    [("127.0.0.1", "127.0.0.1:5"), ("name", "name:5"), ("::1", "[::1]:5"), ("[::1]", "[::1]:5"), ("::", "[::]:5")],
)
def test_an_address_of_ipv6_is_written_in_brackets(host: str, written: str) -> None:
    assert address(host, 5) == written


@pytest.mark.usefixtures("ipv6")
async def test_a_server_on_ipv6_says_where_and_is_found_there(tmp_path: Path) -> None:
    serving = await start(tmp_path / "store", "--host", "::1")
    assert serving.target.startswith("[::1]:") and serving.http.startswith("[::1]:")
    assert (await serving.client.generate("a red apple", steps=1, width=64, height=64)).images
    assert serving.metrics()["loramux_images_total"] == 1
    assert await serving.stop() == 0


@pytest.mark.usefixtures("ipv6")
async def test_a_server_on_all_addresses_is_found_at_those_of_both_kinds(tmp_path: Path) -> None:
    living = Living(tmp_path / "store", host="[::]", insecure=True)
    await living.start()
    assert await living.http("/readyz") == 200  # at 127.0.0.1
    for host in ("127.0.0.1", "::1"):
        async with AsyncClient(address(host, living.at.grpc_port), timeout=30) as client:
            assert (await client.server_info()).base
    await living.shut()


async def test_http_may_listen_elsewhere(tmp_path: Path) -> None:
    serving = await start(tmp_path / "store", "--host", "127.0.0.1", "--metrics-host", "127.0.0.2")
    assert serving.target.startswith("127.0.0.1:") and serving.http.startswith("127.0.0.2:")
    assert "loramux_engine_up" in serving.metrics()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(serving.http.rpartition(":")[2])), timeout=10)
    assert await serving.stop() == 0


def test_an_address_that_is_not_the_machines_is_refused() -> None:
    for host in ("192.0.2.7", "2001:db8::7"):
        with pytest.raises(BadSetting, match=rf"^host: {host} is no address that this machine can listen on: "):
            refuse_strange("host", host)
    for host in ("127.0.0.1", "0.0.0.0", "localhost"):
        refuse_strange("host", host)
