"""An asyncio shell around :class:`mobillm.protocol.Endpoint`.

Every callback does the same: feed the core, write what it has to say, hand its messages over. The loop
answers PING and keeps the connection alive, so neither ever waits for a training step.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Self, cast

from ..errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ErrorCode,
    LocalProtocolError,
    MobiLLMError,
    ProtocolError,
)
from ..options import Limits, Timeouts
from ..protocol import Auth, Bye, Endpoint, Goaway, Message, Phase, Ping, Pong, Role, Welcome
from .budget import CHARGED, Budget
from .keepalive import Keepalive
from .sockets import acknowledged, peer_of, tune, unsent

__all__ = ["ALPN", "Connection"]

logger = logging.getLogger("mobillm.transport")

ALPN = "mobillm/1"
CALM_PAUSE = 10.0  # seconds after which a device that sent too much may come back

# Parts that may wait here before no more is taken; so few that they leave while a cache still holds them.
HIGH_WATER = 1 / 2

# Seconds for which a side that failed still reads and drops: closing with unread bytes would reset the
# connection, and the peer would lose the frame that says why.
LINGER = 1.0

HANDSHAKE = (Phase.HELLO, Phase.CHALLENGE, Phase.AUTH, Phase.WELCOME)


class Connection(asyncio.BufferedProtocol):
    """One connection, on either side.

    Make one with :func:`mobillm.transport.connect` or get it from :func:`mobillm.transport.serve`.

    Args:
        endpoint: the protocol core.
        timeouts: bounds of every wait.
        limits: bounds of everything held.
        on_hello: called once a device has named its tenant, before it can prove anything; None calls nobody.
        budget: what a device may send that is not charged; None bounds nothing.

    Attributes:
        endpoint: the protocol core.
        bytes_sent, bytes_received: bytes handed to and taken from the transport.
        credit_wait, link_wait: seconds that charged messages waited for credit and for the link.
        keepalive: round trip and the offset of the peer's clock.

    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeouts: Timeouts,
        limits: Limits,
        on_hello: Callable[[Connection], None] | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.timeouts = timeouts
        self.limits = limits
        self.bytes_sent = 0
        self.bytes_received = 0
        self.credit_wait = 0.0
        self.link_wait = 0.0
        self._on_hello = on_hello
        self._budget = budget
        self._dropped = 0  # frames that the budget has paid for
        self._loop = asyncio.get_running_loop()
        self.keepalive = Keepalive(timeouts, self._loop.time())
        self._transport: asyncio.Transport | None = None
        self._messages: collections.deque[Message] = collections.deque()
        self._held = 0  # payload bytes in _messages
        self._reading = True
        self._writable = True
        self._lost = False
        self._refusing = False  # we end it with an error that the peer should get to read
        self._lingering = False
        self._leaving = False  # we said goodbye: what still comes is dropped
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._opened = self._loop.create_future()
        endpoint.on_ping = self._answer

    def __repr__(self) -> str:
        return f"<Connection {self.endpoint.role.value} {self.endpoint.phase.value} at {id(self):#x}>"

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake and its clock."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=int(HIGH_WATER * self.limits.chunk))
        tune(transport, self.timeouts.unacknowledged)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != ALPN:
            # Python accepts a peer that names no common protocol, so it is checked here.
            self.endpoint.fail(ErrorCode.PROTOCOL, f"the peer does not speak {ALPN} over TLS")
        self._arm(self.timeouts.handshake)
        self._after()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Let the transport write straight to where the bytes belong."""
        return self.endpoint.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take received bytes in."""
        self.bytes_received += nbytes
        self.keepalive.last_read = self._loop.time()
        if self.endpoint.buffer_updated(nbytes):
            self._after()

    def eof_received(self) -> bool:
        """Close when the peer has."""
        self.endpoint.receive_eof()
        self._after()
        return False

    def pause_writing(self) -> None:
        """Hold charged messages back: the link is slower than we are."""
        self._writable = False

    def resume_writing(self) -> None:
        """Let charged messages go on."""
        self._writable = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everyone who waits."""
        self._lost = True
        if not self.endpoint.is_closed():
            self.endpoint.receive_eof()
            if exc is not None and self.endpoint.close_exc is not None:
                self.endpoint.close_exc.__cause__ = exc
        if self._timer is not None:
            self._timer.cancel()
        self._refuse_open()
        self._wake()

    # The inside.

    def _after(self) -> None:
        if self._on_hello is not None and self.endpoint.tenant:
            on_hello, self._on_hello = self._on_hello, None
            on_hello(self)
        self._flush()
        for message in self.endpoint.events_received():
            if self._budget is not None:
                self._require_calm(self._budget.spend(message))
            self._dispatch(message)
        dropped = self.endpoint.dropped
        if self._budget is not None and dropped > self._dropped:
            self._require_calm(self._budget.spend_dropped(dropped - self._dropped))
            self._dropped = dropped
        if self.endpoint.is_closed():
            self._shut()

    def _require_calm(self, excess: str | None) -> None:
        """End the connection of a device that sends too much; what it sends then is dropped."""
        if excess is None or not self.is_open:
            return
        self._leaving = self._refusing = True
        text = f"too many {excess}; send fewer"
        self.endpoint.send(Goaway(code=ErrorCode.CALM, text=text))
        self.endpoint.fail(ErrorCode.CALM, text, CALM_PAUSE)
        self._flush()

    def _shut(self) -> None:
        """Close the transport once the endpoint is closed."""
        self._refuse_open()
        self._wake()
        if self._transport is None or self._transport.is_closing() or self._lingering:
            return
        linger = self._refusing or isinstance(self.endpoint.close_exc, ProtocolError)
        if linger and self._transport.can_write_eof():
            self._lingering = True
            with contextlib.suppress(OSError):  # the peer may be gone already
                self._transport.write_eof()
            self._resume()
            drain = self.timeouts.drain
            self._arm(LINGER if drain is None else min(LINGER, drain))
        else:
            self._transport.close()
            self._arm(self.timeouts.drain)

    def _refuse_open(self) -> None:
        if not self._opened.done():
            self._opened.set_exception(self._closed())
            self._opened.exception()  # nobody may be waiting for it

    def _answer(self, message: Ping) -> None:
        """Answer a PING while it is received: a frame behind it in the same segment may end everything."""
        if self._budget is not None:
            self._require_calm(self._budget.spend(message))
        if not self._is_gone():
            self.post(Pong(data=message.data, time=time.monotonic_ns() // 1000))

    def _dispatch(self, message: Message) -> None:
        if isinstance(message, Pong):
            self.keepalive.measure(message)
        elif isinstance(message, (Welcome, Auth)):
            self._arm(self.timeouts.keepalive)
            if not self._opened.done():
                self._opened.set_result(None)
        elif not self._leaving:
            self._messages.append(message)
            self._held += len(getattr(message, "payload", None) or b"")
            if self._reading and self._held > self.limits.frame:
                self._reading = False
                self._pause(True)
        self._wake()

    def _pause(self, pause: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        change = self._transport.pause_reading if pause else self._transport.resume_reading
        change()

    def _flush(self) -> None:
        output = self.endpoint.data_to_send()
        if not output or self._transport is None or self._transport.is_closing():
            return
        # Never writelines: several Python versions do not pause after it. A buffer is not changed
        # after it was handed over, as uvloop keeps a reference to it.
        for buffer in output:
            self.bytes_sent += len(buffer)
            self._transport.write(buffer)

    def _arm(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and not self._lost:
            self._timer = self._loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        """Act on the one timer: handshake, keepalive or the end of a close."""
        phase = self.endpoint.phase
        if phase is Phase.CLOSED:
            self.abort()
            return
        if phase in HANDSHAKE:
            text = f"no complete handshake within {self.timeouts.handshake:g} s"
            self._give_up(ErrorCode.HANDSHAKE_TIMEOUT, text)
            return
        now = self._loop.time()
        if not self._reading:
            self.keepalive.last_read = now  # it is us who do not read; the peer is not to blame
        if self.keepalive.gives_up(now, self._left()):
            silent = self.keepalive.idle(now)
            self._give_up(ErrorCode.IDLE_TIMEOUT, f"nothing was received for {silent:.0f} s")
            return
        if self.keepalive.is_due(now):
            self.ping()
        self._arm(self.keepalive.wait(now))

    def _left(self) -> int:
        """Return how much of what was sent has left: what the peer has acknowledged, where that is known."""
        known = None if self._transport is None or self._is_gone() else acknowledged(self._transport)
        return self.bytes_sent - self.unsent if known is None else known

    def _give_up(self, code: ErrorCode, text: str) -> None:
        self.endpoint.fail(code, text)
        self._after()

    def _wake(self) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _changed(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:  # cancelled
                self._waiters.remove(waiter)

    def _closed(self) -> MobiLLMError:
        """Return what to raise about a connection that is over."""
        exc = self.endpoint.close_exc
        if isinstance(exc, ProtocolError):
            closed = ConnectionClosedError(exc.code, exc.text)
            closed.__cause__ = exc
            return closed
        if exc is None:
            return ConnectionClosedError(None, "the transport was closed")
        copy = type(exc)(*exc.args)  # a fresh one, so that tracebacks do not pile up
        copy.__cause__ = exc.__cause__
        return copy

    # Users call these.

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return not self._is_gone() and self.endpoint.phase in (Phase.OPEN, Phase.DRAINING)

    def _is_gone(self) -> bool:
        # An aborted transport tells connection_lost later; what is sent until then would vanish.
        closing = self._transport is not None and self._transport.is_closing()
        return self._lost or closing or self.endpoint.is_closed()

    @property
    def unsent(self) -> int:
        """Bytes that were sent and have not left this machine."""
        return 0 if self._transport is None or self._is_gone() else unsent(self._transport)

    @property
    def host(self) -> str:
        """Address of the peer's machine; empty when it has none."""
        return peer_of(self._transport)[0]

    @property
    def peer(self) -> str:
        """Address of the peer, for people."""
        host, port = peer_of(self._transport)
        return f"{host}:{port}" if host else "unknown"

    async def wait_open(self) -> None:
        """Wait for the end of the handshake, which the handshake's timeout bounds.

        Raises:
            HandshakeError: the server refused.
            ConnectionClosedError: the connection broke.

        """
        await asyncio.shield(self._opened)

    def post(self, message: Message) -> None:
        """Send a message without waiting; for small control messages.

        Raises:
            LocalProtocolError: it is not legal now.
            ConnectionClosed: the connection is gone, also because the peer reads too slowly.

        """
        if self._transport is None or self._is_gone():
            raise self._closed()
        self.endpoint.send(message)
        self._flush()
        waiting = self._transport.get_write_buffer_size()
        if waiting > self.limits.outbound and not self.endpoint.is_closed():
            self._give_up(ErrorCode.SLOW_CONSUMER, f"{waiting} bytes wait to be read by the peer")
        if self.endpoint.is_closed():
            self._after()

    async def send(self, message: Message) -> None:
        """Send a message once there is credit for it and the link has room.

        Cancelling is safe: a message is either sent whole or not at all.

        Raises:
            LocalProtocolError: it is not legal, whatever the credit.
            ConnectionClosed: the connection is gone.

        """
        charged = isinstance(message, CHARGED) and self.endpoint.role is Role.DEVICE
        while True:
            if self._is_gone():
                raise self._closed()
            if charged and not self.endpoint.can_send(message):
                self._require_hope(message)
                start = time.monotonic()
                await self._changed()
                self.credit_wait += time.monotonic() - start
            elif not self._writable:
                start = time.monotonic()
                await self._changed()
                self.link_wait += time.monotonic() - start
            else:
                break
        self.post(message)

    def _require_hope(self, message: Message) -> None:
        """Refuse to wait for credit on a stream that will not get any."""
        if not self.endpoint.is_uploading(message.stream):
            raise LocalProtocolError(
                ErrorCode.PROTOCOL, f"{message.type.name} on a stream that takes no more batches"
            )

    async def recv(self) -> Message:
        """Return the next message, in order of arrival; PING and PONG are not among them.

        Cancelling is safe: no message is lost.

        Raises:
            ConnectionClosedOK: the connection ended as agreed.
            ConnectionClosedError: it did not.

        """
        while not self._messages:
            if self._lost or self.endpoint.is_closed():
                raise self._closed()
            await self._changed()
        message = self._messages.popleft()
        self._held -= len(getattr(message, "payload", None) or b"")
        if self._held <= self.limits.frame // 4:
            self._resume()
        return message

    def _resume(self) -> None:
        if not self._reading:
            self._reading = True
            self.keepalive.last_read = self._loop.time()
            self._pause(False)

    def __aiter__(self) -> Self:
        """Iterate over the messages until the connection ends as agreed."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.recv()
        except ConnectionClosed as exc:
            if exc.code != ErrorCode.NO_ERROR:
                raise
            raise StopAsyncIteration from None

    def ping(self) -> None:
        """Send a PING if none is under way."""
        if self.is_open and (message := self.keepalive.ping(self.bytes_sent, self._left())) is not None:
            self.post(message)

    def fail(self, code: ErrorCode, text: str, retry_after: float | None = None) -> None:
        """Close the connection with an error that the peer is told."""
        self._refusing = not self.endpoint.is_closed()
        self.endpoint.fail(code, text, retry_after)
        self._after()

    async def close(self) -> None:
        """Say goodbye, wait for the peer's at most ``timeouts.drain`` seconds, and close.

        Can be called more than once. Cancelling it aborts the connection. Messages that came before it
        can still be received; what comes after is dropped.
        """
        may_answer = self.endpoint.role is Role.SERVER and self.endpoint.phase is Phase.CLOSING
        try:
            async with asyncio.timeout(self.timeouts.drain):
                if self.is_open or (may_answer and not self._lost):
                    self.post(Bye())
                    self._leaving = True
                    self._resume()
                elif self.endpoint.phase in HANDSHAKE:
                    self.abort()  # there is nobody yet to say goodbye to
                while not self._lost:
                    await self._changed()
        except TimeoutError:
            logger.debug("! %r did not close in time", self)
        finally:
            if not self._lost:
                self.abort()

    def abort(self) -> None:
        """Close at once, without a goodbye; nothing is waited for."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the transport is gone."""
        while not self._lost:
            await self._changed()
