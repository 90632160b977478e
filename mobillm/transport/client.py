"""Connecting to a server."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Generator
from types import TracebackType
from typing import Any

from ..errors import ConnectionClosedError, ErrorCode
from ..options import Limits, Timeouts
from ..protocol import Endpoint, derive_key
from ..version import __version__
from .address import Address
from .connection import Connection
from .tls import device_context

__all__ = ["connect"]


class connect:
    """Connect to a server; ``await connect(...)`` or ``async with connect(...)``.

    Leaving ``async with`` says goodbye and closes, bounded by ``timeouts.drain``. Cancelling the wait
    closes the socket.

    Args:
        address: ``mobillm://host:port``, or ``mobillms://host:port`` for TLS.
        token: the tenant's secret.
        tenant: whose token it is.
        tls: TLS context; None makes one that trusts the system's authorities when the address asks
            for TLS.
        caps: capabilities to offer.
        timeouts: bounds of every wait.
        limits: bounds of everything held.

    Raises:
        ConfigError: the address is malformed.
        ConnectionClosedError: there is no server, or the connection broke.
        HandshakeError: the server refused; the token is wrong, say.
        TimeoutError: the connection or the handshake took too long.

    """

    def __init__(
        self,
        address: str | Address,
        *,
        token: str,
        tenant: str = "default",
        tls: ssl.SSLContext | None = None,
        caps: tuple[str, ...] = (),
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.address = Address.parse(address) if isinstance(address, str) else address
        self._token = token
        self._tenant = tenant
        self._tls = tls
        self._caps = caps
        self._timeouts = timeouts or Timeouts()
        self._limits = limits or Limits()
        self._connection: Connection | None = None

    def __await__(self) -> Generator[Any, None, Connection]:
        return self._connect().__await__()

    async def __aenter__(self) -> Connection:
        self._connection = await self
        return self._connection

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await self._connection.close()

    def _make(self) -> Connection:
        endpoint = Endpoint.device(
            self._tenant,
            derive_key(self._token),
            nonce=os.urandom(16),
            caps=self._caps,
            limits=self._limits,
            agent=f"mobillm/{__version__}",
        )
        return Connection(endpoint, timeouts=self._timeouts, limits=self._limits)

    async def _connect(self) -> Connection:
        address = self.address
        tls = self._tls or (device_context() if address.tls else None)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeouts.connect):
                _, connection = await loop.create_connection(
                    self._make,
                    address.host,
                    address.port,
                    ssl=tls,
                    server_hostname=address.host if tls else None,
                )
        except TimeoutError:
            raise TimeoutError(f"connecting to {address} took over {self._timeouts.connect:g} s") from None
        except ssl.SSLError as exc:
            reason = f"TLS with {address} failed: {exc.reason or exc}; check that the server speaks TLS"
            raise ConnectionClosedError(None, f"{reason} and that its authority is trusted") from exc
        except OSError as exc:
            reason = f"cannot reach {address}: {exc.strerror or exc}; check that a server runs there"
            raise ConnectionClosedError(None, reason) from exc
        try:
            await connection.wait_open()
        except ConnectionClosedError as exc:
            connection.abort()
            raise self._explained(exc, tls is not None) from exc
        except BaseException:
            connection.abort()
            raise
        return connection

    def _explained(self, exc: ConnectionClosedError, tls: bool) -> Exception:
        if exc.code == ErrorCode.HANDSHAKE_TIMEOUT:
            bound = self._timeouts.handshake
            return TimeoutError(f"{self.address} did not complete the handshake within {bound:g} s")
        if exc.code is not None:
            return ConnectionClosedError(exc.code, exc.text)
        hint = "the server may ask for a certificate of ours" if tls else "it may speak TLS (mobillms://)"
        return ConnectionClosedError(None, f"{self.address}: {exc.text}; {hint}")
