"""A small server that a case plays: right in all things, but for those that the case does itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack

from ..options import Limits
from ..protocol import (
    Abort,
    Ack,
    Auth,
    Blob,
    Bye,
    Commit,
    Credit,
    Data,
    Detach,
    Endpoint,
    Error,
    Eval,
    Evaluated,
    Finish,
    Finished,
    FrameType,
    Hello,
    Message,
    Open,
    Opened,
    Ping,
    Pong,
    Pull,
    Stored,
    Weights,
)
from .case import Deviation
from .peer import Peer
from .visit import Visit
from .wire import device_proof, frame, raw_frame, server_proof

__all__ = ["SESSION", "WEIGHTS", "Host"]

SESSION = b"a session's name"
NONCE = b"a server's nonce"
LIMITS = {"frame": 1 << 20, "batch": 1 << 26, "blob": 1 << 26, "streams": 8}
PLENTY = 1 << 30


def _safetensors() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(256))


WEIGHTS = _safetensors()

React = Callable[[Any], Awaitable[None]]


class Host:
    """The server's side of a client's visit.

    What the client sends once the connection is open goes through a protocol core of a server, which
    is told what this side sends: so states, credit, batches and files are checked for every case.

    Attributes:
        visit: the client's visit.
        peer: the connection.
        hello: the map of the client's HELLO.
        stream: the client's stream, once it has sent OPEN; 0 before.
        batches: numbers of the batches that were committed, in order.
        last: the last message of each type that :meth:`until` has returned.
        on: what to do instead of the usual answer to a type of message.

    """

    def __init__(self, visit: Visit, peer: Peer) -> None:
        self.visit = visit
        self.peer = peer
        self.hello: Hello | None = None
        self.stream = 0
        self.batches: list[int] = []
        self.last: dict[type[Message], Message] = {}
        self.on: dict[type[Message], React] = {}
        self._hello = b""
        self._challenge = b""
        self._caps: tuple[str, ...] = ()
        self._judge: Endpoint | None = None
        self._over = False
        self._failed = False
        self._digests: dict[bytes, int] = {}
        self._ahead: list[Message] = []  # read while PONG was waited for

    @classmethod
    async def meet(cls, visit: Visit) -> Host:
        """Start the client and read its HELLO."""
        host = cls(visit, await visit.begin())
        host.hello = await host.peer.expect(Hello)
        host._hello = host.peer.body
        return host

    # The handshake.

    async def challenge(self, **changes: Any) -> None:
        """Send CHALLENGE; ``changes`` are fields, and ``...`` leaves one out."""
        self._challenge = _map({"version": 1, "nonce": NONCE, "caps": []}, changes)
        await self.peer.send(raw_frame(FrameType.CHALLENGE, self._challenge))

    async def authenticated(self) -> None:
        """Read AUTH and check the client's proof."""
        auth = await self.peer.expect(Auth)
        if auth.mac != self.proof(device=True):
            raise Deviation("expected AUTH with the proof of the token; it has another one")

    def proof(self, *, device: bool = False, key: bytes | None = None) -> bytes:
        """Return a proof for this handshake."""
        make = device_proof if device else server_proof
        return make(self.visit.key if key is None else key, self._hello, self._challenge)

    async def welcome(self, **changes: Any) -> None:
        """Send WELCOME; from here on everything that comes is checked."""
        await self.peer.send(raw_frame(FrameType.WELCOME, _map({"mac": self.proof(), **LIMITS}, changes)))
        limits = {name: changes.get(name, value) for name, value in LIMITS.items()}
        self._judge = _open_endpoint(Limits(**limits, chunk=min(1 << 18, limits["frame"] - 8192)), self._caps)
        self.peer.judge = self._check

    def _check(self, data: bytes) -> None:
        assert self._judge is not None
        if self._judge.is_closed():
            return
        self._judge.receive_data(data)
        self._judge.events_received()
        exc = self._judge.close_exc
        if self._judge.is_closed() and data[3] not in (FrameType.ERROR, FrameType.BYE):
            raise Deviation(f"the client broke the protocol: {exc}")

    # The session.

    async def send(self, *messages: Message) -> None:
        """Send messages that are legal now."""
        assert self._judge is not None
        for message in messages:
            self._judge.send(message)
            self._failed |= isinstance(message, Error) and not message.seq
            await self.peer.send(b"".join(bytes(part) for part in self._judge.data_to_send()))

    async def opening(self) -> Open:
        """Read OPEN."""
        message = await self.peer.expect_any(Open)
        self.stream = message.stream
        return message

    async def attach(self, extra: dict[str, Any] | None = None, **changes: Any) -> None:
        """Answer OPEN by OPENED, without credit.

        Args:
            extra: keys that version 1 does not know.
            changes: fields.

        """
        assert self._judge is not None
        values: dict[str, Any] = {"session": SESSION, "epoch": 1, **changes}
        self._judge.send(Opened(stream=self.stream, **values))
        self._judge.data_to_send()
        values = values | (extra or {})
        await self.peer.send(frame(FrameType.OPENED, values, stream=self.stream))

    async def grant(self, offset: int = PLENTY, last: int = 1000) -> None:
        """Grant credit."""
        await self.send(Credit(stream=self.stream, offset=offset, last=last))

    async def shake(self, caps: tuple[str, ...] = (), /, **limits: Any) -> None:
        """Make the whole handshake, with these capabilities."""
        self._caps = caps
        await self.challenge(caps=list(caps))
        await self.authenticated()
        await self.welcome(**limits)

    async def begin(self, **limits: Any) -> None:
        """Make the handshake, read OPEN, answer it, and grant plenty of credit."""
        await self.shake(**limits)
        await self.opening()
        await self.attach()
        await self.grant()

    async def pong(self) -> Pong:
        """Return the next PONG; what a client that sends ahead has sent before it is kept for later."""
        while True:
            message = await self.peer.read()
            if message is None:
                raise Deviation("expected PONG; the connection was closed")
            if isinstance(message, Pong):
                return message
            self._ahead.append(message)

    async def _next(self) -> Message | None:
        return self._ahead.pop(0) if self._ahead else await self.peer.read()

    async def until(self, kind: type[Message]) -> Message:
        """Answer everything as usual up to a message of a kind, which is returned unanswered."""
        while True:
            message = await self._next()
            if message is None:
                raise Deviation(f"expected {kind.__name__.upper()}; the connection was closed")
            if isinstance(message, kind):
                self.last[kind] = message
                return message
            await self.answer(message)

    async def serve(self) -> None:
        """Answer everything as usual until the connection ends."""
        while not self._over:
            message = await self._next()
            if message is None:
                return
            await self.answer(message)

    async def answer(self, message: Message) -> None:
        """Answer one message as usual, or as :attr:`on` says."""
        react = self.on.get(type(message)) or self._usual.get(type(message))
        if self._failed and not isinstance(message, Open | Detach | Bye | Ping | Error):
            return  # sent before the client knew
        if react is None:
            if not isinstance(message, Data | Abort | Pong):
                raise Deviation(f"expected nothing of the kind; the client sent {message.type.name}")
        else:
            await react(message)

    @property
    def _usual(self) -> dict[type[Message], React]:
        return {
            Open: self._open,
            Commit: self.commit,
            Blob: self._blob,
            Finish: self.finish,
            Eval: self.evaluate,
            Pull: self.pull,
            Detach: self._detach,
            Bye: self._bye,
            Ping: self._ping,
            Error: self._error,
        }

    async def _open(self, message: Open) -> None:
        self.stream = message.stream
        await self.attach()
        await self.grant()

    async def commit(self, message: Commit) -> None:
        """Acknowledge a batch."""
        self.batches.append(message.seq)
        seq = message.seq
        await self.send(Ack(stream=self.stream, received=seq, durable=seq, applied=seq))

    async def _blob(self, message: Blob) -> None:
        self._digests[message.digest] = self._digests.get(message.digest, 0) + len(message.payload)
        if self._digests[message.digest] == message.total:
            await self.send(Stored(stream=self.stream, digest=message.digest))

    async def finish(self, message: Finish) -> None:
        """Say that training is over."""
        await self.send(Finished(stream=self.stream, steps=len(self.batches), loss=0.5))

    async def evaluate(self, message: Eval) -> None:
        """Answer EVAL."""
        await self.send(Evaluated(stream=self.stream, steps=1, samples=2, values={"loss": 0.5}))

    def weights(self, start: int = 0, end: int | None = None) -> Weights:
        """Return a part of the weights."""
        return Weights(stream=self.stream, payload=WEIGHTS[start:end], **_weights_at(start))

    def raw_weights(self, start: int, end: int, **changes: Any) -> bytes:
        """Return a frame with a part of the weights; ``changes`` are fields, or the payload."""
        values = _weights_at(start) | changes
        payload = values.pop("payload", WEIGHTS[start:end])
        return raw_frame(FrameType.WEIGHTS, _map(values, {}), payload, stream=self.stream)

    async def pull(self, message: Pull) -> None:
        """Send the weights in two parts."""
        await self.send(self.weights(0, 100), self.weights(100))

    async def _detach(self, message: Detach) -> None:
        await self.send(Detach(stream=message.stream))

    async def _bye(self, message: Bye) -> None:
        await self.send(Bye())
        await self.peer.close()
        self._over = True

    async def _ping(self, message: Ping) -> None:
        await self.send(Pong(data=message.data))

    async def _error(self, message: Error) -> None:
        raise Deviation(f"expected no ERROR; the client sent one: {message.text}")


def _weights_at(offset: int) -> dict[str, Any]:
    return {
        "digest": hashlib.sha256(WEIGHTS).digest(),
        "total": len(WEIGHTS),
        "offset": offset,
        "steps": 1,
    }


def _map(values: dict[str, Any], changes: dict[str, Any]) -> bytes:
    values = {name: value for name, value in (values | changes).items() if value is not ...}
    packed: bytes = msgpack.packb(values)
    return packed


def _open_endpoint(limits: Limits, caps: tuple[str, ...]) -> Endpoint:
    """Return a server's protocol core whose handshake, with a device of its own, is over."""
    server = Endpoint.server({"x": bytes(32)}, nonce=bytes(16), caps=caps, limits=limits)
    device = Endpoint.device("x", bytes(32), nonce=bytes(16), caps=caps, limits=limits)
    for _ in range(2):
        for sender, receiver in ((device, server), (server, device)):
            for part in sender.data_to_send():
                receiver.receive_data(part)
    server.events_received()
    return server
