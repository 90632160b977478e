"""Send every batch exactly once over connections that break.

What the server has not acknowledged as durable is kept, bounded in bytes. When the connection is lost, the
uplink connects again with growing, random pauses, attaches to its session, and sends again what the server
has not received; the server applies each batch once (``docs/protocol.md``, section "Exactly once"). A
device that was killed itself makes an uplink with the session's id and starts after :attr:`Uplink.received`.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from ..codec import Equalizer, PackedTensor
from ..errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ErrorCode,
    HandshakeError,
    LocalProtocolError,
    RemoteError,
)
from ..protocol import Evaluated, Finished, Goaway, Metrics
from ..spec import SessionSpec
from .client import Client
from .patience import Patience, Setback
from .sending import Batch
from .session import Session

__all__ = ["Equalizers", "KeptBatch", "Uplink"]

logger = logging.getLogger("mobillm.device")

T = TypeVar("T")
Equalizers = Mapping[int, tuple[int, Equalizer]]  # see Session.equalizers
Dial = Callable[[], Awaitable[Client]]


@dataclasses.dataclass(slots=True)
class KeptBatch:
    """A batch that may have to be sent again.

    Attributes:
        seq: its number.
        samples, heldout: as in :meth:`Session.begin`.
        tensors: what has been packed so far, in order.
        whole: whether all tensors are there.

    """

    seq: int
    samples: int
    heldout: bool
    tensors: list[tuple[int, PackedTensor]] = dataclasses.field(default_factory=list)
    whole: bool = False

    @property
    def size(self) -> int:
        """Bytes of the tensors as they are sent."""
        return sum(packed.payload.nbytes for _, packed in self.tensors)


class Uplink:
    """One session over as many connections as it takes; for one task at a time.

    Args:
        dial: connects to the server; called again after each loss.
        spec: what to train.
        blobs: content that the spec names; sent only if the server lacks it. Iterated again after each loss.
        session: id of a session that exists; None starts one.
        equalizers: those that a device which was stopped had sent in that session; None: not known.
        keep: bytes of tensors that may be kept; sending waits for the server's disk beyond that.
        patience: seconds after a loss in which coming back is tried; 0 gives up at once, None never. See
            :class:`~mobillm.device.patience.Patience`.

    Attributes:
        metrics: the server's last METRICS; None before the first.
        on_metrics: called with each METRICS on the event loop; None calls nobody.
        on_session: called on the event loop with the id of a session that this uplink has started, before any
            blob is sent; None calls nobody.
        on_equalizers: called in a thread with the session's equalizers before a batch with new ones is
            complete, so that they can be stored; None calls nobody.
        losses: how many connections ended before the session did.
        resent: how many batches were sent again, whole or in part.

    """

    def __init__(
        self,
        dial: Dial,
        spec: SessionSpec,
        *,
        blobs: Iterable[bytes] = (),
        session: bytes | None = None,
        equalizers: Equalizers | None = None,
        keep: int,
        patience: float | None,
    ) -> None:
        self.spec = spec
        self.losses = 0
        self.resent = 0
        self.metrics: Metrics | None = None
        self.on_metrics: Callable[[Metrics], None] | None = None
        self.on_session: Callable[[bytes], None] | None = None
        self.on_equalizers: Callable[[Equalizers], None] | None = None
        self._dial = dial
        self._blobs = blobs
        self._id = session
        self._equalizers = {} if session is None else equalizers
        self._keep = keep
        self._patience = Patience(patience)
        self._client: Client | None = None
        self._session: Session | None = None
        self._open_batch: Batch | None = None  # on the present connection
        self._kept: collections.deque[KeptBatch] = collections.deque()
        self._last: int | None = None  # number of the last batch, once there will be no more
        self._sent_before = self._blobs_before = 0  # bytes of earlier connections

    @property
    def session(self) -> Session:
        """The session on the present connection."""
        assert self._session is not None  # start() comes first
        return self._session

    @property
    def id(self) -> bytes:
        """The 16 bytes that name the session."""
        return self.session.id

    @property
    def received(self) -> int:
        """Number of the last batch that the server has received."""
        return self.session.received

    @property
    def bytes_sent(self) -> int:
        """Bytes sent over all connections."""
        return self._sent_before + self.session.connection.bytes_sent

    @property
    def blob_bytes(self) -> int:
        """Bytes of blobs among them, without framing."""
        return self._blobs_before + self.session.blob_bytes

    async def start(self) -> None:
        """Connect and open or attach to the session; a refusal or an absent server is an error at once."""
        await self._attach()

    async def close(self) -> None:
        """Say goodbye; can be called more than once."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    # Batches.

    async def begin(self, samples: int, *, heldout: bool = False) -> KeptBatch:
        """Begin the next batch; waits while too much is kept, and leaves a server that is about to stop."""
        while self._kept and sum(batch.size for batch in self._kept) > self._keep:
            await self._over_losses(lambda session: session.wait_durable(self._kept[0].seq))
            self._forget()
        goaway = None if self._client is None else self._client.draining
        if goaway is not None and goaway.code == ErrorCode.NO_ERROR:  # an error follows another code
            await self._depart(goaway)
        seq = self._kept[-1].seq + 1 if self._kept else self.session.sent + 1
        batch = KeptBatch(seq, samples, heldout)
        self._kept.append(batch)
        return batch

    async def send(self, batch: KeptBatch, tensor: int, packed: PackedTensor) -> None:
        """Send one tensor of the batch that was begun last; its memory must not change any more.

        Raises:
            RemoteError: the server ended the session, and it cannot go on.
            ConnectionClosed: the connection was lost, and patience with it.

        """
        batch.tensors.append((tensor, packed))
        try:
            if self._open_batch is None:
                self._open_batch = self.session.begin(batch.samples, heldout=batch.heldout)
            await self._open_batch.send(tensor, packed)
        except (ConnectionClosed, RemoteError) as exc:
            await self._recover(exc)  # sends all that is kept, this tensor too

    async def commit(self, batch: KeptBatch) -> None:
        """End the batch.

        Raises:
            ConfigError: the tensors are not those that the spec asks for.
            RemoteError: the server ended the session, and it cannot go on.
            ConnectionClosed: the connection was lost, and patience with it.

        """
        assert self._open_batch is not None  # a batch has tensors
        new = self._open_batch.equalizers
        if new and self.on_equalizers is not None:
            await asyncio.to_thread(self.on_equalizers, self.session.equalizers | new)
        batch.whole = True
        try:
            await self._open_batch.commit()
            self._open_batch = None
        except (ConnectionClosed, RemoteError) as exc:
            await self._recover(exc)
        except BaseException:
            batch.whole = False
            raise
        self._forget()

    def abort(self) -> None:
        """Give up the batch that is open."""
        if self._kept and not self._kept[-1].whole:
            self._kept.pop()
            if self._open_batch is not None:
                self._open_batch.abort()
                self._open_batch = None

    def _forget(self) -> None:
        """Drop what is durable."""
        while self._kept and self._kept[0].whole and self._kept[0].seq <= self.session.durable:
            self._kept.popleft()

    # The rest of the session.

    async def finish(self) -> None:
        """Say that no more batches will come."""
        if self._last is None:
            self._last = self.session.sent
        await self._over_losses(lambda session: session.finish())

    async def wait_durable(self) -> None:
        """Wait until every batch is on the server's disk."""
        await self._over_losses(lambda session: session.wait_durable())
        self._forget()

    async def wait_finished(self) -> Finished:
        """Wait until all epochs have been trained."""
        return await self._over_losses(lambda session: session.wait_finished())

    async def evaluate(self) -> Evaluated:
        """Have the side network evaluated on the held-out batches."""
        return await self._over_losses(lambda session: session.evaluate())

    async def pull(self) -> bytes:
        """Return the side network's weights as they are now."""
        return await self._over_losses(lambda session: session.pull())

    async def detach(self) -> None:
        """Leave the session; a FINISH that was sent is on the server's disk then."""

        async def work(session: Session) -> None:
            if not await session.detach():
                raise ConnectionClosedError(None, "the connection was lost before the session was left")

        await self._over_losses(work)

    async def confirm(self) -> None:
        """Leave a session whose result was pulled and saved, so that the server may delete its log."""
        try:
            await self.session.detach()
        except (ConnectionClosed, RemoteError, TimeoutError) as exc:
            # The result is here: the server keeps the log longer than it had to, and that is all.
            logger.info("= the server was not told that the result has arrived (%s)", exc)

    async def _over_losses(self, work: Callable[[Session], Awaitable[T]]) -> T:
        while True:
            try:
                return await work(self.session)
            except (ConnectionClosed, RemoteError) as exc:
                await self._recover(exc)

    # Connections.

    async def _attach(self) -> None:
        client = await self._dial()
        try:
            if self._id is None:
                session = await client.open(self.spec, blobs=self._blobs, opened=self._opened)
            else:
                if self._session is not None and self._equalizers is not None:
                    self._equalizers = self._session.equalizers
                session = await client.attach(
                    self._id, self.spec, blobs=self._blobs, equalizers=self._equalizers
                )
        except BaseException:
            await client.close()
            raise
        if self._session is not None:
            self._sent_before += self._session.connection.bytes_sent
            self._blobs_before += self._session.blob_bytes
            session.packer = self._session.packer  # what is kept was packed by it
        self._client, self._session, self._id = client, session, session.id
        session.on_metrics = self._note
        client.connection.ping()  # for the offset of the clocks
        self._forget()

    def _opened(self, session: bytes) -> None:
        self._id = session
        if self.on_session is not None:
            self.on_session(session)

    def _note(self, metrics: Metrics) -> None:
        self.metrics = metrics
        if self.on_metrics is not None:
            self.on_metrics(metrics)

    async def _depart(self, goaway: Goaway) -> None:
        """Leave a server that is about to stop, once what was sent is durable or its time is over."""
        logger.warning("= the server is about to stop; leaving it")
        try:
            async with asyncio.timeout(goaway.grace):
                await self.session.wait_durable()
        except (TimeoutError, ConnectionClosed, RemoteError):
            pass  # what is not durable is sent again
        self._forget()
        await self._recover(ConnectionClosedOK(ErrorCode.NO_ERROR, "the server was about to stop"))

    async def _recover(self, cause: ConnectionClosed | RemoteError) -> None:
        """Connect again and send what the server has not received, as long as that can help."""
        self.losses += 1
        session = self.session
        step = 0 if self.metrics is None else self.metrics.step
        self._patience.begin(cause, (session.durable, session.applied, step))
        last: Setback = cause
        while True:
            wait = self._patience.pause(last)
            logger.warning("= %s; connecting again in %.1f s", last, wait)
            await self.close()
            await asyncio.sleep(wait)
            try:
                await self._attach()
            except (ConnectionClosed, HandshakeError, RemoteError, TimeoutError) as exc:
                last = exc
                continue
            try:
                await self._resend()
                return
            except (ConnectionClosed, RemoteError) as exc:
                self.losses += 1
                last = exc

    async def _resend(self) -> None:
        """Send again what is kept and has not been received; the open batch stays open."""
        self._open_batch = None
        for kept in self._kept:
            if kept.seq <= self.session.received:
                continue
            if kept.seq != self.session.sent + 1:
                raise self._gap()
            self.resent += 1
            batch = self.session.begin(kept.samples, heldout=kept.heldout)
            for tensor, packed in kept.tensors:
                await batch.send(tensor, packed)
            if kept.whole:
                await batch.commit()
            else:
                self._open_batch = batch
        if self._last is not None:
            if self.session.sent < self._last:  # it would train on less
                raise self._gap()
            await self.session.finish()

    def _gap(self) -> LocalProtocolError:
        """Return the error of a server that has lost what it had, one restored from a backup, say."""
        text = f"the server has lost batch {self.session.sent + 1}; run this again to compute it anew"
        return LocalProtocolError(ErrorCode.GAP, text)
