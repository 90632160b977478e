"""What the specification demands of a device, against a server that says what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mobillm.device import Client, connect
from mobillm.device.packing import pack_batch
from mobillm.errors import ErrorCode, LocalProtocolError, RemoteError, RemoteProtocolError
from mobillm.protocol import (
    Ack,
    Blob,
    Bye,
    Credit,
    Data,
    Detach,
    Error,
    Goaway,
    Message,
    Metrics,
    Open,
    Opened,
    Pull,
    Stored,
    Weights,
)
from mobillm.transport import Connection, serve
from tests.conftest import Run
from tests.sessions import KEYS, QUICK, TOKEN, arrays, spec

Script = Callable[[Connection, list[Message]], Awaitable[None]]
SESSION = bytes(range(16))


@contextlib.asynccontextmanager
async def scripted(script: Script, seen: list[Message]) -> AsyncIterator[Client]:
    """Yield a device whose server runs a script and then only listens; ``seen`` gets what it is sent."""

    async def handler(connection: Connection) -> None:
        await script(connection, seen)
        async for message in connection:
            seen.append(message)
            if isinstance(message, Detach):
                connection.post(Detach(stream=message.stream))
            if isinstance(message, Bye):
                return

    async with (
        await serve(handler, "127.0.0.1:0", keys=KEYS, timeouts=QUICK) as server,
        connect(server.address, token=TOKEN, timeouts=QUICK) as client,
    ):
        yield client


async def answer_open(connection: Connection, seen: list[Message], **opened: Any) -> None:
    """Answer OPEN and grant plenty of credit."""
    message = await connection.recv()
    seen.append(message)
    assert isinstance(message, Open)
    settings: dict[str, Any] = {"session": SESSION, "epoch": 1, **opened}
    connection.post(Opened(stream=message.stream, **settings))
    connection.post(Credit(stream=message.stream, offset=1 << 24, last=100))


def test_missing_blobs_come_before_the_first_batch(run_once: Run) -> None:
    """[O-5] [O-21] The device sends the blob and waits for STORED before anything of a batch."""
    content = bytes(range(256)) * 8
    digest = hashlib.sha256(content).digest()
    seen: list[Message] = []
    may_store = asyncio.Event()

    async def script(connection: Connection, seen: list[Message]) -> None:
        await answer_open(connection, seen, missing=(digest,))
        part = await connection.recv()
        assert isinstance(part, Blob)
        assert (part.digest, part.total, bytes(part.payload)) == (digest, len(content), content)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.recv()
        may_store.set()
        connection.post(Stored(stream=1, digest=digest))

    async def main() -> None:
        async with scripted(script, seen) as client:
            session = await client.open(spec(), blobs=[content])
            assert may_store.is_set()
            data = arrays(1)
            await session.submit(data.taps, data.lengths, data.targets)
            await client.close()
        assert isinstance(seen[1], Data)

    run_once(main())


def test_a_resumed_session_goes_on_where_the_server_says(run_once: Run) -> None:
    """[X-3] [B-1] The first batch after attaching is `received` + 1."""
    seen: list[Message] = []

    async def script(connection: Connection, seen: list[Message]) -> None:
        await answer_open(connection, seen, epoch=3, received=4, durable=3, applied=2)

    async def main() -> None:
        async with scripted(script, seen) as client:
            session = await client.attach(SESSION, spec())
            assert (session.received, session.durable, session.applied) == (4, 3, 2)
            data = arrays(5)
            assert await session.submit(data.taps, data.lengths, data.targets) == 5
            await client.close()
        assert isinstance(seen[0], Open)
        assert seen[0].session == SESSION
        assert {message.seq for message in seen if isinstance(message, Data)} == {5}

    run_once(main())


def test_durable_is_what_the_device_waits_for(run_once: Run) -> None:
    """[X-11] [X-6] `received` does not release a batch; a merged ACK with `durable` does."""

    async def script(connection: Connection, seen: list[Message]) -> None:
        await answer_open(connection, seen)
        connection.post(Ack(stream=1, received=2, durable=0, applied=0))
        await asyncio.sleep(0.05)
        connection.post(Ack(stream=1, received=2, durable=2, applied=0))

    async def main() -> None:
        async with scripted(script, []) as client:
            session = await client.open(spec())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await session.wait_durable(2)
            await session.wait_durable(2)
            assert (session.received, session.durable, session.applied) == (2, 2, 0)

    run_once(main())


@pytest.mark.parametrize("good", [True, False])
def test_weights_are_checked_before_they_are_used(run_once: Run, good: bool) -> None:
    """[W-10] A file without its digest is never returned."""
    content = bytes(range(200))

    async def script(connection: Connection, seen: list[Message]) -> None:
        await answer_open(connection, seen)
        assert isinstance(await connection.recv(), Pull)
        digest = hashlib.sha256(content).digest() if good else bytes(32)
        for offset in (0, 150):
            part = content[offset : offset + 150]
            head: Any = {"digest": digest, "total": len(content), "offset": offset, "steps": 1}
            connection.post(Weights(stream=1, **head, payload=part))

    async def main() -> None:
        async with scripted(script, []) as client:
            session = await client.open(spec())
            if good:
                assert await session.pull() == content
            else:
                with pytest.raises(RemoteProtocolError) as caught:
                    await session.pull()
                assert caught.value.code == ErrorCode.SCHEMA_MISMATCH

    run_once(main())


@pytest.mark.parametrize("text", ["", "attached elsewhere", "SEQ_REUSE"])
@pytest.mark.parametrize("code", [ErrorCode.SESSION_TAKEN_OVER, 4_000_000])
def test_the_code_of_an_error_counts(run_once: Run, code: int, text: str) -> None:
    """[E-3] [V-6] [X-17] Known or not, whatever its text, it ends the session, which is not opened again."""
    seen: list[Message] = []

    async def script(connection: Connection, seen: list[Message]) -> None:
        await answer_open(connection, seen)
        connection.post(Error(stream=1, code=code, text=text))

    async def main() -> None:
        async with scripted(script, seen) as client:
            session = await client.open(spec())
            with pytest.raises(RemoteError) as caught:
                await session.wait_durable(1)
            assert (caught.value.code, caught.value.text) == (code, text)
            await asyncio.sleep(0.03)
            assert client.connection.is_open
            await client.close()
        assert sum(isinstance(message, Open) for message in seen) == 1

    run_once(main())


def test_what_crosses_detach_is_ignored(run_once: Run) -> None:
    """[O-35] [O-36] METRICS that were under way change nothing; the number is used again."""
    seen: list[Message] = []

    async def script(connection: Connection, seen: list[Message]) -> None:
        await answer_open(connection, seen)
        assert isinstance(await connection.recv(), Detach)
        connection.post(Metrics(stream=1, step=5, epoch=1))
        connection.post(Detach(stream=1))
        await answer_open(connection, seen)

    async def main() -> None:
        async with scripted(script, seen) as client:
            session = await client.open(spec())
            await session.detach()
            assert session.metrics is None
            assert (await client.open(spec())).stream == session.stream == 1

    run_once(main())


def test_goaway_is_noted_and_the_session_goes_on(run_once: Run) -> None:
    """[K-3] [K-14] The device learns of it, and may end its batch and leave."""

    async def script(connection: Connection, seen: list[Message]) -> None:
        await answer_open(connection, seen)
        connection.post(Goaway(code=0, text="maintenance", grace=5.0))

    async def main() -> None:
        async with scripted(script, []) as client:
            session = await client.open(spec())
            data = arrays(1)
            tensors = pack_batch(spec(), data.taps, data.lengths, data.targets)
            batch = session.begin(len(data.lengths))
            for tensor, packed in tensors.items():
                await batch.send(tensor, packed)
            while client.draining is None:
                await asyncio.sleep(0.005)
            assert client.draining.grace == 5.0
            await batch.commit()
            await session.detach()
            with pytest.raises(LocalProtocolError):
                session.check()

    run_once(main())
