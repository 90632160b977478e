"""The listening side: slow and silent peers, and closing in order."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from mobillm.errors import ConfigError, ConnectionClosedError, ConnectionClosedOK, ErrorCode
from mobillm.options import Timeouts
from mobillm.protocol import Goaway
from mobillm.transport import Connection
from tests.conftest import Run
from tests.transport.wire import device, eventually, idle, server, until_end

SHORT = Timeouts(handshake=0.3, drain=0.4, keepalive=None)


def test_slow_loris(run: Run, no_fd_leak: None) -> None:
    """[H-7] [H-18] [L-12] One byte now and then does not keep a connection in the handshake."""

    async def main() -> None:
        async with await server(timeouts=SHORT) as listening:
            reader, writer = await asyncio.open_connection("127.0.0.1", listening.address.port)
            start = time.monotonic()
            drip = asyncio.get_running_loop().create_task(_drip(writer))
            answer = await reader.read()
            assert time.monotonic() - start < 2.0
            assert answer[3] == 0x05  # REJECT
            drip.cancel()
            await asyncio.gather(drip, return_exceptions=True)
            writer.close()
            await eventually(lambda: listening.connections == 0)

    run(main())


async def _drip(writer: asyncio.StreamWriter) -> None:
    for byte in b"ML\x01\x01" * 8:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


def test_close_is_ordered_and_can_be_repeated(run: Run, no_fd_leak: None) -> None:
    """[K-3] Peers get GOAWAY, then BYE; nobody new is let in; a second close waits for the first."""

    async def main() -> None:
        listening = await server(timeouts=SHORT)
        port = listening.address.port
        connection = await device(listening)
        closing = asyncio.get_running_loop().create_task(listening.close())
        message = await connection.recv()
        assert isinstance(message, Goaway)
        assert message.grace == SHORT.drain
        with pytest.raises(ConnectionClosedError):
            await device(f"127.0.0.1:{port}")
        with pytest.raises(ConnectionClosedOK):
            await until_end(connection)
        await asyncio.gather(closing, listening.close())
        assert listening.connections == 0
        await connection.close()

    run(main())


def test_handlers_are_cancelled_at_the_bound(run: Run, no_fd_leak: None) -> None:
    """[K-16] A handler that does not end is cancelled once the bound is over, not before."""
    ended: list[float] = []

    async def stubborn(connection: Connection) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(time.monotonic())

    async def main() -> None:
        listening = await server(stubborn, timeouts=SHORT)
        connection = await device(listening)
        await eventually(lambda: listening.connections == 1)
        start = time.monotonic()
        await listening.close()
        assert ended[0] - start > 0.3
        assert time.monotonic() - start < 2.5
        await connection.close()

    run(main())


def test_a_handler_that_ends_early_shortens_the_close(run: Run) -> None:
    """Closing does not wait for the bound when all handlers have ended."""

    async def main() -> None:
        listening = await server(timeouts=Timeouts(drain=20.0))
        connection = await device(listening)
        start = time.monotonic()
        closing = asyncio.get_running_loop().create_task(listening.close())
        assert isinstance(await connection.recv(), Goaway)
        await connection.close()
        await closing
        assert time.monotonic() - start < 5.0

    run(main())


def test_silent_connections_do_not_delay_the_close(run: Run) -> None:
    """A connection in the handshake is dropped at once."""

    async def main() -> None:
        listening = await server(timeouts=Timeouts(drain=20.0))
        _, writer = await asyncio.open_connection("127.0.0.1", listening.address.port)
        await eventually(lambda: listening.connections == 1)
        start = time.monotonic()
        await listening.close()
        assert time.monotonic() - start < 5.0
        writer.close()

    run(main())


def test_a_failing_handler_is_told_in_general_words(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The peer learns that the server failed, not why; the log has the traceback."""

    async def broken(connection: Connection) -> None:
        raise RuntimeError("the secret of the server")

    async def main() -> None:
        async with await server(broken) as listening:
            connection = await device(listening)
            with pytest.raises(ConnectionClosedError) as info:
                async for _ in connection:
                    pass
            assert info.value.code == ErrorCode.INTERNAL
            assert "secret" not in str(info.value)
            await connection.close()

    with caplog.at_level(logging.ERROR, logger="mobillm"):
        run(main())
    assert "the secret of the server" in caplog.text


def test_many_connections_leave_nothing(run: Run, no_fd_leak: None) -> None:
    """Connections that come and go, politely or not, leave no task and no file."""

    async def main() -> None:
        async with await server(idle) as listening:
            for number in range(20):
                connection = await device(listening)
                if number % 2:
                    await connection.close()
                else:
                    connection.abort()
                    await connection.wait_closed()
            await eventually(lambda: listening.connections == 0)

    run(main())


def test_tls_address_needs_a_context(run_once: Run) -> None:
    """A server never speaks plain TCP where TLS was asked for."""

    async def main() -> None:
        with pytest.raises(ConfigError, match="tls is None"):
            await server(address="mobillms://127.0.0.1:0")

    run_once(main())
