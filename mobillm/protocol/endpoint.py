"""The protocol core: bytes in, messages and buffers out; no socket, task, clock or random source.

A shell drives it like this::

    buffer = endpoint.get_buffer()          # or endpoint.receive_data(data)
    endpoint.buffer_updated(sock.recv_into(buffer))
    for message in endpoint.events_received(): ...
    endpoint.send(Ping(data=...))
    for buffer in endpoint.data_to_send(): sock.sendall(buffer)

Bytes of the peer never raise: a broken rule queues an ERROR (or REJECT) frame, closes the endpoint and
is kept in :attr:`Endpoint.close_exc`. Misuse by the caller raises :exc:`LocalProtocolError` and changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import (
    ConfigError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ErrorCode,
    HandshakeError,
    LocalProtocolError,
    MobiLLMError,
    RemoteProtocolError,
)
from ..options import Limits
from .auth import Transcript
from .compression import CAPABILITY
from .control import Auth, Challenge, Error, Goaway, Hello, Ping, Reject, Welcome
from .frames import HEADER_SIZE, MAX_META, VERSION, Frame, FrameBuffer
from .message import Message
from .messages import decode_message
from .state import CONNECTION, Phase, Role, StreamPhase
from .stream import CHARGED, Stream

__all__ = ["Endpoint"]

# What a key lookup yields for a tenant that does not exist: the work, and so the time, stay the same.
_NO_KEY = b"\0" * 32

NONCE_SIZE = 16

_OPENED = (Phase.OPEN, Phase.DRAINING, Phase.CLOSING)


class Endpoint:
    """One end of a connection.

    Make one with :meth:`device` or :meth:`server`.

    Attributes:
        role: which end this is.
        phase: what the connection waits for.
        limits: our limits, narrowed to the server's once they are known.
        caps: capabilities; those both ends have, once the handshake is over.
        tenant: whose token signs the handshake; on a server, known once HELLO has come.
        close_exc: why the endpoint closed, or None while it has not.
        on_ping: called with each PING while it is received, so that a PONG that is sent then comes before
            whatever the frames behind it cause; None leaves it among the events.

    """

    def __init__(
        self, role: Role, *, nonce: bytes, keys: Mapping[str, bytes], caps: tuple[str, ...], limits: Limits
    ) -> None:
        if len(nonce) != NONCE_SIZE:
            raise ConfigError("nonce", f"{len(nonce)} bytes", f"{NONCE_SIZE} random bytes")
        self.role = role
        self.phase = Phase.HELLO
        self.limits = limits
        self.caps = caps
        self.tenant = ""
        self.close_exc: MobiLLMError | None = None
        self.on_ping: Callable[[Ping], None] | None = None
        self._nonce = nonce
        self._keys = keys
        self._transcript = Transcript()
        # Nobody is known yet, so nobody may make us hold more than a map.
        self._frames = FrameBuffer(MAX_META)
        self._peer_role = role.peer
        self._streams: dict[int, Stream] = {}
        self._events: list[Message] = []
        self._output: list[bytes | memoryview] = []
        self._peer_frame = MAX_META
        self._goaway: Goaway | None = None
        self._ignored = 0

    @classmethod
    def device(
        cls,
        tenant: str,
        key: bytes,
        *,
        nonce: bytes,
        caps: tuple[str, ...] = (),
        limits: Limits | None = None,
        agent: str = "",
    ) -> Endpoint:
        """Make the device's end; its HELLO is ready to be sent.

        Args:
            tenant: whose token it is.
            key: from :func:`~mobillm.protocol.auth.derive_key`.
            nonce: 16 bytes, random and used once.
            caps: capabilities to offer.
            limits: bounds of what this end holds.
            agent: name and version of the software; informative.

        Raises:
            ConfigError: the nonce has another length.
            ValueError: the tenant, a capability or the agent is too long.

        """
        self = cls(Role.DEVICE, nonce=nonce, keys={tenant: key}, caps=caps, limits=limits or Limits())
        self.tenant = tenant
        self._shake(
            Hello(min_version=1, max_version=VERSION, tenant=tenant, nonce=nonce, caps=caps, agent=agent)
        )
        return self

    @classmethod
    def server(
        cls,
        keys: Mapping[str, bytes],
        *,
        nonce: bytes,
        caps: tuple[str, ...] = (),
        limits: Limits | None = None,
    ) -> Endpoint:
        """Make the server's end, which waits for HELLO.

        Args:
            keys: key of each tenant; looked up once, when AUTH has come.
            nonce: 16 bytes, random and used once.
            caps: capabilities to accept.
            limits: bounds of what this end holds; they are announced.

        Raises:
            ConfigError: the nonce has another length.

        """
        return cls(Role.SERVER, nonce=nonce, keys=keys, caps=caps, limits=limits or Limits())

    def is_closed(self) -> bool:
        """Whether the connection is over; :attr:`close_exc` says why."""
        return self.phase is Phase.CLOSED

    # Receiving.

    def get_buffer(self) -> memoryview:
        """Return where the next received bytes go; never empty."""
        return self._frames.get_buffer()

    def buffer_updated(self, count: int) -> bool:
        """Process ``count`` bytes that were written into the last buffer handed out.

        Returns:
            whether there may be something new to take out: messages, bytes to send, or the end. It is not so
            while a frame still arrives.

        """
        if self.is_closed():
            self._frames.clear()  # whatever still comes is dropped
            return False
        if not self._frames.buffer_updated(count):
            return False
        skipped, received = self._frames.skipped, False
        try:
            while (frame := self._frames.next_frame()) is not None:
                received = True
                self._receive(frame)
                if self.is_closed():
                    break
        except RemoteProtocolError as exc:
            self._fail(exc)
            return True
        return received or self._frames.skipped > skipped

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Process received bytes; a loop over :meth:`get_buffer` and :meth:`buffer_updated`."""
        view = memoryview(data).cast("B")
        while view.nbytes:
            buffer = self.get_buffer()
            count = min(view.nbytes, buffer.nbytes)
            buffer[:count] = view[:count]
            view = view[count:]
            self.buffer_updated(count)

    def receive_eof(self) -> None:
        """Process the end of the stream of bytes."""
        if self.is_closed():
            return
        if self._goaway is not None:
            self._close(_departure(self._goaway))
        elif self.phase is Phase.CLOSING and self.role is Role.SERVER:
            self._close(ConnectionClosedOK(ErrorCode.NO_ERROR, "the peer said goodbye"))
        elif not self._frames.is_empty:
            self._close(ConnectionClosedError(None, "the peer closed it in the middle of a frame"))
        elif self.phase in _OPENED:
            self._close(ConnectionClosedError(None, "the peer closed it without a goodbye"))
        else:
            # A TLS 1.3 server that refuses our certificate looks like this too.
            self._close(ConnectionClosedError(None, "the peer closed it during the handshake"))

    @property
    def dropped(self) -> int:
        """Frames that came and were dropped uncharged: unknown optional ones, and those of failed streams."""
        return self._frames.skipped + self._ignored

    def events_received(self) -> list[Message]:
        """Return the messages since the last call, in order.

        The handshake's own frames are not among them, except the last one: AUTH on a server and
        WELCOME on a device say that the connection is open.
        """
        events, self._events = self._events, []
        return events

    # Sending.

    def send(self, message: Message) -> None:
        """Queue a message.

        Raises:
            LocalProtocolError: it is not legal now, breaks a limit or has no credit.

        """
        if self.phase not in _OPENED:
            raise LocalProtocolError(
                ErrorCode.PROTOCOL, f"{message.type.name} cannot be sent: {self._why_closed()}"
            )
        try:
            size = message.frame_size()
        except ValueError as exc:
            raise LocalProtocolError(ErrorCode.LIMIT, str(exc)) from exc
        if size - HEADER_SIZE > self._peer_frame:
            raise LocalProtocolError(
                ErrorCode.FRAME_SIZE,
                f"{message.type.name} has a body of {size - HEADER_SIZE} bytes; "
                f"the peer's limit is {self._peer_frame}",
            )
        if message.stream > self.limits.streams:
            raise LocalProtocolError(
                ErrorCode.LIMIT, f"stream {message.stream}; the limit is {self.limits.streams}"
            )
        if message.stream:
            if self.phase is Phase.CLOSING and self.role is Role.DEVICE:
                raise LocalProtocolError(ErrorCode.PROTOCOL, f"{message.type.name} after BYE")
            self._stream(message.stream).sent(message, size)
        else:
            self._advance(self.role, message, LocalProtocolError)
        self._output += message.encode()
        self._note_end(message, "we")

    def credit(self, stream: int) -> int:
        """Return the bytes that may be sent on a stream now."""
        return self._stream(stream).credit.available

    def credit_used(self, stream: int) -> int:
        """Return the charged bytes of a stream since it was attached."""
        return self._stream(stream).credit.used

    def can_send(self, message: Message) -> bool:
        """Tell whether a charged message has credit now."""
        return self._stream(message.stream).has_credit(message, message.frame_size())

    def is_uploading(self, stream: int) -> bool:
        """Tell whether batches and blobs may be sent on a stream, credit aside."""
        return self._stream(stream).phase is StreamPhase.ATTACHED

    def batch_summary(self, stream: int) -> tuple[int, int, int]:
        """Return tensors, bytes and checksum of the stream's open batch, as COMMIT states them."""
        return self._stream(stream).batch.summary()

    def fail(self, code: int, text: str, retry_after: float | None = None) -> None:
        """Close the connection with an error that the peer is told.

        Args:
            code: error code.
            text: one sentence, cut to 512 characters.
            retry_after: seconds after which the peer may try again; None when that cannot help.

        """
        if self.phase is Phase.CLOSED:
            return
        refusal = Error if self.role is Role.DEVICE or self.phase in _OPENED else Reject
        self._output += refusal(code=code, text=text[:512], retry_after=retry_after).encode()
        self._close(ConnectionClosedError(code, text))

    def data_to_send(self) -> list[bytes | memoryview]:
        """Return the buffers to be written, in order; payloads are the caller's own memory.

        A buffer must not change before it has been written.
        """
        output, self._output = self._output, []
        return output

    # The inside.

    def _why_closed(self) -> str:
        if self.phase is Phase.CLOSED:
            return f"the connection is closed ({self.close_exc})"
        return f"the handshake is not over ({self.phase.value})"

    def _stream(self, number: int) -> Stream:
        stream = self._streams.get(number)
        if stream is None:
            stream = self._streams[number] = Stream(number, self.role, self.limits, CAPABILITY in self.caps)
        return stream

    def _shake(self, message: Hello | Challenge | Auth | Welcome) -> None:
        """Queue our next frame of the handshake."""
        self._advance(self.role, message, LocalProtocolError)
        buffers = message.encode()
        if isinstance(message, Hello | Challenge):
            self._transcript.add(message.type, bytes(buffers[0][HEADER_SIZE:]))
        self._output += buffers

    def _advance(
        self, role: Role, message: Message, error: type[LocalProtocolError] | type[RemoteProtocolError]
    ) -> None:
        move = CONNECTION[self.phase].get((role, message.type))
        if move is None:
            raise error(ErrorCode.PROTOCOL, f"{message.type.name} while {self.phase.value}")
        self.phase = move

    def _receive(self, frame: Frame) -> None:
        message = decode_message(frame)
        if message.stream:
            self._receive_on_stream(message, frame.size)
            return
        self._advance(self._peer_role, message, RemoteProtocolError)
        if isinstance(message, Hello | Challenge):
            self._transcript.add(message.type, frame.meta)
        if isinstance(message, Hello):
            self._answer_hello(message)
        elif isinstance(message, Challenge):
            self._answer_challenge(message)
        elif isinstance(message, Auth):
            self._answer_auth(message)
        elif isinstance(message, Welcome):
            self._enter(message)
        else:
            self._note_end(message, "the peer")
            if isinstance(message, Ping) and self.on_ping is not None:
                self.on_ping(message)
            else:
                self._events.append(message)

    def _receive_on_stream(self, message: Message, size: int) -> None:
        if self.phase not in _OPENED or (self.phase is Phase.CLOSING and self.role is Role.SERVER):
            raise RemoteProtocolError(ErrorCode.PROTOCOL, f"{message.type.name} while {self.phase.value}")
        if message.stream > self.limits.streams:
            raise RemoteProtocolError(
                ErrorCode.LIMIT, f"stream {message.stream}; the limit is {self.limits.streams}"
            )
        if self._stream(message.stream).received(message, size):
            self._events.append(message)
        elif not isinstance(message, CHARGED):
            self._ignored += 1

    def _answer_hello(self, message: Hello) -> None:
        self.tenant = message.tenant
        if not message.min_version <= VERSION <= message.max_version:
            self.fail(
                ErrorCode.UNSUPPORTED_VERSION,
                f"versions {message.min_version} to {message.max_version}; this server speaks {VERSION}",
            )
            return
        self.caps = tuple(cap for cap in self.caps if cap in message.caps)
        self._shake(Challenge(version=VERSION, nonce=self._nonce, caps=self.caps))

    def _answer_challenge(self, message: Challenge) -> None:
        if message.version != VERSION or not set(message.caps) <= set(self.caps):
            raise RemoteProtocolError(
                ErrorCode.UNSUPPORTED_VERSION, "the server chose what this device had not offered"
            )
        self.caps = message.caps
        self._shake(Auth(mac=self._transcript.device_proof(self._keys[self.tenant])))

    def _answer_auth(self, message: Auth) -> None:
        key = self._keys.get(self.tenant, _NO_KEY)
        good = Transcript.matches(self._transcript.device_proof(key), message.mac)
        if not good or key is _NO_KEY:
            # One text for an unknown tenant and a wrong token: which it was is nobody's business.
            self.fail(ErrorCode.AUTH_FAILED, "unknown tenant or wrong token")
            return
        limits = self.limits
        self._shake(
            Welcome(
                mac=self._transcript.server_proof(key),
                frame=limits.frame,
                batch=limits.batch,
                blob=limits.blob,
                streams=limits.streams,
            )
        )
        self._frames.max_body = limits.frame
        self._peer_frame = limits.frame
        self._events.append(message)

    def _enter(self, message: Welcome) -> None:
        proof = self._transcript.server_proof(self._keys[self.tenant])
        if not Transcript.matches(proof, message.mac):
            raise RemoteProtocolError(ErrorCode.AUTH_FAILED, "the server does not hold the token")
        self._peer_frame = message.frame
        self._frames.max_body = message.frame
        self.limits = self.limits.narrowed(
            frame=message.frame, batch=message.batch, blob=message.blob, streams=message.streams
        )
        self._events.append(message)

    def _note_end(self, message: Message, who: str) -> None:
        """Remember why the connection ends or, after GOAWAY, will end."""
        if isinstance(message, Goaway):
            self._goaway = message
        elif self.phase is not Phase.CLOSED:
            return
        elif isinstance(message, Reject):
            self._close(HandshakeError(message.code, message.text, message.retry_after))
        elif isinstance(message, Error):
            self._close(ConnectionClosedError(message.code, message.text, message.retry_after))
        elif self._goaway is not None:
            self._close(_departure(self._goaway))
        else:
            self._close(ConnectionClosedOK(ErrorCode.NO_ERROR, f"{who} said goodbye"))

    def _fail(self, exc: RemoteProtocolError) -> None:
        self.close_exc = exc
        self.fail(exc.code, exc.text)

    def _close(self, exc: MobiLLMError) -> None:
        self.phase = Phase.CLOSED
        if self.close_exc is None:
            self.close_exc = exc


def _departure(goaway: Goaway) -> ConnectionClosed:
    if goaway.code == ErrorCode.NO_ERROR:
        return ConnectionClosedOK(goaway.code, goaway.text or "the server stopped as it had announced")
    return ConnectionClosedError(goaway.code, goaway.text)
