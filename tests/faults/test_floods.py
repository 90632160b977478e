"""Rows 44 to 49 of the fault table: floods, storms, and a server that runs out of things."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import random
import socket
import time
from collections.abc import Callable, Iterator

import msgpack
import numpy as np
import pytest

from mobillm.codec import pack
from mobillm.conformance.peer import Peer
from mobillm.conformance.samples import Batch, Tensor, integers, spec, tiny_batch
from mobillm.conformance.wire import frame
from mobillm.device import connect
from mobillm.errors import ConnectionClosed, ErrorCode, HandshakeError
from mobillm.formats import Format
from mobillm.options import Limits, Timeouts
from mobillm.protocol import Error, FrameType, Goaway
from mobillm.server.store import SessionStore
from mobillm.transport import Address
from tests.conftest import Run
from tests.faults.launcher import launched
from tests.faults.neighbour import Neighbour
from tests.faults.scene import (
    BATCHES,
    SPEC,
    dial,
    rest,
    scene,
    send,
    undisturbed,
    uplink_to,
)
from tests.faults.weights import require_same

KIB = 1024


def large_batch(seq: int, tokens: int) -> Batch:
    """Return a batch of two samples with many tokens of 20 bytes each."""
    values = np.random.default_rng(seq).standard_normal((tokens, 32)).astype(np.float32)
    packed = pack(values, Format.ASYM4, 32, "tap")
    tap = Tensor(0, Format.ASYM4, 32, (tokens, 32), bytes(packed.payload))
    lengths = integers(1001, [tokens - 1, 1])
    return Batch(seq, (lengths, integers(1000, [0, 1]), tap))


async def refused_on(peer: Peer, stream: int) -> int:
    """Return the code of the next ERROR on a stream."""
    async with asyncio.timeout(5.0):
        while True:
            header = await peer.reader.readexactly(32)
            body = await peer.reader.readexactly(int.from_bytes(header[8:12], "big"))
            if header[3] == FrameType.ERROR and int.from_bytes(header[6:8], "big") == stream:
                code: int = msgpack.unpackb(body)["code"]
                return code


async def calm(peer: Peer, *codes: ErrorCode) -> None:
    """See the connection end with CALM (or another code), announced by GOAWAY or ERROR."""
    while (message := await peer.read()) is not None:
        ending = isinstance(message, Goaway | Error) and not message.stream
        if isinstance(message, Goaway | Error) and ending and message.code in (ErrorCode.CALM, *codes):
            await peer.drained()
            return
    raise AssertionError("the connection ended without CALM")


def test_row_44_ping_flood(run_once: Run, tmp_path: pathlib.Path) -> None:
    """PINGs beyond a budget end the connection with CALM."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = await stage.lab.open()
            for number in range(500):
                await peer.send(frame(FrameType.PING, {"data": number.to_bytes(8, "big")}))
            await calm(peer)

    run_once(main())


def test_row_44_pong_never_comes(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A peer that is silent gets a PING, and is dead soon after."""
    timeouts = Timeouts(keepalive=0.3, keepalive_reply=0.3, drain=0.3, request=10.0)

    async def main() -> None:
        # The neighbour answers PINGs, so it lives.
        async with scene(tmp_path, timeouts=timeouts) as stage:
            peer = await stage.lab.open()
            start = time.monotonic()
            error = await peer.refused(ErrorCode.IDLE_TIMEOUT) if await pinged(peer) else None
            assert error is not None
            assert 0.2 <= time.monotonic() - start <= 2.0

    run_once(main())


async def pinged(peer: Peer) -> bool:
    """Wait for a PING."""
    message = await peer.read()
    return message is not None and message.type is FrameType.PING


def test_row_45_batches_that_are_given_up(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Batches that are begun and aborted over and over end the connection with CALM."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            data = tiny_batch(1).data()[0]
            for _ in range(200):
                await stream.peer.send(data, frame(FrameType.ABORT, stream=1, seq=1))
            await calm(stream.peer)
            again = await stage.lab.resume(stream.opened.session)
            assert again.opened.received == 0

    run_once(main())


async def storm(count: int, login: Callable[[], connect], bound: float) -> int:
    """Let many devices in at once, each coming back as it is told; return how often one had to."""
    refusals = 0

    async def device() -> None:
        nonlocal refusals
        pause = 0.2
        while True:
            try:
                connection = await login()
            except HandshakeError as exc:
                if exc.code not in (ErrorCode.SERVER_BUSY, ErrorCode.CALM) or exc.retry_after is None:
                    raise
                refusals += 1
                pause = min(2 * pause, 2.0)
                await asyncio.sleep(exc.retry_after * random.random() + pause * random.random())
            except (ConnectionClosed, TimeoutError):
                refusals += 1
                pause = min(2 * pause, 2.0)
                await asyncio.sleep(pause * random.random())
            else:
                await connection.close()
                return

    async with asyncio.timeout(bound):
        await asyncio.gather(*(device() for _ in range(count)))
    return refusals


def test_row_46_reconnect_storm(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A hundred devices at once: each is let in, or told to come back later, and comes in at last."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            await storm(100, lambda: dial(stage.address), 25.0)

    run_once(main())


@pytest.mark.slow
def test_row_46_a_thousand_devices(tmp_path: pathlib.Path) -> None:
    """The same with a thousand, at a server in a process of its own."""

    async def main() -> None:
        with launched(tmp_path / "server") as server:
            async with Neighbour(server.address):
                await storm(1000, lambda: dial(server.address), 110.0)
                async with dial(server.address) as client:
                    await client.open(SPEC)

    asyncio.run(main())


def test_row_46_full_jitter(monkeypatch: pytest.MonkeyPatch, run_once: Run, tmp_path: pathlib.Path) -> None:
    """Devices that lost the server at the same moment do not come back at the same moment."""
    pauses: list[float] = []
    uniform = random.uniform

    def noted(low: float, high: float) -> float:
        pauses.append(high)
        return uniform(low, high) / 50.0

    async def main() -> None:
        async with scene(tmp_path) as stage:
            where = [stage.address]
            uplink = uplink_to(lambda: where[0], patience=1.5)
            await uplink.start()
            with socket.socket() as nobody:
                nobody.bind(("127.0.0.1", 0))
                where[0] = type(where[0])("127.0.0.1", nobody.getsockname()[1])
                monkeypatch.setattr(random, "uniform", noted)
                uplink.session.connection.abort()
                with pytest.raises(ConnectionClosed):
                    await send(uplink, 1, 1)
            await uplink.close()
        assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
        assert max(pauses) <= 30.0

    run_once(main())


def test_row_47_one_tenant_floods(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A tenant that sends as much as it can does not slow its neighbour down beyond a fair share."""

    async def main() -> None:
        async with scene(tmp_path, latency=1.5) as stage:
            peers = [await stage.lab.attach() for _ in range(3)]

            async def flood(number: int) -> None:
                stream = peers[number]
                for seq in range(1, 400):
                    await stream.submit(large_batch(seq, 200))

            tasks = [asyncio.create_task(flood(number)) for number in range(3)]
            await asyncio.wait(tasks, timeout=1.5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert len(stage.neighbour.latencies) >= 3

    run_once(main())


@pytest.mark.parametrize("kind", ["sessions", "stored"])
def test_row_47_quota(run_once: Run, tmp_path: pathlib.Path, kind: str) -> None:
    """A tenant's share of sessions and of the disk is bounded, and the refusal says QUOTA."""

    async def main() -> None:
        limits = Limits(sessions=2) if kind == "sessions" else Limits(stored=16 * KIB)
        async with scene(tmp_path, limits=limits) as stage:
            if kind == "sessions":
                peer = await stage.lab.open()
                for number in (1, 2):
                    await stage.lab.attach(peer, number=number)
                await peer.send(frame(FrameType.OPEN, {"spec": spec()}, stream=3))
                assert await refused_on(peer, 3) == ErrorCode.QUOTA
            else:
                stream = await stage.lab.attach()
                await stream.submit(large_batch(1, 500))
                await stream.acked(durable=1)
                await stream.submit(large_batch(2, 500))
                assert await refused_on(stream.peer, 1) == ErrorCode.QUOTA
            # Another tenant has a share of its own.
            await stage.lab.attach(tenant=1)

    run_once(main())


FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
"""


@contextlib.contextmanager
def crowd(address: Address) -> Iterator[None]:
    """Keep more connections open than the server has descriptors for."""
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex((address.host, address.port))
        yield


def test_row_48_no_file_descriptors(run_once: Run, tmp_path: pathlib.Path) -> None:
    """With all descriptors taken the sessions that are there go on; later there is room again."""

    async def main() -> None:
        expected = await undisturbed()
        with launched(tmp_path / "server", FEW_FILES) as server:
            uplink = uplink_to(server.address)
            await uplink.start()
            await send(uplink, 1, 2)
            await uplink.session.wait_applied()
            async with Neighbour(server.address):
                with crowd(server.address):
                    await asyncio.sleep(0.3)
                    await send(uplink, 3, BATCHES)
                    await uplink.session.wait_applied()
                await storm(1, lambda: dial(server.address), 20.0)
            require_same(await rest(uplink), expected)
            assert uplink.losses == 0

    run_once(main())


def test_row_48_log_stays_short(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A flood that takes all descriptors does not fill the log."""

    async def main() -> None:
        with launched(tmp_path / "server", FEW_FILES) as server:
            async with Neighbour(server.address):
                with crowd(server.address):
                    await asyncio.sleep(1.0)
            log = server.log()
        assert "no connection can be accepted" in log
        assert log.count("\n") < 10

    run_once(main())


def test_row_49_no_memory(run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session for which there is no memory is refused; the others stay, and later ones come in."""
    create = SessionStore.create

    def exhausted(*args: object) -> SessionStore:
        raise MemoryError

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            await stream.submit(tiny_batch(1))
            monkeypatch.setattr(SessionStore, "create", exhausted)
            other = await stage.lab.open()
            await other.send(frame(FrameType.OPEN, {"spec": spec()}, stream=1))
            answer = await other.read()
            assert isinstance(answer, Error)
            assert answer.code in (ErrorCode.INTERNAL, ErrorCode.SERVER_BUSY, ErrorCode.QUOTA)
            monkeypatch.setattr(SessionStore, "create", create)
            await stream.submit(tiny_batch(2))
            await stream.acked(applied=2)
            await stage.lab.attach(tenant=1)

    run_once(main())
