"""Batches as the server holds them: packed, exactly as they were before their tensors were compressed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ..codec import check_headers, unpack
from ..errors import ConfigError
from ..formats import Format, row_size
from ..protocol import EQUALIZERS, LENGTHS, TARGETS, Commit, Data, TensorHeader, decompress
from ..spec import IGNORED, SessionSpec

__all__ = ["Batch", "BatchBuilder", "Slice", "join"]


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """One whole batch.

    Attributes:
        seq: its number.
        samples: how many samples it holds.
        heldout: whether it is kept for evaluation only.
        headers: header of each tensor, by tensor number.
        payloads: packed bytes of each tensor, by tensor number; for those in ``compressed`` the zstd frame
            that holds them.
        compressed: tensors that are not decompressed yet.
        sent: CRC32C of the payloads as they were sent; None where that is the one of the packed bytes.

    """

    seq: int
    samples: int
    heldout: bool
    headers: Mapping[int, TensorHeader]
    payloads: Mapping[int, bytes | memoryview]
    compressed: frozenset[int] = frozenset()
    sent: int | None = None

    @property
    def size(self) -> int:
        """Packed bytes of all tensors."""
        return sum(header.size for header in self.headers.values())

    def decompressed(self) -> Batch:
        """Return the batch with the packed bytes of all tensors; takes as long as they are many.

        Raises:
            RemoteProtocolError: a frame is not one of exactly the bytes that the tensor's header announces.

        """
        payloads = dict(self.payloads)
        for tensor in self.compressed:
            payloads[tensor] = decompress(payloads[tensor], self.headers[tensor].size)
        return dataclasses.replace(self, payloads=payloads, compressed=frozenset())

    def lengths(self) -> list[int]:
        """Return the tokens of each sample."""
        lengths: list[int] = unpack(self.headers[LENGTHS], self.payloads[LENGTHS]).tolist()
        return lengths

    def check(self, spec: SessionSpec) -> None:
        """Check the batch against its session's spec.

        Raises:
            ConfigError: a tensor is missing, superfluous, compressed although the spec does not say so, or
                does not fit the spec or the others.

        """
        if self.sent is not None and spec.codec.compression == "none":
            raise ConfigError("tensors", "compressed", "packed bytes: codec.compression is none")
        check_headers(spec, self.headers, self.samples)
        lengths = self.lengths()
        tokens = self.headers[0].shape[0]
        if min(lengths) < 1 or sum(lengths) != tokens:
            raise ConfigError(
                "lengths", f"a sum of {sum(lengths)}", f"positive lengths with the sum {tokens}"
            )
        if spec.task == "regression":
            if not np.isfinite(unpack(self.headers[TARGETS], self.payloads[TARGETS])).all():
                raise ConfigError("targets", "a value that is not finite", "finite numbers")
            return
        targets = unpack(self.headers[TARGETS], self.payloads[TARGETS])
        wrong = (targets < 0) | (targets >= spec.outputs)
        if spec.task == "causal-lm":
            wrong &= targets != IGNORED
            if spec.tokens == "loss" and (targets == IGNORED).any():
                raise ConfigError("targets", IGNORED, "only tokens with a target, as spec.tokens is loss")
        if wrong.any():
            raise ConfigError("targets", int(targets[wrong][0]), f"numbers from 0 to {spec.outputs - 1}")


# Parts shorter than the one are gathered in buffers of about the other, in bytes.
SMALL = 4096
GATHERED = 65536


class BatchBuilder:
    """Collect the parts of one batch after another; the protocol core has checked their order.

    Attributes:
        seq: number of the open batch; 0 when there is none.
        held: payload bytes of the open batch, as they were sent.

    """

    def __init__(self) -> None:
        self.clear()

    def add(self, message: Data) -> None:
        """Take one part in."""
        self.seq = message.seq
        self.held += len(message.payload)
        if message.shape is not None:
            self._headers[message.tensor] = message.header()
            self._parts[message.tensor] = []
            if message.zstd is not None:
                self._compressed.add(message.tensor)
        parts, payload = self._parts[message.tensor], message.payload
        if parts and isinstance(parts[-1], bytearray) and len(parts[-1]) < GATHERED:
            parts[-1] += payload
        else:
            # An object for each part would cost hundreds of bytes for a part of one.
            parts.append(bytearray(payload) if len(payload) < SMALL else payload)

    def build(self, message: Commit) -> Batch:
        """Return the batch that COMMIT ends, and begin anew."""
        payloads = {tensor: _joined(parts) for tensor, parts in self._parts.items()}
        batch = Batch(
            message.seq,
            message.samples,
            message.heldout,
            self._headers,
            payloads,
            frozenset(self._compressed),
            message.checksum if self._compressed else None,
        )
        self.clear()
        return batch

    def clear(self) -> None:
        """Forget what has been collected."""
        self.seq = 0
        self.held = 0
        self._headers: dict[int, TensorHeader] = {}
        self._parts: dict[int, list[bytes | bytearray | memoryview]] = {}
        self._compressed: set[int] = set()


def _joined(parts: list[bytes | bytearray | memoryview]) -> memoryview:
    return memoryview(parts[0] if len(parts) == 1 else bytearray().join(parts))


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """One sample of a batch: which sample it is and which rows of the taps are its tokens."""

    batch: Batch
    sample: int
    start: int
    stop: int


def join(slices: Sequence[Slice], *, targets_by_token: bool) -> list[Batch]:
    """Make a batch of samples of other batches without unpacking them.

    Rows of a packed tensor do not depend on one another (``formats``), so they are copied as bytes.

    Args:
        slices: samples of batches of one session.
        targets_by_token: whether there is a target for each token, not for each sample.

    Returns:
        the batch in parts, one for each way in which taps were packed, in the order of their first samples.

    """
    alike: dict[tuple[_Packing, ...], list[Slice]] = {}
    for item in slices:
        alike.setdefault(_packings(item.batch), []).append(item)
    return [_join_alike(group, targets_by_token) for group in alike.values()]


_Packing = tuple[Format, int, int | None]


def _packings(batch: Batch) -> tuple[_Packing, ...]:
    taps = sorted(tensor for tensor in batch.headers if tensor < TARGETS)
    headers = [batch.headers[tap] for tap in taps]
    return tuple((header.format, header.block, header.equalizer) for header in headers)


def _join_alike(slices: Sequence[Slice], targets_by_token: bool) -> Batch:
    headers: dict[int, TensorHeader] = {}
    payloads: dict[int, bytes | memoryview] = {}
    for tensor in slices[0].batch.headers:
        if tensor >= EQUALIZERS:
            continue
        by_token = targets_by_token if tensor == TARGETS else tensor != LENGTHS
        headers[tensor], payloads[tensor] = _join_rows(slices, tensor, by_token)
    return Batch(0, len(slices), False, headers, payloads)


def _join_rows(slices: Sequence[Slice], tensor: int, by_token: bool) -> tuple[TensorHeader, memoryview]:
    header = slices[0].batch.headers[tensor]
    # A tensor of rank 1 is one packed row; ``check_headers`` lets only plain formats be used for those.
    width = 1 if len(header.shape) == 1 else header.shape[1]
    size = row_size(header.format, header.block, width)
    parts = []
    rows = 0
    for item in slices:
        start, stop = (item.start, item.stop) if by_token else (item.sample, item.sample + 1)
        parts.append(memoryview(item.batch.payloads[tensor])[start * size : stop * size])
        rows += stop - start
    shape = (rows, *header.shape[1:])
    return dataclasses.replace(header, shape=shape), memoryview(bytearray().join(parts))
