"""A device's connection to a server, with its sessions."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from ..codec import Equalizer
from ..errors import (
    ConfigError,
    ConnectionClosed,
    ConnectionClosedError,
    MobiLLMError,
    RemoteError,
)
from ..options import Limits, Timeouts
from ..protocol import CAPABILITY, Detach, Error, Goaway, Message, Open, Opened
from ..spec import SessionSpec
from ..transport import Address, Connection
from ..transport import connect as connect_transport
from .session import Session

__all__ = ["Client", "connect"]

logger = logging.getLogger("mobillm.device")

# A session, and the digests of the blobs that the server lacks.
_Answer = tuple[Session, tuple[bytes, ...]]


class Client:
    """An open connection that carries sessions; made by :func:`connect`.

    One task reads the connection; it is owned here, cancelled and awaited by :meth:`close`.

    Attributes:
        connection: the connection.
        draining: the server's GOAWAY; None before it.

    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.draining: Goaway | None = None
        self._sessions: dict[int, Session] = {}
        # Streams that were given up and are not free again: whether DETACH was sent on them.
        self._abandoned: dict[int, bool] = {}
        self._opening: dict[int, tuple[SessionSpec, asyncio.Future[_Answer]]] = {}
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(
        self,
        spec: SessionSpec,
        *,
        blobs: Iterable[bytes] = (),
        opened: Callable[[bytes], None] | None = None,
    ) -> Session:
        """Start a session.

        Args:
            spec: what to train.
            blobs: content that the spec names by its SHA-256; sent only if the server lacks it. Taken one
                by one, each when the one before was sent.
            opened: called with the session's 16 bytes once the server has it, before any blob is sent: with
                them :meth:`attach` goes on if that is broken off.

        Raises:
            RemoteError: the server refused the spec.
            ConfigError: the server needs a blob that was not given, or takes no compressed tensors, for
                which the spec asks.
            ConnectionClosed: the connection is gone.
            TimeoutError: no answer within ``timeouts.request``.

        """
        compression = spec.codec.compression
        if compression != "none" and CAPABILITY not in self.connection.endpoint.caps:
            raise ConfigError("codec.compression", compression, "none: this server takes nothing compressed")
        return await self._open(spec, Open(stream=self._free_stream(), spec=spec.to_map()), blobs, opened)

    async def attach(
        self,
        session: bytes,
        spec: SessionSpec,
        *,
        blobs: Iterable[bytes] = (),
        equalizers: Mapping[int, tuple[int, Equalizer]] | None = None,
    ) -> Session:
        """Come back to a session.

        Args:
            session: its 16 bytes, :attr:`Session.id`.
            spec: the spec it was started with.
            blobs: content that the spec names; sent only if the server still lacks it.
            equalizers: :attr:`Session.equalizers` of earlier connections; None: they are not known, and
                taps are packed as they are if the server has any batch.

        Raises:
            RemoteError: there is no such session.
            ConnectionClosed: the connection is gone.
            TimeoutError: no answer within ``timeouts.request``.

        """
        found = await self._open(spec, Open(stream=self._free_stream(), session=session), blobs)
        if equalizers is not None:
            found.recall(equalizers)
        return found

    def _free_stream(self) -> int:
        limit = self.connection.endpoint.limits.streams
        for number in range(1, limit + 1):
            if not any(number in used for used in (self._opening, self._sessions, self._abandoned)):
                return number
        raise ConfigError("sessions", limit, "fewer sessions at once on one connection; detach from one")

    async def _open(
        self,
        spec: SessionSpec,
        message: Open,
        blobs: Iterable[bytes],
        opened: Callable[[bytes], None] | None = None,
    ) -> Session:
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        stream = message.stream
        bound = self.connection.timeouts.request
        self.connection.post(message)
        self._opening[stream] = (spec, answer)
        try:
            try:
                async with asyncio.timeout(bound):
                    session, missing = await answer
            except TimeoutError:
                raise TimeoutError(f"the server did not answer OPEN within {bound:g} s") from None
            if opened is not None:
                opened(session.id)
            await session.upload(missing, blobs)
        except BaseException:
            self._abandon(stream, answer)
            raise
        finally:
            del self._opening[stream]
        return session

    def _abandon(self, stream: int, answer: asyncio.Future[_Answer]) -> None:
        """Leave a session that nobody will use; its stream is free once the server has answered."""
        if stream in self._sessions:
            self._leave(stream)
        elif not answer.done() or answer.cancelled():
            self._abandoned[stream] = False
        else:
            answer.exception()  # refused; marks it as seen

    def _leave(self, stream: int) -> None:
        self._abandoned[stream] = True
        session = self._sessions.pop(stream, None)
        if session is not None:
            session.leave()
        elif self.connection.is_open:
            self.connection.post(Detach(stream=stream))

    async def _read(self) -> None:
        """Hand each message to its session until the connection ends."""
        exc: MobiLLMError = ConnectionClosedError(None, "the connection was closed on this side")
        try:
            while True:
                message = await self.connection.recv()
                if isinstance(message, Goaway):
                    self.draining = message
                    logger.warning("= the server is about to stop: %s", message.text)
                elif message.stream in self._abandoned:
                    self._forget(message)
                elif message.stream in self._opening and message.stream not in self._sessions:
                    self._opened(message)
                elif message.stream in self._sessions:
                    self._sessions[message.stream].receive(message)
                    if isinstance(message, Detach):
                        del self._sessions[message.stream]
        except ConnectionClosed as closed:
            exc = closed
        except Exception as error:
            logger.exception("! %s: a message could not be handled", self.connection.peer)
            exc = ConnectionClosedError(None, f"a message could not be handled: {error!r}")
            self.connection.abort()
        finally:
            for session in self._sessions.values():
                session.fail(exc)
            for _, answer in self._opening.values():
                if not answer.done():
                    answer.set_exception(exc)

    def _opened(self, message: Message) -> None:
        """Finish an OPEN: what follows OPENED on its stream already belongs to the session."""
        spec, answer = self._opening[message.stream]
        if isinstance(message, Opened):
            session = Session(self.connection, message.stream, spec, message)
            self._sessions[message.stream] = session
            if not answer.done():
                answer.set_result((session, message.missing))
        elif isinstance(message, Error) and not answer.done():
            answer.set_exception(RemoteError(message.code, message.text, message.retry_after))

    def _forget(self, message: Message) -> None:
        """Act on what comes on a stream that was given up."""
        left = self._abandoned[message.stream]
        if isinstance(message, Opened):
            self._leave(message.stream)
        elif isinstance(message, Detach if left else Error):
            del self._abandoned[message.stream]

    async def close(self) -> None:
        """Say goodbye and close, bounded by ``timeouts.drain``; can be called more than once."""
        try:
            await self.connection.close()
        finally:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)


class connect:
    """Connect a device to a server; ``await connect(...)`` or ``async with connect(...)``.

    Example::

        async with mobillm.connect("mobillm://127.0.0.1:7707", token=token) as client:
            session = await client.open(spec)
            await session.submit(taps, lengths, labels)

    Args:
        address: ``mobillm://host:port``, or ``mobillms://host:port`` for TLS.
        token: the tenant's secret.
        tenant: whose token it is.
        tls: TLS context; None makes one that trusts the system's authorities when the address asks
            for TLS.
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
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._connect = connect_transport(
            address,
            token=token,
            tenant=tenant,
            tls=tls,
            caps=(CAPABILITY,),
            timeouts=timeouts,
            limits=limits,
        )
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._open().__await__()

    async def _open(self) -> Client:
        return Client(await self._connect)

    async def __aenter__(self) -> Client:
        self._client = await self
        return self._client

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
