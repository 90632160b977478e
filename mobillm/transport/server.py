"""Accepting connections."""

from __future__ import annotations

import asyncio
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
from .listener import accept, listen

__all__ = ["Server", "serve"]

logger = logging.getLogger("mobillm.transport")

Handler = Callable[[Connection], Awaitable[None]]

# Seconds that a cancelled handler's connection has to say goodbye before it is aborted.
LAST_WORDS = 1.0

# Seconds after which a device that found no room may try again; most handshakes take far less.
BUSY_PAUSE = 1.0

# Seconds after which a device may try again what has failed for a reason that only the server's log says.
FAILURE_PAUSE = 30.0


class Server:
    """A listening server; close it, or use it as an async context manager.

    Attributes:
        address: where it listens, with the port the system chose.

    """

    def __init__(
        self,
        handler: Handler,
        keys: Mapping[str, bytes],
        timeouts: Timeouts,
        limits: Limits,
        tls: ssl.SSLContext | None,
        caps: tuple[str, ...],
    ) -> None:
        self._handler = handler
        self._keys = keys
        self._timeouts = timeouts
        self._limits = limits
        self._tls = tls
        self._caps = caps
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()  # one for each accepted socket
        self._connections: set[Connection] = set()
        self._closing: asyncio.Task[None] | None = None
        self._admission = Admission(limits)
        self._turned_away = 0  # connections that still have to be told so
        self.failed_logins = 0

    @property
    def address(self) -> Address:
        """Return where the server listens."""
        if not self._sockets:
            raise RuntimeError("the server does not listen")
        host, port = self._sockets[0].getsockname()[:2]
        return Address(host, port, self._tls is not None)

    @property
    def connections(self) -> int:
        """Return the number of connections, those in the handshake included, those in TLS's own not."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _take(self, sock: socket.socket, host: str) -> None:
        """Decide about an accepted socket before anything of it is read or encrypted."""
        if self._admission.enter(host):
            self._start(self._serve(sock, host))
        elif self._turned_away < self._limits.handshakes:
            self._turned_away += 1
            self._start(self._turn_away(sock, host))
        else:
            sock.close()  # so many are being told that there is no room that there is none for this

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket, host: str) -> Connection | None:
        """Put a connection on a socket, with TLS below it if the server speaks that; None if TLS failed."""
        endpoint = Endpoint.server(self._keys, nonce=os.urandom(16), caps=self._caps, limits=self._limits)
        connection = Connection(
            endpoint,
            timeouts=self._timeouts,
            limits=self._limits,
            on_hello=self._check_pause,
            budget=Budget(),
        )
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else self._timeouts.handshake,
            )
        except OSError as exc:
            logger.info("x %s: no TLS handshake: %s", host, exc)
            return None
        self._connections.add(connection)
        if self._closing is not None:
            connection.fail(ErrorCode.DRAINING, "the server stops", self._timeouts.drain)
        return connection

    async def _turn_away(self, sock: socket.socket, host: str) -> None:
        """Refuse a connection for which the handshake has no room."""
        try:
            connection = await self._connect(sock, host)
            if connection is not None:
                logger.info("x %s: too many connections in the handshake", connection.peer)
                connection.fail(ErrorCode.SERVER_BUSY, "too many connections are logging in", BUSY_PAUSE)
                await self._release(connection)
        finally:
            self._turned_away -= 1

    async def _release(self, connection: Connection) -> None:
        try:
            await connection.close()
        finally:
            self._connections.discard(connection)

    def _check_pause(self, connection: Connection) -> None:
        pause = self._admission.pause(connection.host, connection.endpoint.tenant)
        if pause > 0:
            connection.fail(ErrorCode.CALM, "too many failed logins", math.ceil(pause))

    async def _serve(self, sock: socket.socket, host: str) -> None:
        """Serve the device on an accepted socket to its end."""
        connection = None
        try:
            connection = await self._connect(sock, host)
        finally:
            if connection is None:
                self._admission.leave(host)
        if connection is not None:
            await self._run(connection, host)

    async def _log_in(self, connection: Connection, host: str) -> None:
        """Wait for the end of the handshake, whose place it then gives back."""
        try:
            await connection.wait_open()
        except ConnectionClosed as exc:
            if exc.code == ErrorCode.AUTH_FAILED:
                self.failed_logins += 1
                self._admission.fail(host, connection.endpoint.tenant)
            raise
        finally:
            self._admission.leave(host)
        tenant = connection.endpoint.tenant
        self._admission.succeed(host, tenant)
        logger.info("= %s: %s connected", connection.peer, tenant)

    async def _run(self, connection: Connection, host: str) -> None:
        try:
            await self._log_in(connection, host)
            await self._handler(connection)
        except ConnectionClosed as exc:
            who = f" as {connection.endpoint.tenant!r}" if exc.code == ErrorCode.AUTH_FAILED else ""
            logger.info("x %s%s: %s", connection.peer, who, exc)
        except MobiLLMError as exc:
            logger.warning("! %s: %s", connection.peer, exc)
            connection.fail(ErrorCode.INTERNAL, "the server failed; its log says why", FAILURE_PAUSE)
        except Exception:
            logger.exception("! %s: the handler failed", connection.peer)
            connection.fail(ErrorCode.INTERNAL, "the server failed; its log says why", FAILURE_PAUSE)
        finally:
            await self._release(connection)

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
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        grace = self._timeouts.drain or 0.0
        for connection in list(self._connections):
            if connection.is_open:
                connection.post(Goaway(code=ErrorCode.NO_ERROR, text="the server stops", grace=grace))
            else:
                connection.fail(ErrorCode.DRAINING, "the server stops", grace)
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=self._timeouts.drain)
        for task in tasks:
            task.cancel()
        if self._connections:
            await asyncio.wait(tasks, timeout=LAST_WORDS)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)


async def serve(
    handler: Handler,
    address: str | Address,
    *,
    keys: Mapping[str, bytes],
    tls: ssl.SSLContext | None = None,
    caps: tuple[str, ...] = (),
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
        caps: capabilities that devices may use.
        timeouts: bounds of every wait.
        limits: bounds of everything held; they are announced to devices.

    Raises:
        ConfigError: the address is malformed, or asks for TLS without a context.
        OSError: the address cannot be listened on.

    """
    where = Address.parse(address) if isinstance(address, str) else address
    if where.tls and tls is None:
        raise ConfigError("tls", None, f"a TLS context, which {where} needs")
    server = Server(handler, keys, timeouts or Timeouts(), limits or Limits(), tls, caps)
    server._sockets = await listen(where)
    loop = asyncio.get_running_loop()
    server._accepting = [loop.create_task(accept(sock, server._take)) for sock in server._sockets]
    return server
