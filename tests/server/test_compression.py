"""Compressed tensors as the server takes them in: right ones, hostile ones, and while others wait."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import threading
from typing import Any

import pytest

from mobillm.conformance.zstd import LONGEST, repeated, zstd_frame
from mobillm.device.packing import pack_batch
from mobillm.device.taps import TapPacker
from mobillm.errors import ConnectionClosedError, ErrorCode, RemoteProtocolError
from mobillm.options import Limits
from mobillm.protocol import CAPABILITY, Ack, Commit, Credit, Error, Gap
from mobillm.server.batch import Batch
from mobillm.server.session import Session
from mobillm.transport import Server
from tests.conftest import Run
from tests.server.raw import Raw, messages_of, raw
from tests.sessions import as_batch, device, serving, sparse, spec

SPEC = spec(codec=dataclasses.replace(spec().codec, compression="zstd", equalize=False))


def compressed(seq: int, content: int | None = None) -> Batch:
    """Return a batch whose taps are compressed."""
    data = sparse(seq if content is None else content)
    tensors = pack_batch(SPEC, data.taps, data.lengths, data.targets, TapPacker(SPEC, None, compress=True))
    batch = as_batch(tensors, seq, len(data.lengths))
    assert batch.compressed == {0, 1}
    return batch


def corrupt(batch: Batch, frame: bytes | None = None) -> Batch:
    """Return a batch with another frame for its first tap, or one of its bytes changed."""
    wrong = bytearray(batch.payloads[0])
    wrong[-1] ^= 0xFF
    wrong[len(wrong) // 2] ^= 0xFF
    payload = bytes(wrong) if frame is None else frame
    return dataclasses.replace(batch, payloads={**batch.payloads, 0: payload})


def dial(server: Server, **options: Any) -> Any:
    """Connect a device that offers the capability."""
    return raw(server, caps=(CAPABILITY,), **options)


async def ended(peer: Raw) -> ConnectionClosedError:
    """Wait for the end of the connection."""
    with pytest.raises(ConnectionClosedError) as caught:
        await peer.get(Commit)
    return caught.value


SIZE = compressed(1).headers[0].size
BOMB = zstd_frame([repeated(0, LONGEST)] * (SIZE // 8), 1 << 25, window=17)


@pytest.mark.parametrize(
    "frame",
    [
        None,
        BOMB,
        zstd_frame([repeated(0, 1)] * (SIZE // 8) + [repeated(1, SIZE)], SIZE),
        zstd_frame([repeated(0, 1)] * (SIZE // 8), None, window=12),
        bytes(SIZE // 2),
    ],
    ids=["damaged", "bomb", "more than it states", "no size", "zeros"],
)
def test_a_bad_frame_ends_the_connection_only(
    run_once: Run, tmp_path: pathlib.Path, frame: bytes | None
) -> None:
    """[Z-6] [Z-9] [Z-10] [F-7] DECOMPRESS on stream 0; the session goes on with the next connection."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            async with dial(server) as peer, dial(server) as other:
                opened = await peer.opened(SPEC)
                await other.opened(SPEC)
                await peer.batch(compressed(1))
                await peer.applied(1)
                for message in [*messages_of(corrupt(compressed(2), frame)), *messages_of(compressed(3))]:
                    await peer.connection.send(message)
                exc = await ended(peer)
                assert exc.code == ErrorCode.DECOMPRESS
                assert exc.text.startswith("a compressed tensor ")
                await other.batch(compressed(1))
                await other.applied(1)
            async with dial(server) as peer:
                again = await peer.opened(opened.session)
                assert (again.received, again.durable, again.applied) == (1, 1, 1)
                for seq in (2, 3):
                    await peer.batch(compressed(seq))
                await peer.applied(3)

    run_once(main())


def test_opening(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[Z-13] [Z-12] A spec that asks for zstd needs the capability; attaching does not."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            async with dial(server) as peer:
                name = (await peer.opened(SPEC)).session
            async with raw(server) as peer:
                error = await peer.open(SPEC, stream=2)
                assert isinstance(error, Error)
                assert (error.code, error.seq) == (ErrorCode.SCHEMA_MISMATCH, 0)
                assert "codec.compression" in error.text
                await peer.opened(name)
                plain = compressed(1).decompressed()
                await peer.batch(plain)
                await peer.applied(1)
            async with dial(server) as peer:
                await peer.opened(dataclasses.replace(SPEC, codec=spec().codec))
                await peer.batch(compressed(1))
                error = await peer.get(Error)
                assert (error.code, error.seq) == (ErrorCode.SCHEMA_MISMATCH, 1)
                assert "codec.compression is none" in error.text
                await peer.batch(plain)
                await peer.applied(1)

    run_once(main())


def test_the_same_bytes_again(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[X-14] [X-15] [Z-11] [Z-15] The checksum of what was sent tells, after a restart too."""

    async def main() -> None:
        async with serving(tmp_path) as server, dial(server) as peer:
            name = (await peer.opened(SPEC)).session
            await peer.batch(compressed(1))
            await peer.applied(1)
        async with serving(tmp_path) as server:
            async with dial(server) as peer:
                assert (await peer.opened(name)).durable == 1
                await peer.batch(compressed(1))
                assert (await peer.get(Ack)).received == 1
                await peer.batch(corrupt(compressed(9)))
                assert (await peer.get(Gap)).expected == 2
                await peer.batch(corrupt(compressed(1)))
                error = await peer.get(Error)
                assert (error.code, error.seq) == (ErrorCode.SEQ_REUSE, 0)
                assert peer.connection.is_open
            async with dial(server) as peer:
                await peer.opened(name)
                await peer.batch(compressed(1).decompressed())
                assert (await peer.get(Error)).code == ErrorCode.SEQ_REUSE

    run_once(main())


async def until(condition: Any) -> None:
    """Wait for something that the loop will make true."""
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0.002)


def test_while_a_batch_is_decompressed(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[S-5] [Z-14] Its packed bytes count for credit; if the stream fails meanwhile, it was not received."""
    going, go_on = threading.Event(), threading.Event()
    decompressed = Batch.decompressed

    def slowly(batch: Batch) -> Batch:
        going.set()
        assert go_on.wait(10.0)
        return decompressed(batch)

    async def main() -> None:
        sessions: list[Session] = []
        init = Session.__init__

        def noted(self: Session, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            sessions.append(self)

        monkeypatch.setattr(Session, "__init__", noted)
        limits = Limits(queue=1 << 22, frame=1 << 20)
        async with serving(tmp_path, limits=limits) as server, dial(server) as old, dial(server) as new:
            name = (await old.opened(SPEC)).session
            monkeypatch.setattr(Batch, "decompressed", slowly)
            batch = compressed(1)
            await old.batch(batch)
            await until(going.is_set)
            (session,) = sessions
            assert session.received == 0
            session.observer.acknowledge()
            grant = await old.get(Credit)
            used = old.connection.endpoint.credit_used(1)
            # More packed bytes are held than were sent, so what was granted at first is all there is.
            assert used < batch.size
            assert grant.offset == old.of(Credit)[0].offset == limits.queue
            session.observer.fail(ErrorCode.SERVER_BUSY, "no room")
            go_on.set()
            assert (await old.get(Error)).code == ErrorCode.SERVER_BUSY
            assert (await new.opened(name)).received == 0
            await new.batch(batch)
            await new.applied(1)
            assert session.received == 1

    run_once(main())


def test_a_device_sees_why(run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[E-11] DECOMPRESS is no error after which a device comes back by itself."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(SPEC)
            monkeypatch.setattr("mobillm.server.batch.decompress", _refuse)
            data = sparse(1)
            await session.submit(data.taps, data.lengths, data.targets)
            with pytest.raises(ConnectionClosedError) as caught:
                await session.wait_durable()
            assert caught.value.code == ErrorCode.DECOMPRESS

    run_once(main())


def _refuse(frame: bytes, size: int) -> memoryview:
    raise RemoteProtocolError(ErrorCode.DECOMPRESS, f"{len(frame)} of {size}")
