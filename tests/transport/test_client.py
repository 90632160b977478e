"""Connecting: every way it can go wrong has its own clear error, soon."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from mobillm.errors import ConfigError, ConnectionClosedError, ConnectionClosedOK, ErrorCode, HandshakeError
from mobillm.options import Timeouts
from mobillm.transport import Address
from tests.conftest import Run
from tests.transport.wire import QUICK, device, eventually, server

SHORT = Timeouts(connect=2.0, handshake=0.3, drain=1.0)


@contextlib.asynccontextmanager
async def rude_server(first: bytes | None, *, wait: bool) -> AsyncIterator[Address]:
    """Listen, say ``first`` to each connection, and close it or keep silent."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if first:
                writer.write(first)
                await writer.drain()
            if wait:
                await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        await listening.wait_closed()


def test_await_and_async_with(run: Run, no_fd_leak: None) -> None:
    """Both forms connect; leaving the block closes."""

    async def main() -> None:
        async with await server() as listening:
            connection = await device(listening)
            assert connection.is_open
            assert connection.peer == f"127.0.0.1:{listening.address.port}"
            await connection.close()
            async with device(str(listening.address)) as other:
                assert other.is_open
            with pytest.raises(ConnectionClosedOK):
                await other.recv()
            await eventually(lambda: listening.connections == 0)

    run(main())


def test_wrong_token_and_unknown_tenant_look_alike(run: Run) -> None:
    """[A-5] [A-11] A refusal does not say which of the two it was."""

    async def main() -> None:
        async with await server() as listening:
            with pytest.raises(HandshakeError) as wrong:
                await device(listening, token="close sesame")
            with pytest.raises(HandshakeError) as unknown:
                await device(listening, tenant="nobody")
            assert wrong.value.code == unknown.value.code == ErrorCode.AUTH_FAILED
            assert str(wrong.value) == str(unknown.value)
            assert wrong.value.retry_after is None

    run(main())


def test_no_server(run: Run) -> None:
    """A port where nobody listens is named in the error."""

    async def main() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(
            ConnectionClosedError, match=f"cannot reach mobillm://127.0.0.1:{port}.*server runs"
        ):
            await device(f"127.0.0.1:{port}")

    run(main())


def test_silent_server(run: Run, no_fd_leak: None) -> None:
    """[H-7] [L-12] A server that says nothing runs into the handshake's timeout."""

    async def main() -> None:
        async with rude_server(None, wait=True) as address:
            start = time.monotonic()
            with pytest.raises(TimeoutError, match=r"handshake within 0\.3 s"):
                await device(address, timeouts=SHORT)
            assert time.monotonic() - start < 2.0

    run(main())


@pytest.mark.parametrize("first", [None, b"ML\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(40)])
def test_server_that_closes_in_the_handshake(run: Run, first: bytes | None) -> None:
    """[T-10] A server that closes early, or speaks something else, is told from a dead one."""

    async def main() -> None:
        async with rude_server(first, wait=False) as address:
            with pytest.raises(ConnectionClosedError) as info:
                await device(address, timeouts=SHORT)
            if first is not None and len(first) > 32:
                assert "not a MobiLLM frame" in str(info.value)
            else:
                assert "TLS" in str(info.value)

    run(main())


def test_cancelling_closes_the_socket(run: Run, no_fd_leak: None) -> None:
    """A cancelled connect leaves nothing behind, not even while it waits for the handshake."""

    async def main() -> None:
        async with rude_server(None, wait=True) as address:
            for pause in (0.0, 0.05):
                task = asyncio.get_running_loop().create_task(_connect(address))
                await asyncio.sleep(pause)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    run(main())


async def _connect(address: Address) -> None:
    await device(address, timeouts=QUICK)


def test_malformed_address() -> None:
    """An address is checked before anything is tried."""
    with pytest.raises(ConfigError, match="address"):
        device("http://x")
