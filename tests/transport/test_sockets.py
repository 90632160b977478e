"""Options of the TCP socket below a connection, and what they are good for."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Any

import pytest

from mobillm.errors import ConnectionClosedError
from mobillm.options import Limits, Timeouts
from mobillm.protocol import Data
from mobillm.transport import Connection
from mobillm.transport.sockets import peer_of
from tests.conftest import Run
from tests.transport.wire import attach, pair, until_end

needs_user_timeout = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no TCP_USER_TIMEOUT"
)


def _option(connection: Connection) -> int:
    assert connection._transport is not None
    sock = connection._transport.get_extra_info("socket")
    return int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))


@needs_user_timeout
def test_user_timeout_is_set_on_both_ends(run: Run) -> None:
    """[T-12] [L-19] 30 seconds by default; None leaves it to the system."""

    async def main() -> None:
        off = Timeouts(unacknowledged=None, keepalive=None, drain=2.0)
        async with pair(server_timeouts=Timeouts(drain=2.0), timeouts=off) as (near, far):
            assert (_option(near), _option(far)) == (0, 30_000)

    run(main())


async def _send_much(connection: Connection) -> None:
    """Send 16 MiB, more than the buffers of a connection hold, and wait for the end."""
    part = bytes(1 << 18)
    head: dict[str, Any] = {"format": 0, "block": 0, "shape": (1 << 22,)}
    for offset in range(0, 1 << 24, len(part)):
        first = head if offset == 0 else {}
        await connection.send(Data(stream=1, seq=1, tensor=0, offset=offset, payload=part, **first))
    await until_end(connection)


@needs_user_timeout
def test_bytes_that_nobody_takes_end_the_connection(run: Run) -> None:
    """[T-12] Without any keepalive, a link that takes no more bytes is given up while some wait."""

    async def main() -> None:
        short = Timeouts(unacknowledged=1.0, keepalive=None, drain=0.5)
        limits = Limits(frame=1 << 20)
        async with pair(timeouts=short, limits=limits) as (near, far):
            await attach(near, far)
            far._pause(True)
            start = time.monotonic()
            with pytest.raises(ConnectionClosedError) as info:
                await asyncio.wait_for(_send_much(near), 20.0)
            assert isinstance(info.value.__cause__, OSError)
            assert 0.5 < time.monotonic() - start < 15.0
            far.abort()

    run(main())


def test_a_peer_that_is_none() -> None:
    """Before there is a transport there is no address."""
    assert peer_of(None) == ("", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what its buffer holds")
def test_what_has_not_left_the_machine(run: Run) -> None:
    """What the peer does not take counts, in our buffer and in the system's; what it has taken does not."""

    async def main() -> None:
        async with pair() as (near, far):
            assert near._transport is not None
            far._pause(True)
            near._transport.write(bytes(1 << 24))
            waiting = near._transport.get_write_buffer_size()
            assert waiting < near.unsent <= 1 << 24
            near.abort()
            assert near.unsent == 0

    run(main())
