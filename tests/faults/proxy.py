"""A proxy between a device and a server that does to their bytes what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Self

from mobillm.transport import Address

__all__ = ["CLEAN", "Faults", "Plan", "Proxy", "between", "first", "proxied"]

CHUNK = 1 << 16
# What one direction may hold for the sake of latency: beyond it the sender is slowed down.
HELD_CHUNKS = 256
BURST = 0.02  # seconds of the rate that may pass at once


@dataclasses.dataclass(slots=True, kw_only=True)
class Faults:
    """What happens to the bytes of one direction of one connection.

    Attributes:
        latency, jitter: seconds that each piece is held back; the throughput stays what it was.
        rate: bytes per second that pass; 0 lets all pass.
        slice: bytes of each write; 0 leaves the pieces as they come.
        cut: both directions end by FIN after this many bytes; None never.
        reset: both directions end by RST after this many bytes; None never.
        corrupt: offset of a byte of which one bit is turned; None leaves all as they are.
        seed: of the jitter and of the choice of the bit.

    """

    latency: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    slice: int = 0
    cut: int | None = None
    reset: int | None = None
    corrupt: int | None = None
    seed: int = 0


CLEAN = Faults()
Plan = Callable[[int], tuple[Faults, Faults]]


def between(up: Faults = CLEAN, down: Faults = CLEAN) -> Plan:
    """Return the plan that does the same to each connection: ``up`` from the device, ``down`` to it."""
    return lambda _: (up, down)


def first(up: Faults = CLEAN, down: Faults = CLEAN, *, connections: int = 1) -> Plan:
    """Return the plan that disturbs only the first connections."""
    return lambda number: (up, down) if number < connections else (CLEAN, CLEAN)


class _Link:
    """One connection: two sockets and two directions."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self._writers = writers
        self.task: asyncio.Task[object] | None = None

    def reset(self) -> None:
        """End both sides by RST."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # gone already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def close(self) -> None:
        """End both sides by FIN, once what was written is gone."""
        for writer in self._writers:
            writer.close()


class Proxy:
    """A TCP proxy on a free port of this machine.

    Args:
        target: where it connects to.
        plan: number of a connection, from 0, to what is done to its two directions; None does nothing.
        source: address of this machine that the connections to the target come from; None leaves it
            to the system.

    Attributes:
        connections: how many there were.
        passed: bytes that left the proxy, device to server and server to device.

    """

    def __init__(self, target: Address, plan: Plan | None = None, *, source: str | None = None) -> None:
        self.target = target
        self.plan = plan or between()
        self.connections = 0
        self.passed = [0, 0]
        self._source = source
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._open = [asyncio.Event(), asyncio.Event()]
        for gate in self._open:
            gate.set()

    @property
    def address(self) -> Address:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [link.task for link in self._links if link.task is not None]
        for link in list(self._links):
            link.reset()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    def black_hole(self, on: bool, *directions: int) -> None:
        """Hold all bytes and FINs of the directions (0 up, 1 down; none stands for both), or let them go."""
        for direction in directions or (0, 1):
            if on:
                self._open[direction].clear()
            else:
                self._open[direction].set()

    def cut_all(self, *, reset: bool = True) -> None:
        """End all connections there are, by RST or by FIN."""
        for link in list(self._links):
            if reset:
                link.reset()
            else:
                link.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = self.plan(self.connections)
        self.connections += 1
        local = None if self._source is None else (self._source, 0)
        try:
            far_reader, far_writer = await asyncio.open_connection(
                self.target.host, self.target.port, local_addr=local
            )
        except OSError:
            writer.transport.abort()
            return
        link = _Link((writer, far_writer))
        for end in (writer, far_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.task = asyncio.current_task()
        self._links.add(link)
        pumps = (_Pump(self, link, 0, up), _Pump(self, link, 1, down))
        try:
            await asyncio.gather(pumps[0].run(reader, far_writer), pumps[1].run(far_reader, writer))
        except (OSError, EOFError):
            link.reset()
        except asyncio.CancelledError:
            pass  # the proxy ends
        finally:
            link.close()
            self._links.discard(link)

    async def _gate(self, direction: int) -> None:
        await self._open[direction].wait()


class _Pump:
    """One direction of one connection."""

    def __init__(self, proxy: Proxy, link: _Link, direction: int, faults: Faults) -> None:
        self._proxy = proxy
        self._link = link
        self._direction = direction
        self._faults = faults
        self._random = random.Random(faults.seed)
        self._count = 0
        self._tokens_at = 0.0  # when the bucket of the rate is empty

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass all on until the end; the other direction may go on (a half close)."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD_CHUNKS)
        loop = asyncio.get_running_loop()

        async def fill() -> None:
            data = b"-"
            while data:
                data = await reader.read(CHUNK)
                wait = self._faults.latency + self._random.uniform(-1.0, 1.0) * self._faults.jitter
                await queue.put((loop.time() + max(0.0, wait), data))

        filling = loop.create_task(fill())
        taking: asyncio.Task[tuple[float, bytes]] | None = None
        try:
            while True:
                taking = loop.create_task(queue.get())
                await asyncio.wait((taking, filling), return_when=asyncio.FIRST_COMPLETED)
                if not taking.done() and filling.done() and queue.empty():
                    filling.result()  # raises what broke the reading
                    return
                due, data = await taking
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._proxy._gate(self._direction)
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                await self._pass(data, writer)
        finally:
            tasks = [task for task in (filling, taking) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        faults, start = self._faults, self._count
        ends = [limit for limit in (faults.cut, faults.reset) if limit is not None]
        limit = min(ends, default=start + len(data))
        data = data[: max(0, limit - start)]
        if faults.corrupt is not None and start <= faults.corrupt < start + len(data):
            changed = bytearray(data)
            changed[faults.corrupt - start] ^= 1 << self._random.randrange(8)
            data = bytes(changed)
        step = faults.slice or CHUNK
        for offset in range(0, len(data), step):
            piece = data[offset : offset + step]
            await self._throttle(len(piece))
            writer.write(piece)
            await writer.drain()
            self._proxy.passed[self._direction] += len(piece)
            if faults.slice:
                await asyncio.sleep(0)
        self._count += len(data)
        if ends and self._count >= limit:
            if faults.reset is not None and self._count >= faults.reset:
                self._link.reset()
            self._link.close()
            raise EOFError

    async def _throttle(self, size: int) -> None:
        """Wait until the bucket holds as many tokens; it holds at most a burst of them."""
        if not self._faults.rate:
            return
        now = asyncio.get_running_loop().time()
        self._tokens_at = max(self._tokens_at, now - BURST) + size / self._faults.rate
        await asyncio.sleep(max(0.0, self._tokens_at - now))


@contextlib.asynccontextmanager
async def proxied(target: Address, plan: Plan | None = None, **options: str) -> AsyncIterator[Proxy]:
    """Run a proxy for the time of an ``async with`` block."""
    async with Proxy(target, plan, **options) as proxy:
        yield proxy
