"""The listening side: slow and silent peers, and closing in order."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from mobillm.errors import ConfigError, ConnectionClosedError, ConnectionClosedOK, ErrorCode, HandshakeError
from mobillm.options import Limits, Timeouts
from mobillm.protocol import Goaway, Hello
from mobillm.transport import Connection
from mobillm.transport.server import BUSY_PAUSE, FAILURE_PAUSE
from tests.conftest import Run
from tests.helpers import TENANT, wire_bytes
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
            assert (info.value.code, info.value.retry_after) == (ErrorCode.INTERNAL, FAILURE_PAUSE)
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


async def _hold(port: int, count: int) -> list[asyncio.StreamWriter]:
    """Open connections that say nothing."""
    return [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(count)]


@pytest.mark.parametrize("bounds", [{"handshakes": 3}, {"handshakes_per_host": 3}], ids=str)
def test_the_handshake_has_room_for_some(run: Run, no_fd_leak: None, bounds: dict[str, int]) -> None:
    """[H-20] [E-10] [L-15] [T-5] Beyond it SERVER_BUSY; who is in works on, and room comes back."""

    async def main() -> None:
        async with await server(idle, limits=Limits(**bounds)) as listening:
            inside = await device(listening)
            held = await _hold(listening.address.port, 3)
            await eventually(lambda: listening.connections == 4)
            for _ in range(5):  # more often than the handshake has places
                with pytest.raises(HandshakeError) as info:
                    await device(listening)
                assert (info.value.code, info.value.retry_after) == (ErrorCode.SERVER_BUSY, BUSY_PAUSE)
                await eventually(lambda: listening.connections == 4)
            inside.ping()
            await eventually(lambda: inside.keepalive.round_trip is not None)
            held[0].close()
            await eventually(lambda: listening.connections == 3)
            await (await device(listening)).close()
            for writer in held:
                writer.close()
            await inside.close()
            await eventually(lambda: listening.connections == 0)

    run(main())


def test_those_who_are_turned_away_are_bounded_too(run: Run, no_fd_leak: None) -> None:
    """[H-20] A flood of silent connections does not pile up, and devices that are in do not notice."""

    async def main() -> None:
        async with await server(idle, limits=Limits(handshakes=4)) as listening:
            inside = await device(listening)
            held = await _hold(listening.address.port, 60)
            assert listening.connections <= 1 + 4 + 4
            inside.ping()
            await eventually(lambda: inside.keepalive.round_trip is not None)
            for writer in held:
                writer.close()
            await inside.close()
            await eventually(lambda: listening.connections == 0)

    run(main())


def test_devices_that_come_at_once_all_get_in(run: Run) -> None:
    """[H-20] A place is given back with WELCOME: far more devices than places log in one after another."""

    async def main() -> None:
        async with await server(idle, limits=Limits(handshakes=2)) as listening:
            connections = [await device(listening) for _ in range(20)]
            assert all(connection.is_open for connection in connections)
            await asyncio.gather(*(connection.close() for connection in connections))

    run(main())


@pytest.mark.parametrize("tenant", [TENANT, "nobody"])
def test_guessing_is_slowed_down(run: Run, tenant: str, caplog: pytest.LogCaptureFixture) -> None:
    """[A-14] [A-15] [A-5] [E-10] After some wrong tokens even a right one has to wait, whoever is named."""
    caplog.set_level(logging.INFO, logger="mobillm")

    async def main() -> None:
        async with await server(idle) as listening:
            before = await device(listening)
            texts = set()
            for _ in range(Limits().failed_logins + 1):
                with pytest.raises(HandshakeError) as info:
                    await device(listening, token="wrong", tenant=tenant)
                assert info.value.code == ErrorCode.AUTH_FAILED
                texts.add(str(info.value))
            assert texts == {"AUTH_FAILED: unknown tenant or wrong token"}
            for token in ("wrong", None):
                with pytest.raises(HandshakeError) as info:
                    await device(listening, tenant=tenant, **({} if token is None else {"token": token}))
                assert (info.value.code, info.value.retry_after) == (ErrorCode.CALM, 1.0)
                assert info.value.text == "too many failed logins"
            assert before.is_open
            await before.close()
            await asyncio.sleep(1.05)
            if tenant == TENANT:
                await (await device(listening)).close()

    run(main())
    assert f" as {tenant!r}: connection closed: AUTH_FAILED: " in caplog.text


def test_the_handshake_is_refused_while_the_server_stops(run: Run) -> None:
    """[H-21] [E-10] Who has said HELLO when the server stops learns that it does, and when to come back."""

    async def main() -> None:
        listening = await server(timeouts=SHORT)
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.address.port)
        writer.write(wire_bytes(Hello(min_version=1, max_version=1, tenant=TENANT, nonce=bytes(16))))
        assert (await reader.readexactly(32))[3] == 0x02  # CHALLENGE
        closing = asyncio.get_running_loop().create_task(listening.close())
        answer = await reader.read()
        assert b"the server stops" in answer
        assert b"retry_after" in answer
        writer.close()
        await closing

    run(main())
