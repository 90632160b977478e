"""Accepting connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self

from ..errors import ConfigError, ConnectionClosed, ErrorCode, MobiLLMError
from ..options import Limits, Timeouts
from ..protocol import Endpoint, Goaway
from .address import Address
from .admission import Admission
from .budget import Budget
from .connection import Connection

__all__ = ["Server", "serve"]

logger = logging.getLogger("mobillm.transport")

Handler = Callable[[Connection], Awaitable[None]]

# Seconds that a cancelled handler's connection has to say goodbye before it is aborted.
LAST_WORDS = 1.0

# Seconds after which a device that found no room may try again; most handshakes take far less.
BUSY_PAUSE = 1.0


class Server:
    """A listening server; close it, or use it as an async context manager.

    Attributes:
        address: where it listens, with the port the system chose.

    """

    def __init__(
        self, handler: Handler, keys: Mapping[str, bytes], timeouts: Timeouts, limits: Limits, tls: bool
    ) -> None:
        self._handler = handler
        self._keys = keys
        self._timeouts = timeouts
        self._limits = limits
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._closing: asyncio.Task[None] | None = None
        self._admission = Admission(limits)
        self._turned_away = 0  # connections that still have to be told so

    @property
    def address(self) -> Address:
        """Return where the server listens."""
        if self._server is None or not self._server.sockets:
            raise RuntimeError("the server does not listen")
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port, self._tls)

    @property
    def connections(self) -> int:
        """Return the number of connections, those in the handshake included."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _make(self) -> Connection:
        endpoint = Endpoint.server(self._keys, nonce=os.urandom(16), limits=self._limits)
        return Connection(
            endpoint,
            timeouts=self._timeouts,
            limits=self._limits,
            on_made=self._begin,
            on_hello=self._check_pause,
            budget=Budget(),
        )

    def _begin(self, connection: Connection) -> None:
        # Not before the transport is there: a failed TLS handshake never calls the protocol again.
        if self._closing is not None:
            connection.abort()
        elif self._admission.enter(connection.host):
            self._start(connection, self._run(connection))
        elif self._turned_away < self._limits.handshakes:
            self._turned_away += 1
            self._start(connection, self._turn_away(connection))
        else:
            connection.abort()  # so many are being told that there is no room that there is none for this

    def _start(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        self._connections[connection] = asyncio.get_running_loop().create_task(work)

    async def _turn_away(self, connection: Connection) -> None:
        """Refuse a connection for which the handshake has no room."""
        try:
            logger.info("x %s: too many connections in the handshake", connection.peer)
            connection.fail(ErrorCode.SERVER_BUSY, "too many connections are logging in", BUSY_PAUSE)
            await connection.close()
        finally:
            self._turned_away -= 1
            del self._connections[connection]

    def _check_pause(self, connection: Connection) -> None:
        pause = self._admission.pause(connection.host, connection.endpoint.tenant)
        if pause > 0:
            connection.fail(ErrorCode.CALM, "too many failed logins", math.ceil(pause))

    async def _log_in(self, connection: Connection) -> None:
        """Wait for the end of the handshake, whose place it then gives back."""
        host, endpoint = connection.host, connection.endpoint
        try:
            await connection.wait_open()
        except ConnectionClosed as exc:
            if exc.code == ErrorCode.AUTH_FAILED:
                self._admission.fail(host, endpoint.tenant)
            raise
        finally:
            self._admission.leave(host)
        self._admission.succeed(host, endpoint.tenant)
        logger.info("= %s: %s connected", connection.peer, endpoint.tenant)

    async def _run(self, connection: Connection) -> None:
        try:
            await self._log_in(connection)
            await self._handler(connection)
        except ConnectionClosed as exc:
            logger.info("x %s: %s", connection.peer, exc)
        except MobiLLMError as exc:
            logger.warning("! %s: %s", connection.peer, exc)
            connection.fail(ErrorCode.INTERNAL, "the server failed; its log says why")
        except Exception:
            logger.exception("! %s: the handler failed", connection.peer)
            connection.fail(ErrorCode.INTERNAL, "the server failed; its log says why")
        finally:
            try:
                await connection.close()
            finally:
                del self._connections[connection]

    async def close(self) -> None:
        """Stop in order, bounded by ``timeouts.drain``; can be called more than once.

        No new connection is accepted, each peer gets GOAWAY, handlers have until the bound to end by
        themselves and are cancelled then; a peer that does not take our goodbye is cut off a second
        later. Cancelling this wait does not stop the closing.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        grace = self._timeouts.drain or 0.0
        for connection in list(self._connections):
            if connection.is_open:
                connection.post(Goaway(code=ErrorCode.NO_ERROR, text="the server stops", grace=grace))
            else:
                connection.fail(ErrorCode.DRAINING, "the server stops", grace)
        tasks = list(self._connections.values())
        if tasks:
            await asyncio.wait(tasks, timeout=self._timeouts.drain)
        for task in tasks:
            task.cancel()
        if self._connections:
            await asyncio.wait(tasks, timeout=LAST_WORDS)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            # uvloop waits here for every transport, also for one whose end it has missed.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._server.wait_closed()


async def serve(
    handler: Handler,
    address: str | Address,
    *,
    keys: Mapping[str, bytes],
    tls: ssl.SSLContext | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
) -> Server:
    """Listen for devices.

    Args:
        handler: coroutine function that is given each authenticated connection; the connection is
            closed when it returns.
        address: where to listen; port 0 lets the system choose.
        keys: key of each tenant, from :func:`mobillm.protocol.derive_key`.
        tls: TLS context; None speaks plain TCP.
        timeouts: bounds of every wait.
        limits: bounds of everything held; they are announced to devices.

    Raises:
        ConfigError: the address is malformed, or asks for TLS without a context.
        OSError: the address cannot be listened on.

    """
    where = Address.parse(address) if isinstance(address, str) else address
    if where.tls and tls is None:
        raise ConfigError("tls", None, f"a TLS context, which {where} needs")
    server = Server(handler, keys, timeouts or Timeouts(), limits or Limits(), tls is not None)
    loop = asyncio.get_running_loop()
    server._server = await loop.create_server(
        server._make,
        where.host,
        where.port,
        ssl=tls,
        ssl_handshake_timeout=None if tls is None else server._timeouts.handshake,
        backlog=1024,
        reuse_address=True,
        family=_family(where),
    )
    return server


def _family(address: Address) -> int:
    return socket.AF_INET6 if ":" in address.host else socket.AF_UNSPEC
