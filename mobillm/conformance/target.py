"""The server under test, and what one case works with: fresh connections, sessions and batches."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import ssl
from collections.abc import Sequence
from typing import Any

import msgpack

from ..errors import ErrorCode
from ..protocol import Challenge, Detach, Error, Finished, FrameType, Opened, Welcome, derive_key
from ..transport import Address
from .case import Busy, Deviation
from .peer import Log, Peer
from .samples import Batch, spec
from .wire import device_proof, frame, raw_frame, server_proof

__all__ = ["Lab", "Stream", "Target"]

TIDYING = 3.0  # seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The server under test.

    Attributes:
        address: where it listens.
        tenants: name and secret of each tenant that the suite may use; the first one is used where a case
            does not need two.
        tls: TLS context; None speaks plain TCP.
        bound: seconds that an answer may take.

    """

    address: Address
    tenants: tuple[tuple[str, str], ...]
    tls: ssl.SSLContext | None = None
    bound: float = 10.0


class Lab:
    """What one case against a server works with; everything is closed when the case is over.

    Args:
        target: the server.

    Attributes:
        log: what was sent and what came back.

    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.log = Log()
        self._peers: list[Peer] = []
        self._tenants: dict[Peer, int] = {}

    async def close(self) -> None:
        """Cut all connections, and finish the sessions of this case, so that they do not count as open."""
        for peer in self._peers:
            peer.abort()
        sessions = {name: tenant for peer, tenant in self._tenants.items() for name in peer.sessions}
        broom = Lab(self.target)
        try:
            async with asyncio.timeout(TIDYING):
                for tenant in sorted(set(sessions.values())):
                    await broom.finish([name for name, owner in sessions.items() if owner == tenant], tenant)
        except (Busy, Deviation, TimeoutError, OSError):
            pass  # nothing of the case depends on it
        finally:
            for peer in broom._peers:
                peer.abort()

    async def finish(self, sessions: Sequence[bytes], tenant: int) -> None:
        """Finish sessions at the last batch that they have received."""
        peer = await self.open(tenant)
        for name in sessions:
            await peer.send(frame(FrameType.OPEN, {"session": name}, stream=1))
            opened = await self.answered(peer, 1)
            if not opened.finished and not opened.missing:
                await peer.send(frame(FrameType.FINISH, stream=1, seq=opened.received))
            await peer.send(frame(FrameType.DETACH, stream=1))
            await peer.expect(Detach, stream=1)

    async def connect(self) -> Peer:
        """Return a connection on which nothing was said yet.

        Raises:
            Deviation: there is no server.

        """
        target = self.target
        try:
            async with asyncio.timeout(target.bound):
                reader, writer = await asyncio.open_connection(
                    target.address.host,
                    target.address.port,
                    ssl=target.tls,
                    server_hostname=target.address.host if target.tls else None,
                    ssl_handshake_timeout=target.bound if target.tls else None,
                )
        except (OSError, TimeoutError) as exc:
            raise Deviation(f"cannot connect to {target.address}: {exc or 'no answer'}") from None
        name = "" if not self._peers else f"{len(self._peers) + 1}"
        peer = Peer(reader, writer, self.log, name=name, bound=target.bound)
        self._peers.append(peer)
        return peer

    def hello(self, tenant: int = 0, /, **changes: Any) -> bytes:
        """Return the map of a HELLO; fields that are ``...`` are left out."""
        values: dict[str, Any] = {
            "min_version": 1,
            "max_version": 1,
            "tenant": self.target.tenants[tenant][0],
            "nonce": os.urandom(16),
            "agent": "mobillm conformance",
        }
        values = {key: value for key, value in (values | changes).items() if value is not ...}
        meta: bytes = msgpack.packb(values)
        return meta

    def key(self, tenant: int = 0) -> bytes:
        """Return a tenant's key."""
        return derive_key(self.target.tenants[tenant][1])

    async def challenged(self, peer: Peer, hello: bytes) -> Challenge:
        """Send HELLO and return the CHALLENGE that answers it; its bytes are then ``peer.body``."""
        await peer.send(raw_frame(FrameType.HELLO, hello))
        return await self.challenged_by(peer)

    async def challenged_by(self, peer: Peer) -> Challenge:
        """Wait for the CHALLENGE."""
        return await peer.expect(Challenge)

    async def open(self, tenant: int = 0, /, **changes: Any) -> Peer:
        """Return a connection whose handshake is over; ``changes`` are fields of HELLO."""
        peer = await self.connect()
        await self.welcomed(peer, tenant, **changes)
        return peer

    async def welcomed(self, peer: Peer, tenant: int = 0, /, **changes: Any) -> Welcome:
        """Make the handshake on a fresh connection, and check the server's proof."""
        hello = self.hello(tenant, **changes)
        await self.challenged(peer, hello)
        return await self.prove(peer, hello, peer.body, tenant)

    async def prove(self, peer: Peer, hello: bytes, challenge: bytes, tenant: int = 0) -> Welcome:
        """Send AUTH for these bodies of HELLO and CHALLENGE, and check the server's proof."""
        await self.sign(peer, hello, challenge, tenant)
        welcome = await self.welcomed_by(peer)
        if welcome.mac != server_proof(self.key(tenant), hello, challenge):
            raise Deviation("WELCOME holds a wrong proof [A-10]")
        return welcome

    async def sign(self, peer: Peer, hello: bytes, challenge: bytes, tenant: int) -> None:
        """Send AUTH with the proof of a tenant."""
        self._tenants[peer] = tenant
        mac = device_proof(self.key(tenant), hello, challenge)
        await peer.send(frame(FrameType.AUTH, {"mac": mac}))

    async def welcomed_by(self, peer: Peer) -> Welcome:
        """Wait for the WELCOME."""
        welcome = await peer.expect(Welcome)
        peer.welcomed = True
        return welcome

    async def attach(
        self, peer: Peer | None = None, *, number: int = 1, tenant: int = 0, **changes: Any
    ) -> Stream:
        """Start a session on a stream and wait for its first credit.

        Args:
            peer: the connection; None makes one.
            number: of the stream.
            tenant: whose session it is, if the connection is to be made.
            changes: fields of the spec.

        """
        peer = await self.open(tenant) if peer is None else peer
        await peer.send(frame(FrameType.OPEN, {"spec": spec(**changes)}, stream=number))
        return await self.opened(peer, number)

    async def resume(self, session: bytes, peer: Peer | None = None, *, number: int = 1) -> Stream:
        """Attach to a session that exists."""
        peer = await self.open() if peer is None else peer
        await peer.send(frame(FrameType.OPEN, {"session": session}, stream=number))
        return await self.opened(peer, number)

    async def finished(self, session: bytes, *, steps: int) -> Stream:
        """Attach to a session until its training is over, and check how many steps it took."""
        stream = await self.resume(session)
        finished = await stream.peer.expect(Finished, stream=1)
        if finished.steps != steps:
            raise Deviation(f"expected FINISHED after {steps} steps; it says {finished.steps}")
        return stream

    async def answered(self, peer: Peer, number: int) -> Opened:
        """Wait for OPENED."""
        return await peer.expect(Opened, stream=number)

    async def opened(self, peer: Peer, number: int) -> Stream:
        """Wait for OPENED and the first credit."""
        opened = await self.answered(peer, number)
        stream = Stream(peer, number, opened)
        if not opened.finished:
            await stream.room(1, 0)
        return stream


class Stream:
    """A session attached to a stream of ours.

    Attributes:
        peer: the connection.
        number: of the stream.
        opened: the server's answer to OPEN.
        used: charged bytes that were sent.

    """

    def __init__(self, peer: Peer, number: int, opened: Opened) -> None:
        self.peer = peer
        self.number = number
        self.opened = opened
        self.used = 0

    @property
    def granted(self) -> tuple[int, int]:
        """Offset and last batch number granted so far."""
        return self.peer.credit[self.number]

    async def room(self, size: int, seq: int) -> None:
        """Wait for credit for ``size`` more bytes of batch ``seq``."""

        def enough() -> bool:
            offset, last = self.granted
            return self.used + size <= offset and seq <= last

        if not enough():
            await self.peer.until(enough, f"CREDIT for {size} bytes of batch {seq} on stream {self.number}")

    async def send(self, *frames: bytes) -> None:
        """Send charged frames, each as soon as there is credit for it."""
        for data in frames:
            await self.room(len(data), int.from_bytes(data[16:24], "big"))
            self.used += len(data)
            await self.peer.send(data)

    async def control(self, kind: FrameType, *, seq: int = 0, **values: Any) -> None:
        """Send a frame that is not charged on the stream."""
        await self.peer.send(frame(kind, values, stream=self.number, seq=seq))

    async def submit(self, *batches: Batch) -> None:
        """Send whole batches."""
        for batch in batches:
            await self.send(*batch.frames(stream=self.number))

    async def acked(self, *, received: int = 0, durable: int = 0, applied: int = 0) -> None:
        """Wait until the server has acknowledged this much."""

        def done() -> bool:
            ack = self.peer.acks[self.number]
            return ack.received >= received and ack.durable >= durable and ack.applied >= applied

        await self.peer.until(done, f"ACK of received {received}, durable {durable}, applied {applied}")

    async def failed(self, *codes: ErrorCode, seq: int = 0) -> Error:
        """See the stream, or with ``seq`` one batch, refused with one of the codes."""
        return await self.peer.refused_on(self.number, *codes, seq=seq)

    async def detach(self) -> None:
        """Leave the session in order."""
        await self.control(FrameType.DETACH)
        await self.peer.expect(Detach, stream=self.number)
        self.peer.credit[self.number] = 0, 0
