"""Listening sockets: connections are accepted one at a time, and after a pause when there is no room."""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import socket
from collections.abc import Callable

from .address import Address

__all__ = ["accept", "listen"]

logger = logging.getLogger("mobillm.transport")

BACKLOG = 1024  # connections that the kernel holds until they are accepted

# Seconds until a failed accept is tried again: with no descriptor left it fails for as long as nobody leaves.
ACCEPT_PAUSE = 0.1
# Descriptors that connections leave to files: a flood of connections must not keep sessions from their logs.
RESERVED = 32
# Seconds for which further failures are not logged.
LOG_PAUSE = 60.0


async def listen(address: Address) -> list[socket.socket]:
    """Return listening sockets, one for each address that the host's name stands for.

    Args:
        address: where to listen; with port 0 the system chooses one, and only the first address is used.

    Raises:
        OSError: it cannot be listened on.

    """
    infos = await asyncio.get_running_loop().getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    places = list(dict.fromkeys((info[0], info[4]) for info in infos))
    sockets: list[socket.socket] = []
    try:
        for family, place in places[: None if address.port else 1]:
            sockets.append(socket.create_server(place, family=family, backlog=BACKLOG))
            sockets[-1].setblocking(False)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


async def accept(sock: socket.socket, take: Callable[[socket.socket, str], None]) -> None:
    """Accept connections until it is cancelled.

    Args:
        sock: a listening socket that does not block.
        take: called with each connection's socket, which is its own then, and the address of the peer.

    """
    loop = asyncio.get_running_loop()
    logged = -math.inf

    def complain(reason: str) -> None:
        nonlocal logged
        if loop.time() - logged >= LOG_PAUSE:
            logged = loop.time()
            logger.error("! no connection can be accepted: %s; those that are open go on", reason)

    while True:
        try:
            taken, peer = await loop.sock_accept(sock)
        except ConnectionAbortedError:
            await asyncio.sleep(0)  # the peer has gone already
            continue
        except OSError as exc:
            complain(str(exc.strerror))
            await asyncio.sleep(ACCEPT_PAUSE)
            continue
        # The system gives out the lowest free descriptor, so its number tells how many are taken.
        if taken.fileno() >= _descriptors() - RESERVED:
            taken.close()
            complain("the descriptors that are left are kept for files; raise the limit (ulimit -n)")
        else:
            take(taken, str(peer[0]))
        await asyncio.sleep(0)  # a flood of connections must leave the loop time for those that are open


def _descriptors() -> float:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft
