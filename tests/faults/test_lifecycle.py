"""Rows 64 to 66 of the fault table: devices that die or sleep, clocks that jump, upgrades, and a soak."""

from __future__ import annotations

import asyncio
import os
import pathlib
import random
import signal
import time

import pytest

from mobillm.conformance.samples import spec, tiny_batch
from mobillm.conformance.wire import frame, raw_frame
from mobillm.device.resume import Resume
from mobillm.errors import ConnectionClosed, ErrorCode
from mobillm.protocol import FrameType, Goaway
from mobillm.server import serve
from mobillm.transport import Address
from tests.conftest import Run
from tests.faults.launcher import PATIENT, launched, spawn, through
from tests.faults.neighbour import Neighbour
from tests.faults.proxy import Faults, Plan, proxied
from tests.faults.scene import (
    BATCHES,
    KEYS,
    QUICK,
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

ROOT = pathlib.Path(__file__).parents[2]


async def _run_device(address: Address, place: pathlib.Path) -> None:
    resume = Resume(place / "session.json", "faults")
    unfinished = resume.load(SPEC)
    uplink = uplink_to(address, session=None if unfinished is None else unfinished.session, patience=30.0)
    await uplink.start()
    resume.save(uplink.id, SPEC)
    await send(uplink, uplink.received + 1, BATCHES, pause=0.05)
    (place / "weights").write_bytes(await rest(uplink))


def run_device(address: Address, place: pathlib.Path) -> None:
    """Train a session from a process of its own; go on with the one that the place names."""
    asyncio.run(_run_device(address, place))


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_row_64_device_dies_or_sleeps(run_once: Run, tmp_path: pathlib.Path, number: signal.Signals) -> None:
    """A device that is killed goes on by its session's name; one that sleeps long finds its way back."""

    async def main() -> None:
        expected = await undisturbed()
        async with scene(tmp_path / "server", timeouts=PATIENT) as stage:
            device = spawn(run_device, stage.address, tmp_path)
            try:
                await eventually((tmp_path / "session.json").exists)
                await asyncio.sleep(0.3)
                assert device.pid is not None
                os.kill(device.pid, number)
                if number is signal.SIGKILL:
                    await asyncio.to_thread(device.join)
                    device.close()
                    device = spawn(run_device, stage.address, tmp_path)
                else:
                    await eventually(lambda: stage.server.connections == 1)  # the server has given it up
                    os.kill(device.pid or 0, signal.SIGCONT)
                await asyncio.to_thread(device.join, 20.0)
                assert device.exitcode == 0
            finally:
                device.kill()
                device.join()
                device.close()
            require_same((tmp_path / "weights").read_bytes(), expected)

    run_once(main())


@pytest.mark.slow
def test_row_64_sleeping_server(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A server that is stopped for longer than a device waits: the same weights."""

    async def main() -> None:
        await undisturbed()
        with launched(tmp_path / "server") as server:

            def disturb() -> None:
                server.signal(signal.SIGSTOP)
                time.sleep(2.3)
                server.signal(signal.SIGCONT)

            await through(server, disturb)

    run_once(main())


def test_row_64_clock_jumps(run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock jumps by ten days, there and back: no timer notices, and nothing reads that clock."""
    days = 10 * 86400.0
    now = time.time
    offset = [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + offset[0])
    sources = {path: path.read_text() for path in (ROOT / "mobillm").rglob("*.py")}
    # Dates of certificates, and when something was, for the people who read the registry and the metrics.
    dated = ("cli", "registry.py", "session.py", "metrics.py")
    sources = {path: text for path, text in sources.items() if not any(name in path.parts for name in dated)}
    wall = ("time.time(", "datetime.now(", "utcnow(")
    assert [str(path) for path, text in sources.items() if any(word in text for word in wall)] == []

    async def main() -> None:
        expected = await undisturbed()
        async with scene(tmp_path, timeouts=PATIENT) as stage:
            uplink = uplink_to(stage.address, timeouts=PATIENT)
            await uplink.start()
            for seq in range(1, BATCHES + 1):
                offset[0] = days * (-1) ** seq
                await send(uplink, seq, seq)
                await asyncio.sleep(0.05)
            require_same(await rest(uplink), expected)
            assert uplink.losses == 0

    run_once(main())


def test_row_65_sigterm(run_once: Run, tmp_path: pathlib.Path) -> None:
    """SIGTERM: GOAWAY, all that came is durable and in a checkpoint, the end within the grace; then on."""

    async def main() -> None:
        await undisturbed()
        with launched(tmp_path / "server") as server:

            def upgrade() -> None:
                start = time.monotonic()
                server.signal(signal.SIGTERM)
                assert server.wait(10.0) == 0
                assert time.monotonic() - start < 6.0
                assert list((server.directory / "sessions").glob("*/checkpoint-*"))
                server.start()

            uplink = await through(server, upgrade)
            assert uplink.losses >= 1

    run_once(main())


def test_row_65_goaway(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A server that stops says so and how long it waits, and refuses new sessions meanwhile."""

    async def main() -> None:
        async with serve("127.0.0.1:0", keys=KEYS, directory=tmp_path, timeouts=QUICK) as server:
            client = await dial(server.address)
            session = await client.open(SPEC)
            closing = asyncio.create_task(server.close())
            while client.draining is None:
                await asyncio.sleep(0.005)
            assert isinstance(client.draining, Goaway)
            assert client.draining.code == ErrorCode.NO_ERROR
            assert client.draining.grace == pytest.approx(0.3)
            with pytest.raises(ConnectionClosed):
                await session.wait_finished()
            await client.close()
            await closing

    run_once(main())


@pytest.mark.parametrize("versions", [(1, 2), (1, 255), (1, 1)])
def test_row_65_newer_device(run_once: Run, tmp_path: pathlib.Path, versions: tuple[int, int]) -> None:
    """A device of the next version, which offers more and sends keys that nobody knows yet, is served."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            low, high = versions
            later = {"min_version": low, "max_version": high, "caps": ["zstd", "later"], "clock": 1}
            peer = await stage.lab.open(**later)
            await peer.send(frame(FrameType.OPEN, {"spec": spec(), "priority": 3}, stream=1))
            stream = await stage.lab.opened(peer, 1)
            await peer.send(raw_frame(0x81, b"later"))
            await stream.submit(tiny_batch(1))
            await stream.acked(applied=1)

    run_once(main())


def random_faults(chance: random.Random) -> Plan:
    """Return a plan that draws what happens to each connection."""

    def plan(number: int) -> tuple[Faults, Faults]:
        kind = chance.choice(["cut", "reset", "corrupt", "slow", "slice", "clean"])
        offset = chance.randrange(600, 20_000)
        faults = {
            "cut": Faults(cut=offset),
            "reset": Faults(reset=offset),
            "corrupt": Faults(corrupt=offset, seed=number),
            "slow": Faults(latency=0.02, jitter=0.02, seed=number, reset=5 * offset),
            "slice": Faults(slice=chance.randrange(1, 400), cut=5 * offset),
            "clean": Faults(),
        }[kind]
        return (faults, Faults()) if chance.random() < 0.7 else (Faults(), faults)

    return plan


async def soak(directory: pathlib.Path, seconds: float, seed: int) -> None:
    """Train sessions through random faults; files, tasks and memory are flat, the weights always the same."""
    expected = await undisturbed()
    chance = random.Random(seed)
    with launched(directory) as server:
        async with (
            proxied(server.address, random_faults(chance)) as proxy,
            Neighbour(server.address),
        ):
            end = time.monotonic() + seconds
            files: list[int] = []
            memory: list[int] = []
            while time.monotonic() < end or len(files) < 3:
                uplink = uplink_to(proxy.address, patience=60.0, timeouts=PATIENT)
                while True:
                    try:
                        await uplink.start()
                        break
                    except (ConnectionClosed, TimeoutError):
                        await asyncio.sleep(0.01)
                await send(uplink, 1, BATCHES)
                require_same(await rest(uplink), expected)
                await asyncio.sleep(0.2)
                files.append(server.files())
                memory.append(server.rss())
            tasks = len(asyncio.all_tasks())
        assert tasks < 20
        # A session that is finished costs neither a file nor much memory.
        assert files[-1] <= files[1] + 2, files
        assert memory[-1] - memory[1] < 100_000 * len(memory) + (32 << 20)


def test_row_66_short_soak(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A few sessions through random faults."""
    run_once(soak(tmp_path / "server", 0.0, 66))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_row_66_soak(tmp_path: pathlib.Path) -> None:
    """A minute of sessions through random faults."""
    asyncio.run(soak(tmp_path / "server", 60.0, 67))
