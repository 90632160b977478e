"""Messages of a connection: handshake, keepalive, errors and the end.

``docs/protocol.md``, sections "Handshake" and "Connection".
"""

from __future__ import annotations

import dataclasses

from .frames import FrameType
from .message import COUNT, NAME, SECONDS, SENTENCE, SEQ, Message, wire
from .schema import integer, items, octets, optional, text

__all__ = ["Auth", "Bye", "Challenge", "Error", "Goaway", "Hello", "Ping", "Pong", "Reject", "Welcome"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """The device names itself and what it speaks.

    Attributes:
        min_version, max_version: range of protocol versions.
        tenant: whose token signs the handshake.
        nonce: 16 random bytes, fresh for each connection.
        caps: capabilities, any order.
        agent: name and version of the software; informative.

    """

    type = FrameType.HELLO
    min_version: int = wire(integer(1, 255))
    max_version: int = wire(integer(1, 255))
    tenant: str = wire(NAME)
    nonce: bytes = wire(octets(16))
    caps: tuple[str, ...] = wire(items(text(32)), ())
    agent: str = wire(NAME, "")

    def _check(self) -> None:
        if self.min_version > self.max_version:
            raise ValueError("HELLO.min_version must be at most HELLO.max_version")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Challenge(Message):
    """The server picks a version and the common capabilities, and adds its nonce."""

    type = FrameType.CHALLENGE
    version: int = wire(integer(1, 255))
    nonce: bytes = wire(octets(16))
    caps: tuple[str, ...] = wire(items(text(32)), ())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Auth(Message):
    """The device proves that it holds the token: HMAC-SHA256 over the transcript."""

    type = FrameType.AUTH
    mac: bytes = wire(octets(32))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Message):
    """The server proves the same and states its limits (see :class:`mobillm.options.Limits`).

    Attributes:
        mac: HMAC-SHA256 over the transcript, with the server's label.
        frame, batch, blob: largest frame body, batch and blob, in bytes.
        streams: sessions at once on this connection.

    """

    type = FrameType.WELCOME
    mac: bytes = wire(octets(32))
    frame: int = wire(integer(16384, 4 * 2**20))
    batch: int = wire(integer(16384, 2**48))
    blob: int = wire(integer(16384, 2**48))
    streams: int = wire(integer(1, 0xFFFF))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reject(Message):
    """The server refuses the connection.

    Attributes:
        code: error code.
        text: one sentence.
        retry_after: seconds; None when trying again cannot help.

    """

    type = FrameType.REJECT
    code: int = wire(COUNT)
    text: str = wire(SENTENCE, "")
    retry_after: float | None = wire(optional(SECONDS), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ping(Message):
    """Ask for a PONG with the same eight bytes."""

    type = FrameType.PING
    data: bytes = wire(octets(8))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pong(Message):
    """Answer a PING.

    Attributes:
        data: the eight bytes of the PING.
        time: the sender's monotonic clock in microseconds; None when it does not tell.

    """

    type = FrameType.PONG
    data: bytes = wire(octets(8))
    time: int | None = wire(optional(SEQ), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Error(Message):
    """Something failed. On stream 0 the connection closes; else the stream ends, or with a batch
    number only that batch.

    Attributes:
        code: error code.
        text: one sentence.
        retry_after: seconds; None when trying again cannot help.

    """

    type = FrameType.ERROR
    has_seq = True
    code: int = wire(COUNT)
    text: str = wire(SENTENCE, "")
    retry_after: float | None = wire(optional(SECONDS), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Goaway(Message):
    """The server is about to stop.

    Attributes:
        code: error code; NO_ERROR for planned maintenance.
        text: one sentence.
        grace: seconds until the connection is closed.

    """

    type = FrameType.GOAWAY
    code: int = wire(COUNT)
    text: str = wire(SENTENCE, "")
    grace: float = wire(SECONDS, 0.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bye(Message):
    """Nothing more will come from this side; the peer answers with BYE and closes."""

    type = FrameType.BYE
