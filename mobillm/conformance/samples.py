"""A tiny session and its batches, and one valid message of each type."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import crc32c
import numpy as np

from ..codec import pack, pack_integers
from ..formats import Format, packed_size
from ..protocol import LENGTHS, TARGETS, FrameType
from .wire import frame

__all__ = ["BLOB", "HIDDEN", "LABELS", "Batch", "Tensor", "spec", "tiny_batch", "valid"]

HIDDEN = 32
BLOCK = 32
LABELS = 2
SAMPLES = 2
TOKENS = 3

BLOB = b"the content of a blob " * 32


def spec(**changes: Any) -> dict[str, Any]:
    """Return the map of a spec that costs a server next to nothing; ``changes`` replace top-level fields."""
    values: dict[str, Any] = {
        "task": "classification",
        "outputs": LABELS,
        "model": {"name": "conformance", "hidden_size": HIDDEN, "layers": 2, "taps": [2]},
        "side": {"kind": "head"},
        "optimizer": {"schedule": "constant"},
        "codec": {"format": "asym4", "block": BLOCK},
    }
    return {key: value for key, value in (values | changes).items() if value is not ...}


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """One packed tensor of a batch; what its DATA frames say need not be true.

    Attributes:
        number: of the tensor in the batch.
        format, block, shape: what the first part states.
        payload: the packed bytes, or a zstd frame.
        equalizer, zstd: what the first part states; None: nothing.
        nil: keys that the first part has, with nil.

    """

    number: int
    format: int
    block: int
    shape: tuple[int, ...]
    payload: bytes
    equalizer: int | None = None
    zstd: Any = None
    nil: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Packed bytes, as COMMIT states them."""
        if self.zstd is None:
            return len(self.payload)
        return packed_size(Format(self.format), self.block, self.shape)

    def parts(self, seq: int, *, stream: int = 1, size: int = 1 << 16) -> list[bytes]:
        """Return the DATA frames, with at most ``size`` bytes of payload each."""
        frames = []
        for offset in range(0, max(1, len(self.payload)), size):
            values: dict[str, Any] = {"tensor": self.number, "offset": offset}
            if offset == 0:
                values |= {"format": self.format, "block": self.block, "shape": list(self.shape)}
                values |= {} if self.equalizer is None else {"equalizer": self.equalizer}
                values |= {} if self.zstd is None else {"zstd": self.zstd}
                values |= dict.fromkeys(self.nil)
            payload = self.payload[offset : offset + size]
            frames.append(frame(FrameType.DATA, values, payload, stream=stream, seq=seq))
        return frames


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """One batch; ``dataclasses.replace`` makes a wrong one of it.

    Attributes:
        seq: its number.
        tensors: in the order they are sent.
        samples: as COMMIT states them.
        commit: further fields of COMMIT, which replace the right ones.

    """

    seq: int
    tensors: Sequence[Tensor]
    samples: int = SAMPLES
    commit: tuple[tuple[str, Any], ...] = ()

    def data(self, *, stream: int = 1, size: int = 1 << 16) -> list[bytes]:
        """Return the DATA frames."""
        return [part for t in self.tensors for part in t.parts(self.seq, stream=stream, size=size)]

    def end(self, *, stream: int = 1) -> bytes:
        """Return the COMMIT frame."""
        checksum = 0
        for tensor in self.tensors:
            checksum = crc32c.crc32c(tensor.payload, checksum)
        values: dict[str, Any] = {
            "tensors": len(self.tensors),
            "size": sum(tensor.size for tensor in self.tensors),
            "checksum": checksum,
            "samples": self.samples,
        }
        values |= dict(self.commit)
        values = {key: value for key, value in values.items() if value is not ...}
        return frame(FrameType.COMMIT, values, stream=stream, seq=self.seq)

    def frames(self, *, stream: int = 1, size: int = 1 << 16) -> list[bytes]:
        """Return all frames of the batch."""
        return [*self.data(stream=stream, size=size), self.end(stream=stream)]

    def replaced(self, number: int, **changes: Any) -> Batch:
        """Return a batch with one tensor changed."""
        tensors = [dataclasses.replace(t, **changes) if t.number == number else t for t in self.tensors]
        return dataclasses.replace(self, tensors=tensors)


def integers(number: int, values: Sequence[int]) -> Tensor:
    """Return a tensor of 32-bit integers."""
    packed = pack_integers(list(values), "values")
    return Tensor(number, Format.I32, 0, packed.header.shape, bytes(packed.payload))


def tiny_batch(seq: int, *, heldout: bool = False, variant: int = 0) -> Batch:
    """Return a valid batch of :func:`spec`: two samples of two tokens and one.

    Args:
        seq: its number, which its values depend on.
        heldout: whether it is kept for evaluation.
        variant: other values for the same number.

    """
    generator = np.random.default_rng([seq, variant])
    values = generator.standard_normal((TOKENS, HIDDEN)).astype(np.float32)
    packed = pack(values, Format.ASYM4, BLOCK, "tap")
    tap = Tensor(0, Format.ASYM4, BLOCK, (TOKENS, HIDDEN), bytes(packed.payload))
    tensors = (integers(LENGTHS, [2, 1]), integers(TARGETS, [seq % 2, 1]), tap)
    return Batch(seq, tensors, commit=(("heldout", True),) if heldout else ())


def valid(kind: FrameType, *, stream: int = 1) -> bytes:
    """Return a frame of a type whose fields are all in range; what it means may be out of place."""
    digest = hashlib.sha256(BLOB).digest()
    values: dict[FrameType, dict[str, Any]] = {
        FrameType.HELLO: {"min_version": 1, "max_version": 1, "tenant": "nobody", "nonce": bytes(16)},
        FrameType.CHALLENGE: {"version": 1, "nonce": bytes(16)},
        FrameType.AUTH: {"mac": bytes(32)},
        FrameType.WELCOME: {
            "mac": bytes(32),
            "frame": 1 << 20,
            "batch": 1 << 20,
            "blob": 1 << 20,
            "streams": 8,
        },
        FrameType.REJECT: {"code": 25},
        FrameType.OPEN: {"spec": spec()},
        FrameType.OPENED: {"session": bytes(16), "epoch": 1},
        FrameType.BLOB: {"digest": digest, "total": len(BLOB), "offset": 0},
        FrameType.STORED: {"digest": digest},
        FrameType.FINISHED: {"steps": 1},
        FrameType.EVALUATED: {"steps": 1, "samples": 0, "values": {}},
        FrameType.WEIGHTS: {"digest": digest, "total": len(BLOB), "offset": 0, "steps": 1},
        FrameType.ACK: {"received": 0, "durable": 0, "applied": 0},
        FrameType.CREDIT: {"offset": 1 << 20, "last": 8},
        FrameType.GAP: {"expected": 1},
        FrameType.METRICS: {"step": 0, "epoch": 1},
        FrameType.PING: {"data": b"12345678"},
        FrameType.PONG: {"data": b"12345678"},
        FrameType.ERROR: {"code": 28},
        FrameType.GOAWAY: {"code": 0},
    }
    batch = tiny_batch(1)
    if kind is FrameType.DATA:
        return batch.data(stream=stream)[0]
    if kind is FrameType.COMMIT:
        return batch.end(stream=stream)
    payload = BLOB if kind.has_payload else None
    return frame(kind, values.get(kind), payload, stream=stream, seq=1 if kind is FrameType.ABORT else 0)
