"""Messages of a session: batches one way; acknowledgements, metrics and weights the other.

``docs/protocol.md``, sections "Sessions" and "Batches".
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ..formats import MAX_RANK, Format
from .frames import FrameType
from .message import COUNT, SENTENCE, SEQ, SIZE, Message, buffer, wire
from .schema import boolean, integer, items, mapping, number, octets, optional
from .tensors import EQUALIZERS, LAST_TENSOR, LENGTHS, MAX_DIMENSION, TARGETS, TensorHeader, is_tensor

__all__ = [
    "Abort",
    "Ack",
    "Blob",
    "Commit",
    "Credit",
    "Data",
    "Detach",
    "Eval",
    "Evaluated",
    "Finish",
    "Finished",
    "Gap",
    "Metrics",
    "Open",
    "Opened",
    "Pull",
    "Stored",
    "Weights",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Open(Message):
    """Start a session from a spec, or attach to one that exists; exactly one of the two is given.

    Attributes:
        spec: map of a :class:`mobillm.spec.SessionSpec`.
        session: 16 bytes that name an existing session of this tenant.

    """

    type = FrameType.OPEN
    spec: dict[str, Any] | None = wire(optional(mapping()), None)
    session: bytes | None = wire(optional(octets(16)), None)

    def _check(self) -> None:
        if (self.spec is None) == (self.session is None):
            raise ValueError("OPEN must hold either spec or session")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Message):
    """The session is attached to this stream.

    Attributes:
        session: 16 random bytes that name it.
        epoch: number of this attachment; an older attachment's frames are stale.
        received, durable, applied: see :class:`Ack`.
        missing: SHA-256 digests of blobs the server needs before the first batch.
        finished: whether all epochs have been trained.

    """

    type = FrameType.OPENED
    session: bytes = wire(octets(16))
    epoch: int = wire(integer(1, 2**32 - 1))
    received: int = wire(SEQ, 0)
    durable: int = wire(SEQ, 0)
    applied: int = wire(SEQ, 0)
    missing: tuple[bytes, ...] = wire(items(octets(32)), ())
    finished: bool = wire(boolean, False)

    def _check(self) -> None:
        _check_progress(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blob(Message):
    """Part of a content-addressed blob; charged.

    Attributes:
        digest: SHA-256 of the whole blob.
        total: its length in bytes.
        offset: where ``payload`` belongs; parts come in order.

    """

    type = FrameType.BLOB
    digest: bytes = wire(octets(32))
    total: int = wire(integer(1, 2**48))
    offset: int = wire(SIZE)
    payload: bytes | memoryview = wire(buffer)

    def _check(self) -> None:
        size = len(self.payload)
        if not size or self.offset + size > self.total:
            raise ValueError("BLOB.payload must not be empty and must end inside total")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Message):
    """The server holds the whole blob, and its digest is right."""

    type = FrameType.STORED
    digest: bytes = wire(octets(32))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Data(Message):
    """Part of one packed tensor of batch ``seq``; charged.

    Attributes:
        tensor: number of the tap in the spec, or 1000 for the targets, 1001 for the lengths, 2000 + k for
            the equalizer of tap k.
        offset: where ``payload`` belongs in the packed tensor, or in its zstd frame; parts come in order.
        format, block, shape: the tensor's header, in its first part only.
        equalizer: CRC32C of the packed equalizer that a tap was divided by, in its first part only; None:
            it was not equalized.
        zstd: bytes of the zstd frame that a tap's payloads are instead of its packed bytes, in its first part
            only; None: it is not compressed.

    """

    type = FrameType.DATA
    has_seq = True
    tensor: int = wire(integer(0, LAST_TENSOR))
    offset: int = wire(SIZE)
    format: int | None = wire(optional(integer(0, 255)), None)
    block: int | None = wire(optional(integer(0, 255)), None)
    shape: tuple[int, ...] | None = wire(optional(items(integer(1, MAX_DIMENSION), MAX_RANK, 1)), None)
    equalizer: int | None = wire(optional(COUNT), None)
    zstd: int | None = wire(optional(integer(1, 2**48)), None)
    payload: bytes | memoryview = wire(buffer)

    def _check(self) -> None:
        if not (self.format is None) == (self.block is None) == (self.shape is None):
            raise ValueError("DATA must hold all of format, block and shape, or none")
        if (self.offset == 0) != (self.shape is not None):
            raise ValueError("DATA must hold the tensor's header in the first part only")
        if not self.seq or not len(self.payload):
            raise ValueError("DATA must have a batch number and a payload that is not empty")
        if not is_tensor(self.tensor):
            raise ValueError(f"DATA.tensor must be below {LENGTHS + 1} or above {EQUALIZERS - 1}")
        if self.equalizer is not None and (self.shape is None or self.tensor >= TARGETS):
            raise ValueError("DATA must hold an equalizer in the first part of a tap only")
        if self.zstd is not None and (self.shape is None or self.tensor >= TARGETS):
            raise ValueError("DATA must hold zstd in the first part of a tap only")
        if self.shape is not None:
            self.header()

    def header(self) -> TensorHeader:
        """Return the tensor's header; only the first part has one."""
        if self.format is None or self.block is None or self.shape is None:
            raise ValueError("only a tensor's first part has a header")
        return _header(self.format, self.block, self.shape, self.equalizer)


@functools.lru_cache(maxsize=64)  # the tensors of a batch are alike
def _header(code: int, block: int, shape: tuple[int, ...], equalizer: int | None) -> TensorHeader:
    try:
        known = Format(code)
    except ValueError:
        raise ValueError("DATA.format must be a known packed format") from None
    return TensorHeader(known, block, shape, equalizer)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Commit(Message):
    """Batch ``seq`` is complete; charged.

    Attributes:
        tensors: how many tensors were sent.
        size: packed bytes of all of them.
        checksum: CRC32C of all payloads of the batch in the order they were sent, those of compressed
            tensors as they were sent.
        samples: how many samples the batch holds.
        heldout: whether the batch is kept for evaluation and never trained on.

    """

    type = FrameType.COMMIT
    has_seq = True
    tensors: int = wire(integer(1, LENGTHS + 1 + LAST_TENSOR + 1 - EQUALIZERS))
    size: int = wire(integer(1, 2**48))
    checksum: int = wire(COUNT)
    samples: int = wire(integer(1, 2**31 - 1))
    heldout: bool = wire(boolean, False)

    def _check(self) -> None:
        if not self.seq:
            raise ValueError("COMMIT must have a batch number")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Abort(Message):
    """The device gives up batch ``seq``; its number may be used again."""

    type = FrameType.ABORT
    has_seq = True
    text: str = wire(SENTENCE, "")

    def _check(self) -> None:
        if not self.seq:
            raise ValueError("ABORT must have a batch number")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finish(Message):
    """No batch after ``seq`` will come; the server trains what is left of the epochs."""

    type = FrameType.FINISH
    has_seq = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Message):
    """All epochs have been trained.

    Attributes:
        steps: optimizer steps due in all epochs, those of batches without a finite loss among them.
        loss: mean training loss of the last epoch; None when no step of it had a finite loss.

    """

    type = FrameType.FINISHED
    steps: int = wire(SEQ)
    loss: float | None = wire(optional(number()), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Eval(Message):
    """Ask for an evaluation of the side network as it is now on the held-out batches."""

    type = FrameType.EVAL


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Message):
    """The answer to EVAL.

    Attributes:
        steps: optimizer steps behind the weights that were evaluated.
        samples: held-out samples.
        values: for example ``loss`` and ``accuracy``.

    """

    type = FrameType.EVALUATED
    steps: int = wire(SEQ)
    samples: int = wire(COUNT)
    values: dict[str, float] = wire(mapping(number()))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pull(Message):
    """Ask for the side network's weights as they are now."""

    type = FrameType.PULL


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weights(Message):
    """Part of the weights, a safetensors file.

    Attributes:
        digest: SHA-256 of the whole file.
        total: its length in bytes.
        offset: where ``payload`` belongs; parts come in order.
        steps: optimizer steps behind these weights.

    """

    type = FrameType.WEIGHTS
    digest: bytes = wire(octets(32))
    total: int = wire(integer(1, 2**48))
    offset: int = wire(SIZE)
    steps: int = wire(SEQ)
    payload: bytes | memoryview = wire(buffer)

    def _check(self) -> None:
        size = len(self.payload)
        if not size or self.offset + size > self.total:
            raise ValueError("WEIGHTS.payload must not be empty and must end inside total")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Detach(Message):
    """The device leaves the session; the stream's number may be used again."""

    type = FrameType.DETACH


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ack(Message):
    """Three cumulative batch numbers, each at most the one before.

    Attributes:
        received: every batch up to this one has arrived whole.
        durable: every batch up to this one is in the activation log and on the disk.
        applied: every batch up to this one has been trained on (or kept, if held out).

    """

    type = FrameType.ACK
    received: int = wire(SEQ)
    durable: int = wire(SEQ)
    applied: int = wire(SEQ)

    def _check(self) -> None:
        _check_progress(self)


def _check_progress(message: Ack | Opened) -> None:
    if not message.applied <= message.durable <= message.received:
        raise ValueError(f"{message.type.name} must have applied <= durable <= received")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Credit(Message):
    """How far the device may go; both figures are absolute and lower ones are ignored.

    Attributes:
        offset: charged bytes of this stream since it was attached.
        last: highest batch number.

    """

    type = FrameType.CREDIT
    offset: int = wire(SIZE)
    last: int = wire(SEQ)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gap(Message):
    """Batch ``seq`` was dropped: the server expects batch ``expected`` next."""

    type = FrameType.GAP
    has_seq = True
    expected: int = wire(SEQ)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metrics(Message):
    """How training goes; may be dropped.

    Attributes:
        step: optimizer steps so far, counted as in FINISHED.
        epoch: epoch of the last step, from 1.
        loss: mean training loss since the last METRICS; None before the first step.
        lr: learning rate of the last step.
        queue: batches that have arrived and wait for training.
        busy: seconds the training worker has spent on this session.
        spans: the server's timings since the last METRICS, if the spec asks for them: kind
            (0 receive, 1 train, 2 log), batch number, start and duration in microseconds of the
            server's monotonic clock.

    """

    type = FrameType.METRICS
    step: int = wire(SEQ)
    epoch: int = wire(COUNT)
    loss: float | None = wire(optional(number()), None)
    lr: float = wire(number(0.0, 1e6), 0.0)
    queue: int = wire(COUNT, 0)
    busy: float = wire(number(0.0), 0.0)
    spans: tuple[tuple[int, ...], ...] = wire(items(items(SEQ, 4, 4)), ())
