"""A device that sends a server what it likes, for the tests of this directory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import crc32c

from mobillm.protocol import Ack, Commit, Credit, Data, Error, Message, Open, Opened
from mobillm.server.batch import Batch
from mobillm.spec import SessionSpec
from mobillm.transport import Connection, Server, connect
from tests.sessions import QUICK, TOKEN

__all__ = ["Raw", "messages_of", "raw"]

M = TypeVar("M", bound=Message)


def messages_of(batch: Batch) -> list[Message]:
    """Return the messages of a batch on stream 1: each tensor in one part, then COMMIT."""
    messages: list[Message] = []
    checksum = 0
    for number, header in batch.headers.items():
        head = {"format": int(header.format), "block": header.block, "shape": header.shape}
        part: Any = {"stream": 1, "seq": batch.seq, "tensor": number, "offset": 0, **head}
        payload = memoryview(batch.payloads[number])
        zstd = len(payload) if number in batch.compressed else None
        messages.append(Data(**part, zstd=zstd, payload=payload))
        checksum = crc32c.crc32c(batch.payloads[number], checksum)
    figures: Any = {"tensors": len(messages), "size": batch.size, "checksum": checksum}
    commit = Commit(stream=1, seq=batch.seq, samples=batch.samples, heldout=batch.heldout, **figures)
    return [*messages, commit]


class Raw:
    """A device that sends single messages and keeps all it is told."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.seen: list[Message] = []

    async def get(self, *kinds: type[M], stream: int = 1) -> M:
        """Return the next message of one of these types; what comes before is only kept."""
        async with asyncio.timeout(10.0):
            while True:
                message = await self.connection.recv()
                self.seen.append(message)
                if isinstance(message, kinds) and message.stream == stream:
                    return message

    async def open(self, session: SessionSpec | bytes, stream: int = 1) -> Opened | Error:
        """Send OPEN and return its answer."""
        if isinstance(session, bytes):
            self.connection.post(Open(stream=stream, session=session))
        else:
            self.connection.post(Open(stream=stream, spec=session.to_map()))
        return await self.get(Opened, Error, stream=stream)

    async def opened(self, session: SessionSpec | bytes, stream: int = 1) -> Opened:
        """Send OPEN, which must be answered by OPENED and CREDIT."""
        answer = await self.open(session, stream)
        assert isinstance(answer, Opened), answer
        await self.get(Credit, stream=stream)
        return answer

    async def batch(self, batch: Batch, *, commit: bool = True) -> None:
        """Send a batch on stream 1, whole or without its COMMIT."""
        for message in messages_of(batch)[: None if commit else -1]:
            await self.connection.send(message)

    async def applied(self, seq: int) -> None:
        """Wait until a batch was trained on."""
        while (await self.get(Ack)).applied < seq:
            pass

    def of(self, kind: type[M]) -> list[M]:
        """Return what was seen of one type."""
        return [message for message in self.seen if isinstance(message, kind)]


@contextlib.asynccontextmanager
async def raw(server: Server, **options: Any) -> AsyncIterator[Raw]:
    """Yield a device that is connected to a server."""
    settings: dict[str, Any] = {"token": TOKEN, "timeouts": QUICK}
    async with connect(server.address, **(settings | options)) as connection:
        yield Raw(connection)
