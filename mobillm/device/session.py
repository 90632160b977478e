"""A session as the device sees it: batches out; acknowledgements, metrics and weights in.

Works without torch: an app that runs its backbone elsewhere hands in numpy arrays.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy.typing as npt

from ..codec import Equalizer, PackedTensor
from ..errors import (
    ErrorCode,
    LocalProtocolError,
    MobiLLMError,
    RemoteError,
    RemoteProtocolError,
)
from ..protocol import (
    CAPABILITY,
    Ack,
    Blob,
    Detach,
    Error,
    Eval,
    Evaluated,
    Finish,
    Finished,
    Gap,
    Message,
    Metrics,
    Opened,
    Pull,
    Stored,
    Weights,
)
from ..spec import SessionSpec
from ..transport import Connection
from .blobs import lacking
from .packing import pack_batch
from .sending import Batch
from .taps import TapPacker

__all__ = ["Session"]

T = TypeVar("T")


class Session:
    """One fine-tuning job on the server; made by :meth:`Client.open`.

    Attributes:
        spec: what is trained.
        id: 16 bytes that name the session; an app keeps them to come back later.
        sent: number of the last batch that was sent whole.
        received, durable, applied: the server's acknowledgements, see ``docs/protocol.md``.
        equalizers: those that the server has, by tap, each with the number of the batch that brought it; an
            app that comes back later hands them to :meth:`Client.attach`.
        packer: packs the taps of this session.
        blob_bytes: of blobs that were sent over this connection.
        metrics: the server's last METRICS; None before the first.
        finished: the server's FINISHED; None before it.
        on_metrics: called with each METRICS on the event loop; None calls nobody.

    """

    def __init__(self, connection: Connection, stream: int, spec: SessionSpec, opened: Opened) -> None:
        self.connection = connection
        self.stream = stream
        self.spec = spec
        self.id = opened.session
        self.received = opened.received
        self.durable = opened.durable
        self.applied = opened.applied
        self.sent = opened.received
        self.equalizers: dict[int, tuple[int, Equalizer]] = {}
        # A session that has batches may have equalizers that we do not know: taps go as they are then.
        self.packer = self._make_packer(None if opened.received else {})
        self.blob_bytes = 0
        self.metrics: Metrics | None = None
        self.finished: Finished | None = None
        self.on_metrics: Callable[[Metrics], None] | None = None
        self._failed: MobiLLMError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._packing = asyncio.Lock()  # batches are packed in the order in which they are sent
        self._sending = asyncio.Lock()  # batches go one after another, FINISH after them
        self._asking = asyncio.Lock()  # one question at a time: the server bounds how many wait
        self._complete = opened.finished
        self._evaluated: Evaluated | None = None
        self._evals_asked = self._evals_answered = 0
        self._weights = bytearray()
        self._pulled = b""
        self._pulls_asked = self._pulls_answered = 0
        self._stored: set[bytes] = set()
        self._leaving = False
        self._detached = False

    def recall(self, equalizers: Mapping[int, tuple[int, Equalizer]]) -> None:
        """Go on with the equalizers of earlier connections, as far as the server has received them."""
        self.equalizers = {tap: item for tap, item in equalizers.items() if item[0] <= self.received}
        self.packer = self._make_packer({tap: item[1] for tap, item in self.equalizers.items()})

    @property
    def compresses(self) -> bool:
        """Whether the server takes compressed tensors over this connection."""
        return CAPABILITY in self.connection.endpoint.caps

    def _make_packer(self, equalizers: Mapping[int, Equalizer] | None) -> TapPacker:
        return TapPacker(self.spec, equalizers, compress=self.compresses)

    # Sending batches.

    def begin(self, samples: int, *, heldout: bool = False) -> Batch:
        """Begin the next batch.

        Args:
            samples: how many samples it will hold.
            heldout: keep it for evaluation, never train on it.

        Raises:
            LocalProtocolError: the session is complete.

        """
        if self._complete:
            raise LocalProtocolError(
                ErrorCode.PROTOCOL, "the session takes no more batches: finish was called before"
            )
        return Batch(self, self.sent + 1, samples, heldout)

    async def submit(
        self,
        taps: Sequence[npt.NDArray[Any]],
        lengths: Sequence[int],
        targets: npt.ArrayLike,
        *,
        heldout: bool = False,
    ) -> int:
        """Quantize, pack and send one batch; waits while the server has no room for it.

        Several tasks may call it at once: their batches go one after another. Cancelling gives the batch
        up; the session can go on with the next one.

        Args:
            taps: for each tap of the spec a float array [tokens, hidden_size]; the samples' tokens one
                after another, no padding.
            lengths: tokens of each sample.
            targets: a class number for each sample, a number for each sample (regression), or a token id
                for each token with -100 where there is none (causal-lm).
            heldout: keep it for evaluation, never train on it.

        Returns:
            The batch's number.

        Raises:
            ConfigError: shapes do not fit the spec or one another; nothing was sent.
            QuantizationError: a tap holds a value that the format cannot carry; nothing was sent.
            RemoteError: the server ended the session.
            ConnectionClosed: the connection is gone.

        """
        async with self._packing:
            tensors = await asyncio.to_thread(pack_batch, self.spec, taps, lengths, targets, self.packer)
            if any(packed.equalizer and tap not in self.equalizers for tap, packed in tensors.items()):
                # What calibrated the equalizers is on its way before anything else relies on them.
                try:
                    return await self._submit(tensors, len(lengths), heldout)
                except BaseException:
                    known = {tap: item[1] for tap, item in self.equalizers.items()}
                    self.packer = self._make_packer(known)
                    raise
        return await self._submit(tensors, len(lengths), heldout)

    async def _submit(self, tensors: Mapping[int, PackedTensor], samples: int, heldout: bool) -> int:
        async with self._sending:
            batch = self.begin(samples, heldout=heldout)
            try:
                for tensor, packed in tensors.items():
                    await batch.send(tensor, packed)
                await batch.commit()
            except BaseException:
                batch.abort()
                raise
        return batch.seq

    async def finish(self) -> None:
        """Say that no more batches will come; the server trains what is left of the epochs.

        Can be called more than once, and on a session that was complete when it was attached.
        """
        async with self._sending:
            self.check()
            if not self._complete:
                await self.send(Finish(stream=self.stream, seq=self.sent))
                self._complete = True

    async def upload(self, missing: Sequence[bytes], blobs: Iterable[bytes]) -> None:
        """Send the blobs that the server lacks and wait until it has stored them.

        Args:
            missing: SHA-256 digests from the server.
            blobs: content to choose from, taken one by one, each when the one before was sent.

        Raises:
            ConfigError: a missing blob was not given.
            RemoteError: the server could not store one.
            ConnectionClosed: the connection is gone.
            TimeoutError: no confirmation within ``timeouts.request``.

        """
        chunk = self.connection.endpoint.limits.chunk
        async for digest, blob in lacking(missing, blobs):
            view = memoryview(blob)
            self.blob_bytes += len(view)
            for offset in range(0, len(view), chunk):
                part = view[offset : offset + chunk]
                await self.send(
                    Blob(stream=self.stream, digest=digest, total=len(view), offset=offset, payload=part)
                )
        await self._within("confirm a blob", lambda: self._stored.issuperset(missing))

    # Waiting for the server.

    async def wait_durable(self, seq: int | None = None) -> None:
        """Wait until a batch (None: the last one sent) is in the server's log and on its disk."""
        want = self.sent if seq is None else seq
        await self._until(lambda: self.durable >= want)

    async def wait_applied(self, seq: int | None = None) -> None:
        """Wait until a batch (None: the last one sent) has been trained on."""
        want = self.sent if seq is None else seq
        await self._until(lambda: self.applied >= want)

    async def wait_finished(self) -> Finished:
        """Wait until all epochs have been trained; :meth:`finish` comes first."""
        return await self._until(lambda: self.finished)

    async def evaluate(self) -> Evaluated:
        """Have the side network evaluated as it is now on the held-out batches."""
        async with self._asking:
            await self.send(Eval(stream=self.stream))
            self._evals_asked += 1
            want = self._evals_asked
            # Answers come in order; one that a cancelled call has left behind is not ours.
            await self._until(lambda: self._evals_answered >= want)
            assert self._evaluated is not None
            return self._evaluated

    async def pull(self) -> bytes:
        """Return the side network's weights as they are now, a safetensors file.

        Raises:
            RemoteProtocolError: the bytes do not have the digest that was announced.

        """
        async with self._asking:
            await self.send(Pull(stream=self.stream))
            self._pulls_asked += 1
            want = self._pulls_asked
            await self._until(lambda: self._pulls_answered >= want)
            return self._pulled

    async def detach(self) -> bool:
        """Leave the session, which lives on; return whether the server was there to answer.

        The server acts in order: an answer says that a FINISH sent before is on its disk, and lets it know
        that weights of a finished session that were pulled before have arrived.

        Raises:
            RemoteError, ConnectionClosed, TimeoutError: there was no answer within ``timeouts.request``.

        """
        before = self._failed
        self.leave()
        try:
            async with asyncio.timeout(self.connection.timeouts.request):
                while not self._detached and self.connection.is_open and self._failed is before:
                    await self._changed()
        except TimeoutError:
            raise TimeoutError("the server did not answer DETACH in time") from None
        if not self._detached and self._failed is not before:
            raise self._failure()
        return self._detached

    # The inside, driven by the client's reader.

    def leave(self) -> None:
        """Send DETACH, once."""
        if not self._leaving and self.connection.is_open:
            self._leaving = True
            self.connection.post(Detach(stream=self.stream))

    async def send(self, message: Message) -> None:
        """Send a message of the session once there is room for it.

        Raises:
            RemoteError: the server ended the session.
            ConnectionClosed: the connection is gone.

        """
        self.check()
        try:
            await self.connection.send(message)
        except LocalProtocolError:
            self.check()
            if self._complete:
                raise
            # The server's ERROR has ended the stream, but the reader has not told us yet.
            await self._until(lambda: self._leaving)
            self.check()
            raise

    def check(self) -> None:
        """Raise what ended the session, if anything did."""
        if self._failed is not None:
            raise self._failure()
        if self._leaving:
            raise LocalProtocolError(ErrorCode.PROTOCOL, "the session was detached; attach to it again")

    def receive(self, message: Message) -> None:
        """Act on a message of this session's stream."""
        if isinstance(message, Ack):
            self.received, self.durable, self.applied = message.received, message.durable, message.applied
        elif isinstance(message, Metrics):
            self.metrics = message
            if self.on_metrics is not None:
                self.on_metrics(message)
        elif isinstance(message, Finished):
            self.finished = message
        elif isinstance(message, Evaluated):
            self._evaluated = message
            self._evals_answered += 1
        elif isinstance(message, Weights):
            self._receive_weights(message)
        elif isinstance(message, Stored):
            self._stored.add(message.digest)
        elif isinstance(message, Error):
            refusal = RemoteError(message.code, message.text, message.retry_after)
            self._end(refusal, batch=message.seq)
        elif isinstance(message, Gap):
            text = f"the server expects batch {message.expected} next"
            self._end(RemoteError(ErrorCode.GAP, text), batch=message.seq)
        elif isinstance(message, Detach):
            self._detached = True
        self._wake()

    def _receive_weights(self, message: Weights) -> None:
        if message.offset == 0:
            self._weights = bytearray()
        self._weights += message.payload
        if len(self._weights) < message.total:
            return
        if hashlib.sha256(self._weights).digest() == message.digest:
            self._pulled = bytes(self._weights)
            self._pulls_answered += 1
        else:
            self.fail(RemoteProtocolError(ErrorCode.SCHEMA_MISMATCH, "the weights do not have their digest"))
        self._weights = bytearray()

    def _end(self, exc: RemoteError, batch: int) -> None:
        """Fail; leave the stream if the error was that of one batch, for which it would wait."""
        self.fail(exc)
        if batch:
            self.leave()

    def fail(self, exc: MobiLLMError) -> None:
        """End the session for everyone who waits."""
        if self._failed is None:
            self._failed = exc
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _changed(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:  # cancelled
                self._waiters.remove(waiter)

    def _failure(self) -> MobiLLMError:
        """Return what ended the session, a fresh one for each waiter so that tracebacks do not pile up."""
        assert self._failed is not None
        copy = type(self._failed)(*self._failed.args)
        copy.__cause__ = self._failed.__cause__
        return copy

    async def _until(self, result: Callable[[], T | None]) -> T:
        """Wait until ``result`` returns something true, or the session ends."""
        while not (found := result()):
            if self._failed is not None:
                raise self._failure()
            await self._changed()
        return found

    async def _within(self, what: str, result: Callable[[], T | None]) -> T:
        """Do what :meth:`_until` does, bounded by ``timeouts.request``."""
        bound = self.connection.timeouts.request
        try:
            async with asyncio.timeout(bound):
                return await self._until(result)
        except TimeoutError:
            raise TimeoutError(f"the server did not {what} within {bound:g} s") from None
