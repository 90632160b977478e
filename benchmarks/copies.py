"""How often does user space copy a payload, on both sides together?

Counted, not timed: which bytes arrive in another buffer than the one the receiver gets to keep, and which
a sender's transport keeps a copy of because the socket did not take them. TLS encrypts and so copies in
any case; this is about plain TCP.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from benchmarks.stacks import ADDRESS, TIMEOUTS, TOKEN, send_batch, take
from mobillm.protocol import Ack, Credit, Open, derive_key
from mobillm.protocol.frames import SCRATCH_SIZE, SLACK
from mobillm.transport import Connection, connect, serve

__all__ = ["copies_per_payload"]

PAYLOADS = 64


class Counter:
    """Counts what both connections of one process copy.

    Attributes:
        received: bytes that arrived in the connection's small buffer or behind a payload; headers and maps
            are among them.
        sent: bytes that did not leave as the caller's own memory, or that the transport has kept a copy of.

    """

    def __init__(self, copying: bool) -> None:
        self.received = 0
        self.sent = 0
        self._copying = copying
        self._place = 0  # bytes of the last buffer that are where they belong

    def get_buffer(self, connection: Connection, sizehint: int) -> memoryview:
        """Note which buffer is handed out."""
        view = connection.endpoint.get_buffer()
        small = len(view.obj) == SCRATCH_SIZE  # type: ignore[arg-type]
        self._place = 0 if small else len(view) - SLACK
        return view

    def buffer_updated(self, original: Callable[..., None], connection: Connection, nbytes: int) -> None:
        """Count what did not go straight to its place."""
        self.received += max(0, nbytes - self._place)
        original(connection, nbytes)

    def write(self, transport: Any, own: set[int], data: bytes | memoryview) -> None:
        """Count what is not the caller's memory, and what is left with a transport that copies."""
        if not isinstance(data, memoryview) or id(data.obj) not in own:
            self.sent += len(data) if len(data) > SCRATCH_SIZE else 0  # a payload, not a header
        before = transport.get_write_buffer_size()
        transport.write(data)
        if self._copying and isinstance(data, memoryview):
            self.sent += max(0, transport.get_write_buffer_size() - before)


class Watched:
    """A transport whose writes are counted."""

    def __init__(self, transport: Any, write: Callable[[Any, Any], None]) -> None:
        self._transport = transport
        self._write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: Any) -> None:
        """Write and count."""
        self._write(self._transport, data)


async def _exchange(counter: Counter, size: int) -> None:
    block = memoryview(os.urandom(size * PAYLOADS))
    own = {id(block.obj)}
    made, updated = Connection.connection_made, Connection.buffer_updated

    def connection_made(connection: Connection, transport: Any) -> None:
        made(connection, Watched(transport, lambda inner, data: counter.write(inner, own, data)))  # type: ignore[arg-type]

    def buffer_updated(connection: Connection, nbytes: int) -> None:
        counter.buffer_updated(updated, connection, nbytes)

    def get_buffer(connection: Connection, sizehint: int) -> memoryview:
        return counter.get_buffer(connection, sizehint)

    with (
        mock.patch.object(Connection, "connection_made", connection_made),
        mock.patch.object(Connection, "buffer_updated", buffer_updated),
        mock.patch.object(Connection, "get_buffer", get_buffer),
    ):
        keys = {"default": derive_key(TOKEN)}
        async with (
            await serve(take, f"{ADDRESS}:0", keys=keys, timeouts=TIMEOUTS) as server,
            connect(server.address, token=TOKEN, timeouts=TIMEOUTS) as connection,
        ):
            connection.post(Open(stream=1, session=bytes(16)))
            while not isinstance(await connection.recv(), Credit):
                pass
            payloads = [block[start : start + size] for start in range(0, len(block), size)]
            await send_batch(connection, 1, payloads)
            while not isinstance(await connection.recv(), Ack):
                pass


def copies_per_payload(factory: Callable[[], asyncio.AbstractEventLoop], size: int) -> float:
    """Return the bytes copied in user space for each payload byte, at most, on both sides together.

    Args:
        factory: makes the event loop.
        size: bytes of a payload.

    """
    with asyncio.Runner(loop_factory=factory) as runner:
        # uvloop keeps a reference; asyncio copies what is left, until Python 3.12 does not.
        copying = "uvloop" not in type(runner.get_loop()).__module__ and sys.version_info < (3, 12)
        counter = Counter(copying)
        runner.run(_exchange(counter, size))
    return round((counter.received + counter.sent) / (size * PAYLOADS), 4)
