"""A batch on its way: its tensors in parts, as credit and the link allow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..codec import Equalizer, PackedTensor, check_headers
from ..protocol import EQUALIZERS, Abort, Commit, Data, TensorHeader

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Batch"]


class Batch:
    """One batch while it is being sent; made by :meth:`Session.begin`.

    Tensors are sent one after another, each as soon as it exists, so that the first layers are on the
    wire while later ones compute. :meth:`commit` ends the batch.

    Attributes:
        seq: the batch's number.
        equalizers: those that it brings to the server, by tap, each with this batch's number.

    """

    def __init__(self, session: Session, seq: int, samples: int, heldout: bool) -> None:
        self.seq = seq
        self.equalizers: dict[int, tuple[int, Equalizer]] = {}
        self._session = session
        self._samples = samples
        self._heldout = heldout
        self._headers: dict[int, TensorHeader] = {}

    async def send(self, tensor: int, packed: PackedTensor) -> None:
        """Send one tensor in parts, as credit and the link allow; its equalizer first if the server lacks it.

        Cancelling leaves the batch unfinished; :meth:`abort` it before the next one begins.

        Args:
            tensor: number of the tap in the spec, or ``TARGETS`` or ``LENGTHS``.
            packed: the tensor; its memory must not change any more.

        Raises:
            RemoteError: the server ended the session.
            ConnectionClosed: the connection is gone.

        """
        session = self._session
        session.check()
        if packed.equalizer is not None and tensor not in session.equalizers | self.equalizers:
            self.equalizers[tensor] = (self.seq, packed.equalizer)
            await self.send(EQUALIZERS + tensor, packed.equalizer.packed)
        if packed.compressed and not session.compresses:  # kept since a connection that had it
            packed = await asyncio.to_thread(packed.plain)
        header, payload, size = packed.header, packed.payload, packed.payload.nbytes
        chunk = session.connection.endpoint.limits.chunk
        for offset in range(0, size, chunk):
            first = offset == 0
            await session.send(
                Data(
                    stream=session.stream,
                    seq=self.seq,
                    tensor=tensor,
                    offset=offset,
                    format=int(header.format) if first else None,
                    block=header.block if first else None,
                    shape=header.shape if first else None,
                    equalizer=header.equalizer if first else None,
                    zstd=size if first and packed.compressed else None,
                    payload=payload[offset : offset + chunk],
                )
            )
        self._headers[tensor] = header

    async def commit(self) -> None:
        """End the batch; the server trains on it once it is durable.

        Raises:
            ConfigError: the tensors are not those that the spec asks for; the batch is still open.
            RemoteError: the server ended the session.
            ConnectionClosed: the connection is gone.

        """
        session = self._session
        session.check()
        check_headers(session.spec, self._headers, self._samples)
        tensors, size, checksum = session.connection.endpoint.batch_summary(session.stream)
        await session.send(
            Commit(
                stream=session.stream,
                seq=self.seq,
                tensors=tensors,
                size=size,
                checksum=checksum,
                samples=self._samples,
                heldout=self._heldout,
            )
        )
        session.sent = self.seq
        session.equalizers |= self.equalizers

    def abort(self) -> None:
        """Give the batch up; its number is used again."""
        connection, stream = self._session.connection, self._session.stream
        if connection.is_open and connection.endpoint.is_uploading(stream):
            connection.post(Abort(stream=stream, seq=self.seq))
