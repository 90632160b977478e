"""A server and devices for the tests of this directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mobillm.errors import ConnectionClosedError, ErrorCode
from mobillm.options import Limits, Timeouts
from mobillm.protocol import Bye, Credit, Data, Message, Open, Opened
from mobillm.transport import Connection, Server, connect, serve
from tests.helpers import KEY, SESSION, TENANT, make_data, make_spec

__all__ = [
    "QUICK",
    "TOKEN",
    "attach",
    "device",
    "eventually",
    "given_up_once_nothing_moves",
    "idle",
    "pair",
    "payload_of",
    "server",
    "until_end",
]

TOKEN = "open sesame"
QUICK = Timeouts(connect=2.0, handshake=2.0, request=2.0, keepalive=None, drain=2.0)

Handler = Callable[[Connection], Awaitable[None]]


async def idle(connection: Connection) -> None:
    """Read until the device says goodbye."""
    async for message in connection:
        if isinstance(message, Bye):
            return


async def server(
    handler: Handler = idle,
    *,
    address: str = "127.0.0.1:0",
    timeouts: Timeouts = QUICK,
    limits: Limits | None = None,
    tls: Any = None,
) -> Server:
    """Listen on a free port of this machine."""
    return await serve(handler, address, keys={TENANT: KEY}, timeouts=timeouts, limits=limits, tls=tls)


def device(where: Any, **options: Any) -> connect:
    """Return a device's connect to a server, or to an address."""
    address = where.address if isinstance(where, Server) else where
    settings: dict[str, Any] = {"token": TOKEN, "tenant": TENANT, "timeouts": QUICK}
    return connect(address, **(settings | options))


@contextlib.asynccontextmanager
async def pair(
    *,
    server_timeouts: Timeouts = QUICK,
    timeouts: Timeouts = QUICK,
    limits: Limits | None = None,
    device_limits: Limits | None = None,
    tls: tuple[Any, Any] = (None, None),
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Yield both ends of an open connection, device first; nobody reads from either."""
    arrived: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def handler(connection: Connection) -> None:
        arrived.set_result(connection)
        await over.wait()

    async with await server(handler, timeouts=server_timeouts, limits=limits, tls=tls[0]) as listening:
        connection = await device(listening, timeouts=timeouts, limits=device_limits, tls=tls[1])
        try:
            yield connection, await arrived
        finally:
            over.set()
            await connection.close()


async def attach(near: Connection, far: Connection, *, credit: int = 1 << 30) -> None:
    """Attach a session to stream 1 and grant credit."""
    near.post(Open(stream=1, spec=make_spec().to_map()))
    assert isinstance(await far.recv(), Open)
    far.post(Opened(stream=1, session=SESSION, epoch=1))
    far.post(Credit(stream=1, offset=credit, last=100))
    assert isinstance(await near.recv(), Opened)
    assert isinstance(await near.recv(), Credit)


async def until_end(connection: Connection) -> None:
    """Receive until that raises."""
    while True:
        await connection.recv()


def payload_of(message: Message) -> memoryview:
    """Return the payload of a DATA message."""
    assert isinstance(message, Data)
    return memoryview(message.payload)


async def eventually(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def given_up_once_nothing_moves(near: Connection, far: Connection) -> None:
    """Send 4 MB from an attached end whose keepalive takes .45 s; the other's machine takes a little of them.

    As long as it does it is not given up, then it is.
    """
    assert far._transport is not None
    far._pause(True)
    sock = far._transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
    for number in range(40):
        near.post(make_data(1, 0, bytes(100_000), offset=number * 100_000, values=1 << 23))
    start = time.monotonic()
    while time.monotonic() - start < 1.5:  # three times what an idle connection is given
        await asyncio.sleep(0.05)
        with contextlib.suppress(BlockingIOError):
            os.read(sock.fileno(), 1 << 15)
    assert near.is_open
    assert near.keepalive.round_trip is None
    with pytest.raises(ConnectionClosedError) as info:
        await asyncio.wait_for(until_end(near), 5.0)
    assert info.value.code == ErrorCode.IDLE_TIMEOUT
