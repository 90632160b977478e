"""An HTTP endpoint for machines that watch the server: ``/metrics`` and ``/healthz``.

It answers from a thread of its own, so that a server whose event loop hangs is seen to hang.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from ..transport import Address

__all__ = ["Monitor"]

BEAT = 0.5  # seconds between looks at the clock by the event loop
HEALTHY_LAG = 10.0  # seconds without such a look after which the loop counts as hanging

SLOW = 10.0  # seconds for a request to arrive and its answer to be taken

_Start = Callable[[str, list[tuple[str, str]]], Any]


class _Handler(WSGIRequestHandler):
    timeout = SLOW

    def log_message(self, *_: object) -> None:
        """Keep scrapes out of the log."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a caller that does not read keeps no process alive

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)


class Monitor:
    """Listens for scrapes and health checks while a server runs.

    Args:
        address: where; port 0 lets the system choose.
        registry: what is exposed.
        lagged: told by how many seconds the event loop was late, twice a second.

    Raises:
        OSError: the address cannot be listened on.

    Attributes:
        address: where it listens.

    """

    def __init__(
        self, address: Address, registry: CollectorRegistry, lagged: Callable[[float], None]
    ) -> None:
        self._lagged = lagged
        self._metrics = make_wsgi_app(registry)
        self._seen = time.monotonic()
        self._draining = False
        self._server = _Server(address.host, address.port)
        self._server.set_app(self._answer)
        self._thread = threading.Thread(target=self._server.serve_forever, name="mobillm-monitor")
        self._thread.start()
        self.address = Address(address.host, self._server.server_port)
        self._beating = asyncio.get_running_loop().create_task(self._beat())

    def drain(self) -> None:
        """Say from now on that the server stops, so that no new device is sent to it."""
        self._draining = True

    async def close(self) -> None:
        """Stop listening."""
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)

    async def _beat(self) -> None:
        while True:
            due = time.monotonic() + BEAT
            await asyncio.sleep(BEAT)
            self._seen = time.monotonic()
            self._lagged(max(0.0, self._seen - due))

    def _health(self) -> tuple[str, str]:
        if self._draining:
            return "503 Service Unavailable", "draining\n"
        silent = time.monotonic() - self._seen
        if silent > HEALTHY_LAG:
            return "503 Service Unavailable", f"the event loop has been silent for {silent:.0f} s\n"
        return "200 OK", "ok\n"

    def _answer(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start)
            return answer
        status, text = self._health() if path == "/healthz" else ("404 Not Found", "/metrics or /healthz\n")
        start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))])
        return [text.encode()]
