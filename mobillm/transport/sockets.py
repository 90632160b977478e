"""What is asked of the TCP socket below a connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from typing import Any

if sys.platform != "win32":
    import fcntl

__all__ = ["acknowledged", "peer_of", "tune", "unsent"]

SIOCOUTQNSD = 0x894B  # Linux, linux/sockios.h: bytes that were written and never sent
BYTES_ACKED = 120  # Linux, linux/tcp.h: where tcpi_bytes_acked, 8 bytes, is in struct tcp_info


def tune(transport: asyncio.BaseTransport, unacknowledged: float | None) -> None:
    """Send small frames at once, and give up a link that swallows what is sent.

    Keepalive alone sees a dead link only once nothing waits to be sent; TCP_USER_TIMEOUT (RFC 5482) sees it
    meanwhile. Sockets that are not TCP are left alone.

    Args:
        transport: what the socket belongs to.
        unacknowledged: seconds that sent bytes may stay unacknowledged; None leaves it to the system.

    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if unacknowledged is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = min(max(1, round(unacknowledged * 1000)), 2**31 - 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def unsent(transport: asyncio.Transport) -> int:
    """Return the bytes written that wait in this machine: in our buffer and, on Linux, in the system's.

    The system's may hold megabytes, seconds on a slow link. What the network has taken is not among them.
    """
    waiting = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sys.platform == "linux" and sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # the socket is closed already
            answer = fcntl.ioctl(sock.fileno(), SIOCOUTQNSD, bytes(4))
            waiting += struct.unpack("i", answer)[0]
    return waiting


def acknowledged(transport: asyncio.Transport) -> int | None:
    """Return the bytes that the peer's TCP has acknowledged, those of TLS included; None where it is unknown.

    What waits in the layers above, of which TLS shows only its own part, makes no difference to it.
    """
    sock = transport.get_extra_info("socket")
    if sys.platform == "linux" and sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # the socket is closed already
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED + 8)
            if len(info) == BYTES_ACKED + 8:
                return int(struct.unpack_from("Q", info, BYTES_ACKED)[0])
    return None


def peer_of(transport: asyncio.BaseTransport | None) -> tuple[str, int]:
    """Return host and port of the other end; an empty host when there is none."""
    name: Any = None if transport is None else transport.get_extra_info("peername")
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("", 0)
