"""The HTTP side: /metrics, /livez, /readyz and /version, on a thread of its own.

Takes a registry and, once there is somebody to ask, two questions; gives plain text. It knows no request and no engine.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    make_wsgi_app,  # pyright: ignore[reportUnknownVariableType]
)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection, so that an idle one holds up neither probes nor the stop."""

    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10  # seconds that a connection may stay silent

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line."""


class AdminServer:
    """Listens from construction on, as alive and not ready until `ask`; `port` is the port it got.

    host: a name, or an address without brackets.

    Raises:
        OSError: where the address is taken.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, *, version: str) -> None:
        self.ask(live=lambda: True, ready=lambda: False)
        metrics = cast("Callable[..., Iterable[bytes]]", make_wsgi_app(registry))

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            match environ["PATH_INFO"]:
                case "/metrics":
                    return metrics(environ, start_response)
                case "/livez":
                    status, text = ("200 OK", "ok") if self._live() else ("503 Service Unavailable", "engine stopped")
                case "/readyz":
                    status, text = ("200 OK", "ok") if self._ready() else ("503 Service Unavailable", "not ready")
                case "/version":
                    status, text = "200 OK", version
                case _:
                    status, text = "404 Not Found", "expected /metrics, /livez, /readyz or /version"
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{text}\n".encode()]

        self._server = make_server(host, port, answer, _Server6 if ":" in host else _Server, _Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def ask(self, *, live: Callable[[], bool], ready: Callable[[], bool]) -> None:
        """Whom to ask from now on; on any thread."""
        self._live, self._ready = live, ready

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stops listening; may be called again."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
