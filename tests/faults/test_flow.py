"""Rows 39 to 43b of the fault table: credit, training that stalls, and peers that do not read."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
import threading
from typing import Any

import numpy as np
import pytest

from mobillm.codec import pack
from mobillm.conformance.peer import Peer
from mobillm.conformance.samples import Batch, Tensor, integers, tiny_batch
from mobillm.conformance.wire import frame
from mobillm.errors import ConnectionClosed, ErrorCode
from mobillm.formats import Format
from mobillm.options import Limits
from mobillm.protocol import Credit, Data, FrameType, Goaway
from mobillm.server.batch import Batch as ServerBatch
from mobillm.server.trainer import Trainer
from mobillm.spec import SessionSpec
from tests.conftest import Run
from tests.faults.proxy import proxied
from tests.faults.scene import (
    BATCHES,
    SPEC,
    dial,
    eventually,
    rest,
    scene,
    send,
    undisturbed,
    uplink_to,
)
from tests.faults.weights import require_same
from tests.sessions import arrays
from tests.transport.wire import attach, pair

KIB = 1024
SMALL = Limits(
    frame=16 * KIB, chunk=4 * KIB, batch=128 * KIB, queue=64 * KIB, outbound=64 * KIB, batches=1000
)


def large_batch(seq: int, tokens: int) -> Batch:
    """Return a batch of two samples with many tokens of 20 bytes each."""
    values = np.random.default_rng(seq).standard_normal((tokens, 32)).astype(np.float32)
    packed = pack(values, Format.ASYM4, 32, "tap")
    tap = Tensor(0, Format.ASYM4, 32, (tokens, 32), bytes(packed.payload))
    lengths = integers(1001, [tokens - 1, 1])
    return Batch(seq, (lengths, integers(1000, [0, 1]), tap))


def resident() -> int:
    """Return the resident bytes of this process."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def stall(monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> None:
    """Let each training step wait for the gate."""
    step = Trainer.step

    def stalled(self: Trainer, batch: ServerBatch) -> float | None:
        gate.wait(20.0)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", stalled)


def test_row_39_credit_is_ignored(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first frame beyond the credit ends the connection, before it takes memory."""
    gate = threading.Event()

    async def main() -> None:
        async with scene(tmp_path, limits=SMALL) as stage:
            stream = await stage.lab.attach()
            stall(monkeypatch, gate)
            offset, _ = stream.granted
            frames = [part for seq in range(1, 40) for part in large_batch(seq, 1000).frames(size=4 * KIB)]
            assert sum(map(len, frames)) > offset
            # Nothing is trained on, so nothing is released.
            await stream.peer.send(*frames)
            await stream.peer.refused(ErrorCode.FLOW_CONTROL)
            gate.set()

    try:
        run_once(main())
    finally:
        gate.set()


def test_row_39_batches_beyond_the_last_one(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A batch number beyond the one that was granted ends the connection, too."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            _, last = stream.granted
            await stream.peer.send(*tiny_batch(last + 1).data())
            await stream.peer.refused(ErrorCode.FLOW_CONTROL)

    run_once(main())


def test_row_40_credit_goes_back(run_once: Run) -> None:
    """Lower figures and a grant of nothing are ignored; each figure counts by itself."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far, credit=1000)
            for offset, last, expected in (
                (400, 50, 1000),
                (0, 0, 1000),
                (2000, 10, 2000),
                (2000, 100, 2000),
            ):
                far.post(Credit(stream=1, offset=offset, last=last))
                assert isinstance(await near.recv(), Credit)
                assert near.endpoint.credit(1) == expected
            near.ping()
            await eventually(lambda: near.keepalive.round_trip is not None)

    run_once(main())


def test_row_40_credit_overflow(run_once: Run) -> None:
    """An offset beyond its range is refused."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far)
            data = frame(FrameType.CREDIT, {"offset": 2**62, "last": 1}, stream=1)
            assert far._transport is not None
            far._transport.write(data)
            with pytest.raises(ConnectionClosed) as caught:
                await near.recv()
            assert caught.value.code == ErrorCode.SCHEMA_MISMATCH

    run_once(main())


def test_row_41_training_stalls(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credit stops, the device waits with what fits its bound, PINGs are answered; then all goes on."""
    gate = threading.Event()

    async def main() -> None:
        what = SessionSpec.from_map({**SPEC.to_map(), "batches": 40, "epochs": 1})
        expected = await undisturbed(what)
        limits = Limits(batches=16)
        async with scene(tmp_path, limits=limits) as stage:
            uplink = uplink_to(stage.address, what)
            await uplink.start()
            stall(monkeypatch, gate)
            sending = asyncio.create_task(send(uplink, 1, 40))
            await asyncio.sleep(0.4)
            assert not sending.done()
            assert uplink.session.sent <= 16
            assert uplink.session.applied == 0
            before = uplink.session.connection.keepalive.round_trip
            uplink.session.connection.ping()
            await eventually(lambda: uplink.session.connection.keepalive.round_trip != before, 1.0)
            gate.set()
            await sending
            require_same(await rest(uplink), expected)
            assert uplink.losses == 0

    try:
        run_once(main())
    finally:
        gate.set()


def test_row_42_reader_never_reads(run_once: Run) -> None:
    """What waits for a peer that does not read is bounded; beyond the bound it is cut off."""

    async def main() -> None:
        async with pair(limits=SMALL) as (near, far):
            assert near._transport is not None
            assert far._transport is not None
            near._transport.pause_reading()
            most = 0
            with pytest.raises(ConnectionClosed) as caught:  # noqa: PT012
                while True:
                    far.post(Goaway(code=0, text="x" * 500))
                    most = max(most, far._transport.get_write_buffer_size())
                    await asyncio.sleep(0)
            assert caught.value.code == ErrorCode.SLOW_CONSUMER
            assert most <= SMALL.outbound + 1024

    run_once(main())


def test_row_42_weights_are_not_read(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Weights that are asked for over and over and never read take no memory of the server."""

    async def main() -> None:
        async with scene(tmp_path, limits=SMALL) as stage:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (stage.address.host, stage.address.port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=2048)
            peer = Peer(reader, writer, stage.lab.log)
            await stage.lab.welcomed(peer)
            stream = await stage.lab.attach(peer)
            await stream.submit(tiny_batch(1))
            await stream.acked(applied=1)
            before = resident()
            assert isinstance(writer.transport, asyncio.Transport)
            writer.transport.pause_reading()
            for _ in range(100):
                await peer.send(frame(FrameType.PULL, stream=1))
                await asyncio.sleep(0.002)
            ends = [connection._transport for connection in stage.server._connections]
            sizes = [end.get_write_buffer_size() for end in ends if end is not None]
            assert max(sizes) <= SMALL.outbound + SMALL.frame
            assert resident() - before < 64 << 20
            writer.transport.abort()
            await eventually(lambda: stage.server.connections == 1)

    run_once(main())


def test_row_43_own_writes_wait(run: Run, tmp_path: pathlib.Path) -> None:
    """A link that stands still holds a device that has credit: its send buffer stays small."""

    async def main() -> None:
        async with scene(tmp_path) as stage, proxied(stage.address) as proxy:
            client = await dial(proxy.address)
            session = await client.open(SPEC)
            transport = session.connection._transport
            assert transport is not None
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            await eventually(lambda: session.connection.endpoint.credit(1) > 0)
            proxy.black_hole(True)
            chunk = bytes(256 * KIB)
            part: Any = {"stream": 1, "seq": 1, "tensor": 0}
            sent = 0

            async def flood() -> None:
                nonlocal sent
                head: Any = {"format": int(Format.ASYM4), "block": 32, "shape": (1 << 21, 32)}
                await session.connection.send(Data(**part, **head, offset=0, payload=chunk))
                while True:
                    sent += len(chunk)
                    await session.connection.send(Data(**part, offset=sent, payload=chunk))

            flooding = asyncio.create_task(flood())
            await asyncio.sleep(0.3)
            assert not flooding.done()
            assert transport.get_write_buffer_size() <= 4 * 256 * KIB
            assert session.connection.endpoint.credit(1) > 0
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            session.connection.abort()
            await client.close()

    run(main())


def test_row_43b_arrays_may_change_after_submit(run: Run, tmp_path: pathlib.Path) -> None:
    """The caller's arrays are his own again once they were submitted, though the link has sent nothing."""

    async def main() -> None:
        expected = await undisturbed()
        async with scene(tmp_path) as stage, proxied(stage.address) as proxy:
            client = await dial(proxy.address)
            session = await client.open(SPEC)
            await eventually(lambda: session.connection.endpoint.credit(1) > 0)
            proxy.black_hole(True)
            for seq in range(1, BATCHES + 1):
                data = arrays(seq)
                await session.submit(data.taps, data.lengths, data.targets)
                for tap in data.taps:
                    tap[...] = np.nan
            proxy.black_hole(False)
            await session.finish()
            await session.wait_finished()
            require_same(await session.pull(), expected)
            await client.close()

    run(main())


def test_row_43b_packed_tensors_are_not_reused() -> None:
    """Packing another tensor of the same size leaves the first one's bytes alone."""
    generator = np.random.default_rng(0)
    for kind in (Format.ASYM4, Format.F16, Format.F32):
        source = generator.standard_normal((64, 64)).astype(np.float32)
        one = pack(source, kind, 32, "tap")
        before = bytes(one.payload)
        source[...] = 0.0
        pack(generator.standard_normal((64, 64)).astype(np.float32), kind, 32, "tap")
        assert bytes(one.payload) == before
