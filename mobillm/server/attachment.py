"""A session attached to a stream of a connection: what the device sends, and what it is told."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable

from ..errors import (
    ConfigError,
    ConnectionClosed,
    ConnectionClosedError,
    EngineError,
    ErrorCode,
    MobiLLMError,
    RemoteProtocolError,
    StorageError,
)
from ..options import Limits
from ..protocol import (
    HEADER_SIZE,
    Abort,
    Ack,
    Blob,
    Commit,
    Credit,
    Data,
    Eval,
    Evaluated,
    Finish,
    Finished,
    Gap,
    Message,
    Metrics,
    Pull,
    Stored,
    Weights,
)
from ..transport import Connection
from .batch import Batch, BatchBuilder
from .blobs import BlobStore, BlobUpload, check_total
from .memory import Memory, check_step
from .meter import Meter
from .observer import Observer
from .quota import Quota
from .refusal import NOWHERE, plain, refusal, storage
from .session import Session
from .training import SPAN_RECEIVE

__all__ = ["Attachment"]

logger = logging.getLogger("mobillm.server")

# EVAL and PULL requests of one stream that may wait for their answer.
MAX_ANSWERS = 8
AT_ONCE = 1.0  # seconds for which a connection waits for the start of a session


class _Departed(Observer):
    """Takes the place of a device that has left: nobody is told, but released memory is free."""

    def __init__(self, session: Session, memory: Memory) -> None:
        self._session = session
        self._memory = memory

    def acknowledge(self) -> None:
        """Give free what the session does not hold any more."""
        self._memory.leave(self._session.id, self._session.held)


class Attachment(Observer):
    """The conversation of one session on one stream.

    Args:
        session: the session.
        connection: the device's connection.
        stream: the stream's number.
        blobs: where blobs are kept.
        limits: the server's limits.
        quota: what the tenant may store.
        memory: what all sessions may hold.
        meter: counts what comes.

    """

    def __init__(
        self,
        session: Session,
        connection: Connection,
        stream: int,
        blobs: BlobStore,
        limits: Limits,
        quota: Quota,
        memory: Memory,
        meter: Meter | None = None,
    ) -> None:
        self.session = session
        self.stream = stream
        self._connection = connection
        self._blobs = blobs
        self._limits = limits
        self._quota = quota
        self._memory = memory
        self._meter = meter or Meter()
        self._builder = BatchBuilder()
        self._decompressing = 0  # packed bytes of the batch that is being decompressed
        self._begun = 0  # microseconds, when the open batch began
        self._upload: BlobUpload | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._answering = asyncio.Lock()  # one at a time, in order
        self._refused = False  # whether the log has said that batches are
        self._blocked = False  # blobs are missing
        self.active = True
        self.delivered = False  # whether all weights of the finished session were sent

    @property
    def missing(self) -> tuple[bytes, ...]:
        """Digests of blobs that the session needs and the server lacks."""
        wanted = map(bytes.fromhex, self.session.spec.blobs)
        return tuple(digest for digest in wanted if not self._blobs.has(digest))

    async def start(self) -> None:
        """Start the session if nothing is missing; tell the device how far it may go."""
        self._blocked = bool(self.missing)
        if self._blocked:
            self._grant()
            return
        task = self.session.begin(self._blobs)
        await asyncio.wait([task], timeout=AT_ONCE)
        if task.done():
            await self._join(task)
        else:  # an engine that has to find room first; the connection's other sessions go on meanwhile
            self._answer(lambda: self._join(task))

    async def _join(self, task: asyncio.Task[None]) -> None:
        await asyncio.wait([task])
        if task.cancelled():
            return  # the session was ended meanwhile, and the device was told
        task.result()
        self.acknowledge()
        if self.session.finished is not None:
            self.finish(self.session.finished)

    async def close(self) -> None:
        """Leave the session: it goes on without the device."""
        self.active = False
        if self.session.observer is self:
            self.session.observer = _Departed(self.session, self._memory)
            self.session.observer.acknowledge()
        if self._upload is not None:
            self._upload.discard()
        for task in self._answers:
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)

    # What the device sends.

    async def receive(self, message: Message) -> None:
        """Act on one message of the stream; after its end, messages that were under way change nothing."""
        if not self.active:
            return
        try:
            if isinstance(message, Data):
                self._receive_data(message)
            elif isinstance(message, Commit):
                await self._commit(message)
            elif isinstance(message, Abort):
                if message.seq == self._builder.seq:
                    self._builder.clear()
                    self._begun = 0
                self._grant()
            elif isinstance(message, Blob):
                await self._store(message)
            elif isinstance(message, Finish):
                await self.session.finish(message.seq)
            elif isinstance(message, Eval):
                self._answer(self._evaluate)
            elif isinstance(message, Pull):
                self._answer(self._send_weights)
        except StorageError as exc:
            self.fail_storage(exc, "the server cannot store this session's data")
        except EngineError:
            self.fail(ErrorCode.SERVER_BUSY, NOWHERE)
        except ConnectionClosed:
            raise
        except MobiLLMError as exc:
            self.fail(ErrorCode.SCHEMA_MISMATCH, plain(exc))
        except Exception:
            # One session's fault must not end the others of the connection.
            logger.exception("! session %s: %s failed", self.session.id.hex(), message.type.name)
            self.fail(ErrorCode.INTERNAL, "the server failed; its log says why")

    def _receive_data(self, message: Data) -> None:
        if not self._begun:
            self._begun = time.monotonic_ns() // 1000
        self._builder.add(message)
        if not self.session.held and self._connection.endpoint.credit(self.stream) < self._largest:
            self._grant()

    async def _commit(self, message: Commit) -> None:
        batch = self._builder.build(message)
        begun, self._begun = self._begun, 0
        session = self.session
        expected = session.received + 1
        if message.seq > expected:
            self._meter.gap()
            self._connection.post(Gap(stream=self.stream, seq=message.seq, expected=expected))
        if message.seq != expected:
            if session.is_other(message.seq, message.checksum):
                self.fail(ErrorCode.SEQ_REUSE, f"batch {message.seq} was sent before with other bytes")
            if message.seq < expected:
                self._meter.duplicate()
            self.acknowledge()
            return
        if self._blocked:
            raise ConfigError("COMMIT.seq", message.seq, "no batch before the blobs that OPENED named")
        if session.last is not None:
            raise ConfigError("COMMIT.seq", message.seq, f"no batch after the last one, {session.last}")
        if batch.compressed:
            batch = await self._decompressed(batch)
            if not self.active:
                return  # the session was taken over or ended meanwhile: the batch was not received
        try:
            batch.check(session.spec)
            session.equalizers.check(batch)
            check_step(session.spec, batch.headers[0].shape[0], self._limits.memory)
        except ConfigError as exc:
            self._drop(message.seq, ErrorCode.SCHEMA_MISMATCH, f"batch {message.seq}: {plain(exc)}")
            return
        excess = self._quota.refuse_batch(session.tenant, batch.size)
        if excess is not None:
            if not self._refused:  # once: the device tries again and again
                self._refused = True
                text = "! session %s: its batches are refused (--limits %s): %s"
                logger.warning(text, session.id.hex(), *excess)
            self._drop(message.seq, ErrorCode.QUOTA, excess.text)
            return
        duration = time.monotonic_ns() // 1000 - begun
        session.add_span((SPAN_RECEIVE, batch.seq, begun, duration))
        self._meter.received(batch.size, duration / 1e6)
        await session.put(batch)

    async def _decompressed(self, batch: Batch) -> Batch:
        """Return a batch with its packed bytes; a frame that is none ends the connection."""
        self._decompressing = batch.size
        try:
            return await self.session.workers.write(batch.decompressed)
        except RemoteProtocolError as exc:
            self.active = False
            self._connection.fail(ErrorCode.DECOMPRESS, exc.text)
            raise ConnectionClosedError(ErrorCode.DECOMPRESS, exc.text) from exc
        finally:
            self._decompressing = 0

    def _drop(self, seq: int, code: ErrorCode, text: str) -> None:
        """Refuse a batch; the stream goes on: the device may send another batch with this number."""
        self._meter.rejected(code.name)
        self._post(refusal(self.stream, code, text, seq=seq))
        self._grant()

    @property
    def _largest(self) -> int:
        return self._limits.frame + HEADER_SIZE

    def _grant(self) -> None:
        """Tell the device how far it may go; what it sends is bounded by memory that is free now.

        A batch that is larger than the whole window is let through alone, one frame after another.
        """
        session = self.session
        if not self.active or not self._connection.is_open:
            return
        held = session.held + self._builder.held + self._decompressing
        owed = self._connection.endpoint.credit(self.stream)
        room = self._memory.grant(session.id, held, owed, self._limits.queue)
        if not session.held:
            room = max(room, self._largest)
        self._post(
            Credit(
                stream=self.stream,
                offset=self._connection.endpoint.credit_used(self.stream) + max(0, room),
                last=session.applied + self._limits.batches,
            )
        )

    async def _store(self, message: Blob) -> None:
        workers = self.session.workers
        if self._upload is None:
            # Another device may have stored it meanwhile; this one was told to send it all the same.
            if message.digest.hex() not in self.session.spec.blobs:
                raise ConfigError("BLOB.digest", "another one", "a digest that the spec names")
            check_total(self.session.spec, message.digest, message.total)
            self._upload = await workers.write(BlobUpload, self._blobs, message)
        if await workers.write(self._upload.add, message):
            self._upload = None
            self._post(Stored(stream=self.stream, digest=message.digest))
            await self.start()
        else:
            self._grant()

    def _answer(self, work: Callable[[], Awaitable[None]]) -> None:
        if len(self._answers) >= MAX_ANSWERS:
            self.fail(ErrorCode.CALM, f"more than {MAX_ANSWERS} requests wait for an answer")
            return
        task = asyncio.get_running_loop().create_task(self._guard(work))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with self._answering:
                await work()
        except ConnectionClosed:
            pass  # nobody is left to answer
        except StorageError as exc:
            self.fail_storage(exc, "the server cannot read this session's data")
        except EngineError:
            self.fail(ErrorCode.SERVER_BUSY, NOWHERE)
        except MobiLLMError as exc:
            self.fail(ErrorCode.SCHEMA_MISMATCH, plain(exc))
        except Exception:
            logger.exception("! session %s: an answer failed", self.session.id.hex())
            self.fail(ErrorCode.INTERNAL, "the server failed; its log says why")

    async def _evaluate(self) -> None:
        steps, values = await self.session.evaluate()
        samples = int(values.pop("count"))
        await self._connection.send(
            Evaluated(stream=self.stream, steps=steps, samples=samples, values=values)
        )

    async def _send_weights(self) -> None:
        final = self.session.finished is not None
        steps, data = await self.session.weights()
        digest = hashlib.sha256(data).digest()
        view = memoryview(data)
        for offset in range(0, len(view), self._limits.chunk):
            await self._connection.send(
                Weights(
                    stream=self.stream,
                    digest=digest,
                    total=len(view),
                    offset=offset,
                    steps=steps,
                    payload=view[offset : offset + self._limits.chunk],
                )
            )
        if final:
            logger.info("= session %s: its result was pulled", self.session.id.hex())
        self.delivered = final

    # What the device is told.

    def acknowledge(self) -> None:
        """Send ACK, and CREDIT for what training has released."""
        session = self.session
        self._post(
            Ack(
                stream=self.stream,
                received=session.received,
                durable=session.durable,
                applied=session.applied,
            )
        )
        self._grant()

    def report(self, metrics: Metrics) -> None:
        """Send METRICS."""
        self._post(dataclasses.replace(metrics, stream=self.stream))

    def finish(self, finished: Finished) -> None:
        """Send FINISHED."""
        self._post(Finished(stream=self.stream, steps=finished.steps, loss=finished.loss))

    def fail(self, code: ErrorCode, text: str, *, again: bool = True) -> None:
        """End the stream with an error; the session itself stays."""
        self._post(refusal(self.stream, code, text, again=again))
        self.active = False

    def fail_storage(self, exc: StorageError, text: str) -> None:
        """End the stream because of the server's files, of which the log says more than ``text``."""
        logger.error("! session %s: %s", self.session.id.hex(), exc)
        code, text, again = storage(exc, self.session.id, text)
        self.fail(code, text, again=again)

    def _post(self, message: Message) -> None:
        if self.active and self._connection.is_open:
            self._connection.post(message)
