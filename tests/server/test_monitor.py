"""The HTTP endpoint: health, draining, and strange callers."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from mobillm.server import monitor as module
from mobillm.server.monitor import Monitor
from mobillm.transport import Address
from tests.conftest import Run


def get(monitor: Monitor, path: str) -> tuple[int, str]:
    """Return status and text."""
    url = f"http://{monitor.address.host}:{monitor.address.port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health(run: Run, monkeypatch: pytest.MonkeyPatch, no_fd_leak: None) -> None:
    """Healthy while the loop turns, unhealthy while it hangs or drains; lag is told."""
    monkeypatch.setattr(module, "BEAT", 0.02)
    lags: list[float] = []

    async def main() -> None:
        monitor = Monitor(Address("127.0.0.1", 0), CollectorRegistry(), lags.append)
        try:
            assert await asyncio.to_thread(get, monitor, "/healthz") == (200, "ok\n")
            assert (await asyncio.to_thread(get, monitor, "/"))[0] == 404
            assert (await asyncio.to_thread(get, monitor, "/metrics"))[0] == 200
            monkeypatch.setattr(module, "HEALTHY_LAG", 0.1)
            asking = asyncio.get_running_loop().run_in_executor(None, _later, monitor)
            time.sleep(0.5)  # the loop hangs
            status, text = await asking
            assert (status, text) == (503, "the event loop has been silent for 0 s\n")
            await asyncio.sleep(0.1)
            assert max(lags) > 0.3
            monitor.drain()
            assert await asyncio.to_thread(get, monitor, "/healthz") == (503, "draining\n")
        finally:
            await monitor.close()

    run(main())


def _later(monitor: Monitor) -> tuple[int, str]:
    time.sleep(0.25)
    return get(monitor, "/healthz")


def test_a_caller_that_says_nothing_is_cut_off(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread ends; others are answered meanwhile."""
    monkeypatch.setattr(module._Handler, "timeout", 0.2)

    async def main() -> None:
        monitor = Monitor(Address("127.0.0.1", 0), CollectorRegistry(), lambda lag: None)
        with socket.create_connection(("127.0.0.1", monitor.address.port)) as silent:
            assert await asyncio.to_thread(get, monitor, "/healthz") == (200, "ok\n")
            silent.settimeout(5.0)
            assert await asyncio.to_thread(silent.recv, 1) == b""
        await monitor.close()

    run_once(main())


def test_address_in_use(run_once: Run) -> None:
    """A taken port is an error at once."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = Address("127.0.0.1", taken.getsockname()[1])
            with pytest.raises(OSError, match="in use"):
                Monitor(address, CollectorRegistry(), lambda lag: None)

    run_once(main())
