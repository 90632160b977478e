"""The ceiling of :mod:`benchmarks.transport`: an event loop, a socket and a buffer that is there already.

The receiver is an ``asyncio.BufferedProtocol`` that fills one buffer of the payload's size over and over:
no frames, no allocation, no copy but the kernel's. The sender writes as much at a time as a DATA frame
holds, with the same bound on what waits in user space. Both can compute the CRC32C of each payload
besides, which is what the protocol's checksums cost at least.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from typing import cast

from mobillm.options import Limits
from mobillm.protocol.checksum import crc32c
from mobillm.transport.connection import HIGH_WATER

__all__ = ["CONFIRMED", "JOB", "BareReceiver", "BareSender"]

JOB = struct.Struct(">QQ")  # bytes of a payload, payloads
CONFIRMED = b"k"
CHUNK = Limits().chunk


class BareReceiver(asyncio.BufferedProtocol):
    """Receives jobs: a size and a count, then so many payloads.

    Args:
        checksum: compute the CRC32C of each part of a payload that a frame would hold.

    """

    def __init__(self, checksum: bool) -> None:
        self._checksum = checksum
        self._view = memoryview(bytearray(JOB.size))
        self._filled = 0
        self._count = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the confirmation."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return what is left of the buffer."""
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Count whole payloads; confirm the last."""
        self._filled += nbytes
        if self._filled < len(self._view):
            return
        self._filled = 0
        if not self._count:
            size, self._count = JOB.unpack(self._view)
            self._view = memoryview(bytearray(size))
            return
        if self._checksum:
            for start in range(0, len(self._view), CHUNK):
                crc32c(self._view[start : start + CHUNK])
        self._count -= 1
        if not self._count and self._transport is not None:
            self._transport.write(CONFIRMED)
            self._view = memoryview(bytearray(JOB.size))


class BareSender(asyncio.Protocol):
    """Writes payloads as fast as the transport takes them.

    Args:
        checksum: compute the CRC32C of each part first.

    """

    def __init__(self, checksum: bool) -> None:
        self._checksum = checksum
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._confirmed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what waits in user space as :class:`mobillm.transport.Connection` does."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=int(HIGH_WATER * CHUNK))
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def pause_writing(self) -> None:
        """Wait for the link."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Take the confirmation."""
        self._confirmed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let nobody wait for ever."""
        self._writable.set()
        self._confirmed.set()

    async def send(self, payloads: Sequence[memoryview], count: int) -> None:
        """Send ``count`` payloads, those given over and over, and wait for the confirmation."""
        transport = self._transport
        if transport is None:
            raise RuntimeError("there is no connection yet")
        self._confirmed.clear()
        transport.write(JOB.pack(len(payloads[0]), count))
        for number in range(count):
            payload = payloads[number % len(payloads)]
            for start in range(0, len(payload), CHUNK):
                part = payload[start : start + CHUNK]
                if self._checksum:
                    crc32c(part)
                if not self._writable.is_set():
                    await self._writable.wait()
                transport.write(part)
        await self._confirmed.wait()
        if transport.is_closing():
            raise ConnectionError("the receiver closed the connection")
