"""What a measured run says of itself, and what is left of one that failed."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, cast

import pytest

from benchmarks import rig
from benchmarks.rig import Run
from mobillm.device.timeline import Summary
from mobillm.transport import Address


def run(busy: dict[str, float], link_busy: float | None) -> Run:
    """Return a run whose trace took the device for the critical stage."""
    summary = Summary(
        start=0.0,
        end=1.0,
        total=1.0,
        batches=1,
        busy={"device": 0.9, "link": 0.1, "disk": 0.0, "server": 0.8},
        critical="device",
        efficiency=0.9,
        causes={},
        bubbles=(),
        clock_error=None,
    )
    return Run(
        wall=20.0,
        batch_seconds=1.0,
        bytes_sent=1,
        packed=1,
        link_busy=link_busy,
        goodput=None,
        summary=summary,
        waits={},
        busy=busy,
        where={},
        values={},
        loss=None,
    )


@pytest.mark.parametrize(
    ("busy", "link_busy", "critical", "efficiency"),
    [
        ({"device": 0.83, "link": 19.97, "disk": 0.1, "server": 0.5}, 0.99, "link", 0.99),
        ({"device": 0.83, "link": 0.2, "disk": 0.1, "server": 0.5}, 0.3, "device", 0.9),
        ({"device": 2.0, "link": 0.2, "disk": 0.1, "server": 5.0}, None, "server", 0.8),
    ],
)
def test_the_critical_stage_is_the_busiest(
    busy: dict[str, float], link_busy: float | None, critical: str, efficiency: float
) -> None:
    """The link's time is that of the emulator; a link with a rate is not critical for having one."""
    found = run(busy, link_busy)
    assert (found.critical, found.efficiency) == (critical, efficiency)


def test_a_run_that_fails_leaves_no_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The wait for the first batch fails together with the connection; nobody is told of it twice."""

    class Uplink:
        def __init__(self, *_: object, **__: object) -> None:
            self.session = self
            self.lost = asyncio.Event()

        async def start(self) -> None:
            pass

        async def wait_durable(self, count: int = 0) -> None:
            await self.lost.wait()
            raise ConnectionError("lost")

        async def close(self) -> None:
            pass

    class Pipeline:
        def __init__(self, backbone: object, uplink: Uplink, **_: object) -> None:
            self._uplink = uplink

        async def run(self, batches: object) -> None:
            self._uplink.lost.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            raise RuntimeError("the forward pass failed")

    monkeypatch.setattr(rig, "Uplink", Uplink)
    monkeypatch.setattr(rig, "Pipeline", Pipeline)
    monkeypatch.setattr(rig, "Watch", lambda *parts: None)
    none = cast(Any, None)
    with pytest.raises(RuntimeError, match="the forward pass failed"):
        asyncio.run(rig._stream(none, [], none, Address("127.0.0.1", 1), "", serial=False))
    gc.collect()
    assert [record.message for record in caplog.records] == []
