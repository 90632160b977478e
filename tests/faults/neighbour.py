"""A healthy tenant beside every fault: it trains in peace and must not notice what others suffer."""

from __future__ import annotations

import asyncio
import pathlib
import ssl
import tempfile
from typing import Any, Self

from mobillm.device import Client, Session, connect
from mobillm.options import Timeouts
from mobillm.protocol import derive_key
from mobillm.server import serve
from mobillm.spec import SideSpec
from mobillm.transport import Address
from tests.sessions import arrays, spec

__all__ = ["NEIGHBOUR", "Neighbour"]

NEIGHBOUR = ("neighbour", "a third token")
BATCHES = 6
SPEC = spec(batches=BATCHES, side=SideSpec(kind="head"))
TIMEOUTS = Timeouts(request=10.0, keepalive=None, drain=1.0)
# Seconds between batches while the fault lasts: each pause is longer than the last one, so that short
# faults see several batches and long ones are covered, too.
PAUSE, GROWTH = 0.03, 2.0

_expected: list[bytes] = []


async def _connect(address: Address, tls: ssl.SSLContext | None) -> Client:
    tenant, token = NEIGHBOUR
    options: dict[str, Any] = {"token": token, "tenant": tenant, "timeouts": TIMEOUTS, "tls": tls}
    return await connect(address, **options)


async def _submit(session: Session, seq: int) -> None:
    data = arrays(seq)
    assert await session.submit(data.taps, data.lengths, data.targets) == seq


async def _end(session: Session) -> bytes:
    await session.finish()
    finished = await session.wait_finished()
    assert finished.steps == BATCHES, "a batch of the neighbour was lost or trained on twice"
    return await session.pull()


async def _undisturbed() -> bytes:
    if not _expected:
        tenant, token = NEIGHBOUR
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder)
            async with (
                serve(
                    "127.0.0.1:0", keys={tenant: derive_key(token)}, directory=place, timeouts=TIMEOUTS
                ) as server,
                await _connect(server.address, None) as client,
            ):
                session = await client.open(SPEC)
                for seq in range(1, BATCHES + 1):
                    await _submit(session, seq)
                _expected.append(await _end(session))
    return _expected[0]


class Neighbour:
    """A device with a session of its own for the time of an ``async with`` block.

    While the block runs it sends batches and measures how long the acknowledgements take. At its end it
    sends what is left and checks that its connection was never lost, that each batch was trained on
    once, that its weights are those of a run on a server of its own, and that no acknowledgement took
    longer than ``latency``.

    Args:
        address: of the server.
        tls: TLS context; None where the address is a plain one.
        latency: seconds that an acknowledgement may take.

    Attributes:
        latencies: seconds from the end of each batch to its acknowledgement as durable.

    """

    def __init__(self, address: Address, *, tls: ssl.SSLContext | None = None, latency: float = 2.0) -> None:
        self.latencies: list[float] = []
        self._address = address
        self._tls = tls
        self._bound = latency
        self._client: Client | None = None
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._sent = 0

    async def __aenter__(self) -> Self:
        await _undisturbed()
        self._client = await _connect(self._address, self._tls)
        self._session = await self._client.open(SPEC)
        await self._next()
        self._task = asyncio.get_running_loop().create_task(self._live())
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        assert self._client is not None
        assert self._session is not None
        assert self._task is not None
        self._over.set()
        if exc_type is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._client.close()
            return
        try:
            await self._task
            while self._sent < BATCHES:
                await self._next()
            assert await _end(self._session) == await _undisturbed(), "the neighbour's weights differ"
        finally:
            await self._client.close()
        worst = max(self.latencies)
        assert worst <= self._bound, f"an acknowledgement of the neighbour took {worst:.2f} s"

    async def _live(self) -> None:
        """Send batches, all but one, until the fault is over."""
        pause = PAUSE
        while self._sent < BATCHES - 1:
            try:
                async with asyncio.timeout(pause):
                    await self._over.wait()
                return
            except TimeoutError:
                await self._next()
                pause *= GROWTH

    async def _next(self) -> None:
        assert self._session is not None
        loop = asyncio.get_running_loop()
        start = loop.time()
        self._sent += 1
        await _submit(self._session, self._sent)
        await self._session.wait_durable(self._sent)
        self.latencies.append(loop.time() - start)
