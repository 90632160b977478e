"""Rows 50 to 57 of the fault table: links that break, stand still or delay, and devices that come twice."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from benchmarks.tap import ADDRESS, Link, available, in_namespace
from mobillm.conformance.samples import tiny_batch
from mobillm.conformance.wire import frame
from mobillm.device import Client
from mobillm.device.uplink import Uplink
from mobillm.errors import ErrorCode, RemoteError
from mobillm.options import Timeouts
from mobillm.protocol import FrameType
from tests.conftest import Run
from tests.faults.proxy import Faults, Plan, between, first, proxied
from tests.faults.scene import (
    BATCHES,
    SPEC,
    Scene,
    dial,
    eventually,
    rest,
    scene,
    send,
    undisturbed,
    uplink_to,
)
from tests.faults.weights import require_same

LIVELY = Timeouts(
    connect=5.0,
    handshake=5.0,
    request=10.0,
    keepalive=0.3,
    keepalive_reply=0.3,
    drain=0.3,
    unacknowledged=1.0,
)


async def whole(stage: Scene, plan: Plan, *, losses: int | None = None) -> Uplink:
    """Train a session through a proxy; its weights and the server's log must be those without a fault."""
    expected = await undisturbed()
    async with proxied(stage.address, plan) as proxy:
        uplink = uplink_to(proxy.address)
        await uplink.start()
        await send(uplink, 1, BATCHES)
        require_same(await rest(uplink), expected)
        assert stage.log_of(uplink.id) == list(range(1, BATCHES + 1))
    if losses is not None:
        assert uplink.losses == losses
    return uplink


@pytest.mark.parametrize("end", ["FIN", "RST"])
@pytest.mark.parametrize("offset", [900, 1500, 2345])
def test_row_50_connection_ends(run_once: Run, tmp_path: pathlib.Path, end: str, offset: int) -> None:
    """Each of the first three connections ends after some bytes of the device: nothing is lost or doubled."""
    faults = Faults(cut=offset) if end == "FIN" else Faults(reset=offset)

    async def main() -> None:
        async with scene(tmp_path) as stage:
            await whole(stage, first(faults, connections=3), losses=3)

    run_once(main())


@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_row_50_answers_end(run_once: Run, tmp_path: pathlib.Path, end: str) -> None:
    """The same after some bytes of the server, so that acknowledgements and weights are cut."""
    faults = Faults(cut=1500) if end == "FIN" else Faults(reset=1500)

    async def main() -> None:
        async with scene(tmp_path) as stage:
            await whole(stage, first(down=faults, connections=2), losses=2)

    run_once(main())


def test_row_50_in_the_last_epoch(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A connection that ends when all was sent, and while the weights come down."""

    async def main() -> None:
        expected = await undisturbed()
        async with scene(tmp_path) as stage, proxied(stage.address) as proxy:
            uplink = uplink_to(proxy.address)
            await uplink.start()
            await send(uplink, 1, BATCHES)
            await uplink.finish()
            proxy.cut_all()
            await uplink.wait_finished()
            proxy.cut_all(reset=False)
            require_same(await uplink.pull(), expected)
            await uplink.close()

    run_once(main())


def test_row_51_half_close(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A device that sends FIN and still reads: the server closes in time, and keeps what came whole."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            await stream.submit(tiny_batch(1), tiny_batch(2))
            stream.peer.half_close()
            start = time.monotonic()
            await stream.peer.ended()
            assert time.monotonic() - start < 2.0
            again = await stage.lab.resume(stream.opened.session)
            assert again.opened.received == 2
            await again.acked(applied=2)
            await again.peer.send(frame(FrameType.BYE))
            again.peer.half_close()
            await again.peer.ended()

    run_once(main())


@pytest.mark.parametrize("direction", [(0,), (1,), ()])
def test_row_52_black_hole(run_once: Run, tmp_path: pathlib.Path, direction: tuple[int, ...]) -> None:
    """A link that swallows everything, in one direction or both, is given up by both ends in time."""

    async def main() -> None:
        expected = await undisturbed()
        async with (
            scene(tmp_path, timeouts=LIVELY) as stage,
            proxied(stage.address) as proxy,
        ):
            uplink = uplink_to(proxy.address, timeouts=LIVELY)
            await uplink.start()
            await send(uplink, 1, 3)
            proxy.black_hole(True, *direction)
            start = time.monotonic()
            await eventually(lambda: not uplink.session.connection.is_open, 3.0)
            assert time.monotonic() - start < 2.5
            if direction != (1,):
                await eventually(lambda: stage.server.connections == 1, 3.0)
            proxy.black_hole(False, *direction)
            await send(uplink, 4, BATCHES)
            require_same(await rest(uplink), expected)

    run_once(main())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
def test_row_52_user_timeout(run: Run, tmp_path: pathlib.Path) -> None:
    """Both ends ask TCP to give up unacknowledged bytes after half a minute."""

    async def main() -> None:
        async with scene(tmp_path) as stage, dial(stage.address) as client:
            ends = [client.connection, *stage.server._connections]
            for end in ends:
                assert end._transport is not None
                sock = end._transport.get_extra_info("socket")
                timeout = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert timeout == 30_000

    run(main())


def test_row_53_delay(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A delay of 100 ms each way and jitter: the same weights, and no batch waits for another's ACK."""

    async def main() -> None:
        slow = Faults(latency=0.1, jitter=0.03, seed=1)
        async with scene(tmp_path) as stage:
            start = time.monotonic()
            await whole(stage, between(slow, slow), losses=0)
            # Connecting, handshake, OPEN, the last ACK, FINISH, PULL and BYE are about seven round trips.
            assert time.monotonic() - start < 3.0

    run_once(main())


def test_row_53_narrow_link(run_once: Run, tmp_path: pathlib.Path) -> None:
    """One Mbit/s: the same weights, and most of the link is used for what has to be sent."""
    rate = 125_000.0

    async def main() -> None:
        narrow = Faults(rate=rate)
        async with scene(tmp_path) as stage:
            start = time.monotonic()
            uplink = await whole(stage, between(narrow, narrow), losses=0)
            seconds = time.monotonic() - start
            assert uplink.bytes_sent > 3000
            assert seconds < 1.5 + (uplink.bytes_sent + 100_000) / rate

    run_once(main())


def test_row_54_flapping_link(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A link that breaks every 0.1 s: each time something more arrives, and the weights are the same."""

    async def main() -> None:
        expected = await undisturbed()
        async with scene(tmp_path) as stage, proxied(stage.address) as proxy:
            uplink = uplink_to(proxy.address, patience=None)
            await uplink.start()
            received = []

            async def flap() -> None:
                while True:
                    await asyncio.sleep(0.1)
                    received.append(uplink.received)
                    proxy.cut_all()

            flapping = asyncio.create_task(flap())
            await send(uplink, 1, BATCHES, pause=0.025)
            flapping.cancel()
            await asyncio.gather(flapping, return_exceptions=True)
            require_same(await rest(uplink), expected)
            assert uplink.losses >= 3
            assert received == sorted(received)

    run_once(main())


def test_row_55_device_moves(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The device comes back from another address: the session's name is all it needs."""

    async def main() -> None:
        expected = await undisturbed()
        async with (
            scene(tmp_path) as stage,
            proxied(stage.address, source="127.0.0.5") as home,
            proxied(stage.address, source="127.0.0.6") as abroad,
        ):
            where = [home.address]
            uplink = uplink_to(lambda: where[0])
            await uplink.start()
            await send(uplink, 1, 4)
            where[0] = abroad.address
            home.cut_all()
            await send(uplink, 5, BATCHES)
            require_same(await rest(uplink), expected)
            assert (home.connections, abroad.connections) == (1, 1)

    run_once(main())


def test_row_56_two_devices(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The newest attachment has the session; the other one is told so and does not take it back."""

    async def main() -> None:
        expected = await undisturbed()
        async with scene(tmp_path) as stage:
            dials = 0

            async def dialling() -> Client:
                nonlocal dials
                dials += 1
                return await dial(stage.address)

            old = Uplink(dialling, SPEC, keep=1 << 20, patience=20.0)
            await old.start()
            await send(old, 1, 2)
            new = uplink_to(stage.address, session=old.id)
            await old.wait_durable()
            await new.start()

            async def more() -> None:
                await send(old, 3, 4)
                await old.wait_durable()

            with pytest.raises(RemoteError) as caught:
                await more()
            assert caught.value.code == ErrorCode.SESSION_TAKEN_OVER
            assert dials == 1
            await send(new, 3, BATCHES)
            require_same(await rest(new), expected)
            await old.close()

    run_once(main())


def test_row_57_zombie(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Frames of an attachment that was taken over have no effect: half a batch of its, and a whole one."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            old = await stage.lab.attach()
            *parts, commit = tiny_batch(1).frames()
            await old.send(*parts)
            new = await stage.lab.resume(old.opened.session)
            assert new.opened.epoch > old.opened.epoch
            await old.peer.send(commit, *tiny_batch(2).frames())
            await old.failed(ErrorCode.SESSION_TAKEN_OVER)
            await old.peer.alive()
            again = await stage.lab.resume(old.opened.session)
            assert again.opened.received == 0
            await again.submit(tiny_batch(1, variant=1))
            await again.acked(applied=1)
            assert stage.log_of(old.opened.session) == [1]

    run_once(main())


_DEVICE = """
import asyncio, pathlib, sys
from tests.faults.scene import BATCHES, rest, send, uplink_to
from mobillm.options import Timeouts
from mobillm.transport import Address

async def main() -> None:
    timeouts = Timeouts(drain=2.0, keepalive=5.0, keepalive_reply=10.0)
    uplink = uplink_to(Address(sys.argv[1], int(sys.argv[2])), patience=60.0, timeouts=timeouts)
    await uplink.start()
    await send(uplink, 1, BATCHES)
    pathlib.Path(sys.argv[3]).write_bytes(await rest(uplink))

asyncio.run(main())
"""

_SERVER = """
import asyncio, pathlib, sys, torch
from mobillm.server import serve
from mobillm.options import Timeouts
from tests.faults.scene import KEYS

async def main() -> None:
    torch.set_num_threads(1)
    timeouts = Timeouts(drain=2.0, keepalive=5.0, keepalive_reply=10.0)
    async with serve(sys.argv[1], keys=KEYS, directory=pathlib.Path(sys.argv[2]), timeouts=timeouts):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

LINKS = {
    "delay": Link(delay=0.2, jitter=0.02),
    "loss": Link(delay=0.02, loss=0.05),
    "reorder and dup": Link(delay=0.02, jitter=0.02, dup=0.05),
    "corruption": Link(delay=0.01, corrupt=0.03),
    "1 Mbit/s": Link(rate=125_000.0),
}


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="needs root, /dev/net/tun and iproute2")
@pytest.mark.parametrize("kind", LINKS)
def test_row_53_emulated_link(tmp_path: pathlib.Path, kind: str) -> None:
    """Delay, loss, disorder, doubled and corrupt packets, a narrow link, below TCP: the same weights."""
    expected = asyncio.run(undisturbed())
    with LINKS[kind].up() as (near, far):
        command = [sys.executable, "-c", _SERVER, f"{ADDRESS}:7707", str(tmp_path / "server")]
        server = subprocess.Popen(in_namespace(far, command), stdout=subprocess.PIPE, env=_environment())
        try:
            assert server.stdout is not None
            assert server.stdout.readline().strip() == b"ready"
            result = tmp_path / "weights"
            command = [sys.executable, "-c", _DEVICE, ADDRESS, "7707", str(result)]
            subprocess.run(in_namespace(near, command), check=True, timeout=90.0, env=_environment())
        finally:
            server.kill()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
    require_same(result.read_bytes(), expected)


def _environment() -> dict[str, str]:
    root = str(pathlib.Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
