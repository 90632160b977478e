"""A healthy tenant beside every fault: it trains in peace and must not notice what others suffer."""

from __future__ import annotations

import asyncio
import pathlib
import ssl
import tempfile
from typing import Any, Self

from mobillm.device import Client, connect
from mobillm.device.packing import pack_batch
from mobillm.device.uplink import Uplink
from mobillm.options import Timeouts
from mobillm.protocol import derive_key
from mobillm.server import serve
from mobillm.spec import SideSpec
from mobillm.transport import Address
from tests.faults.weights import require_same
from tests.sessions import arrays, spec

__all__ = ["NEIGHBOUR", "Neighbour"]

NEIGHBOUR = ("neighbour", "a third token")
BATCHES = 6
SPEC = spec(batches=BATCHES, side=SideSpec(kind="head"))
TIMEOUTS = Timeouts(request=10.0, keepalive=None, drain=1.0)
# What it waits for when its server dies with all that is on it.
PATIENT = Timeouts(request=10.0, keepalive=1.0, keepalive_reply=1.0, drain=0.3)
# Seconds between batches while the fault lasts: each pause is longer than the last one, so that short
# faults see several batches and long ones are covered, too.
PAUSE, GROWTH = 0.03, 2.0

_expected: list[bytes] = []


def _uplink(address: Address, tls: ssl.SSLContext | None, *, patience: float | None = 0.0) -> Uplink:
    tenant, token = NEIGHBOUR
    timeouts = TIMEOUTS if patience == 0 else PATIENT
    options: dict[str, Any] = {"token": token, "tenant": tenant, "timeouts": timeouts, "tls": tls}

    async def dial() -> Client:
        return await connect(address, **options)

    return Uplink(dial, SPEC, keep=1 << 20, patience=patience)


async def _submit(uplink: Uplink, seq: int) -> None:
    data = arrays(seq)
    batch = await uplink.begin(len(data.lengths))
    assert batch.seq == seq
    for number, tensor in pack_batch(SPEC, data.taps, data.lengths, data.targets).items():
        await uplink.send(batch, number, tensor)
    await uplink.commit(batch)


async def _end(uplink: Uplink) -> bytes:
    await uplink.finish()
    finished = await uplink.wait_finished()
    assert finished.steps == BATCHES, "a batch of the neighbour was lost or trained on twice"
    return await uplink.pull()


async def _undisturbed() -> bytes:
    if not _expected:
        tenant, token = NEIGHBOUR
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder)
            async with serve(
                "127.0.0.1:0", keys={tenant: derive_key(token)}, directory=place, timeouts=TIMEOUTS
            ) as server:
                uplink = _uplink(server.address, None)
                await uplink.start()
                for seq in range(1, BATCHES + 1):
                    await _submit(uplink, seq)
                _expected.append(await _end(uplink))
                await uplink.close()
    return _expected[0]


class Neighbour:
    """A device with a session of its own for the time of an ``async with`` block.

    While the block runs it sends batches and measures how long the acknowledgements take. At its end it
    sends what is left and checks that each batch was trained on once and that its weights are those of a
    run on a server of its own; where the server lives, also that its connection was never lost and that
    no acknowledgement took longer than ``latency``.

    Args:
        address: of the server.
        tls: TLS context; None where the address is a plain one.
        latency: seconds that an acknowledgement may take; None where the server itself dies or sleeps,
            so that the neighbour has to come back.
        idle: send nothing more while the fault lasts, for a fault of the disk that all share.

    Attributes:
        latencies: seconds from the end of each batch to its acknowledgement as durable, the first one apart.

    """

    def __init__(
        self,
        address: Address,
        *,
        tls: ssl.SSLContext | None = None,
        latency: float | None = 2.0,
        idle: bool = False,
    ) -> None:
        self.latencies: list[float] = []
        self._bound = latency
        self._idle = idle
        self._uplink = _uplink(address, tls, patience=60.0 if latency is None else 0.0)
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._sent = 0

    async def __aenter__(self) -> Self:
        await _undisturbed()
        await self._uplink.start()
        if self._bound is not None:
            await self._next()
            self.latencies.clear()  # a fresh server's first batch is slow: it loads what trains
        self._task = asyncio.get_running_loop().create_task(self._live())
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        assert self._task is not None
        self._over.set()
        if exc_type is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._uplink.close()
            return
        try:
            await self._task
            while self._sent < BATCHES:
                await self._next()
            require_same(await _end(self._uplink), await _undisturbed())
        finally:
            await self._uplink.close()
        if self._bound is not None:
            assert self._uplink.losses == 0, "the neighbour lost its connection"
            worst = max(self.latencies)
            assert worst <= self._bound, f"an acknowledgement of the neighbour took {worst:.2f} s"

    async def _live(self) -> None:
        """Send batches, all but one, until the fault is over."""
        pause = PAUSE
        while self._sent < BATCHES - 1:
            try:
                async with asyncio.timeout(None if self._idle else pause):
                    await self._over.wait()
                return
            except TimeoutError:
                await self._next()
                pause *= GROWTH

    async def _next(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        self._sent += 1
        await _submit(self._uplink, self._sent)
        await self._uplink.wait_durable()
        self.latencies.append(loop.time() - start)
