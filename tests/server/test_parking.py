"""Sessions whose device is away: what they hold, and that they go on as if it had never left."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import pathlib
import threading
import time
from typing import Any

import pytest

from mobillm.cli.control import request
from mobillm.device import Session as DeviceSession
from mobillm.errors import ErrorCode, RemoteError, StorageError
from mobillm.protocol import Ack, Error
from mobillm.server.batch import Batch
from mobillm.server.checkpoints import Checkpoints
from mobillm.server.gateway import Gateway
from mobillm.server.log import ActivationLog
from mobillm.server.meter import Meter
from mobillm.server.session import Session
from mobillm.server.trainer import Trainer
from mobillm.server.training import Training
from mobillm.spec import SessionSpec
from mobillm.transport import Server
from tests.conftest import Run
from tests.server.raw import raw
from tests.sessions import QUICK, device, open_logs, packed, serving, spec, submit, train

BATCHES = 6
SPEC = spec(epochs=2, batches=BATCHES)
AWAY = dataclasses.replace(QUICK, away=0.1)


class Spy(Meter):
    """Shows what is inside of a server."""

    gateway: Gateway

    def start(self, gateway: Gateway) -> None:
        """Keep the gateway."""
        self.gateway = gateway

    @property
    def session(self) -> Session:
        """The only session."""
        (one,) = self.gateway.sessions.values()
        return one


def networks(what: SessionSpec) -> int:
    """Count the networks of sessions of a spec that this process holds."""
    gc.collect()
    return sum(isinstance(one, Trainer) and one.spec == what for one in gc.get_objects())


async def parked(folder: pathlib.Path, what: SessionSpec, *, memory: bool = True) -> None:
    """Wait until no log is open, and no network is in memory."""
    async with asyncio.timeout(5.0):
        while open_logs(folder) or (memory and networks(what)):
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the weights of a run whose device stayed."""

    async def main() -> bytes:
        async with serving(tmp_path_factory.mktemp("undisturbed")) as server, device(server) as client:
            return (await train(client, SPEC, BATCHES))[1]

    return asyncio.run(main())


async def leave(server: Server, batches: int) -> bytes:
    """Open a session, have batches trained on, and leave; return its name."""
    async with device(server) as client:
        session = await client.open(SPEC)
        await submit(session, 1, batches)
        await session.wait_applied()
        return session.id


async def complete(session: DeviceSession) -> bytes:
    """Send the rest and return the weights."""
    await submit(session, session.received + 1, BATCHES)
    await session.finish()
    assert (await session.wait_finished()).steps == 2 * BATCHES
    return await session.pull()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("sent", [1, 4])
def test_a_session_waits_on_the_disk_for_its_device(
    run_once: Run,
    tmp_path: pathlib.Path,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sent: int,
    full: bool,
) -> None:
    """Its memory and files are free when the device is away; the result has the same bits, also without room
    for a checkpoint.
    """
    save, broken = Checkpoints.save, full

    def maybe(self: Checkpoints, steps: int, data: bytes) -> None:
        if broken:
            raise StorageError("no space left")
        save(self, steps, data)

    monkeypatch.setattr(Checkpoints, "save", maybe)

    async def main() -> None:
        nonlocal broken
        async with serving(tmp_path, timeouts=AWAY) as server:
            async with device(server) as client:
                session = await client.open(SPEC)
                await submit(session, 1, sent)
                await session.wait_applied()
                await asyncio.sleep(0.3)
                assert open_logs(tmp_path)  # the device is here
                client.connection.abort()
            # An error that pytest keeps for its report holds the stack on which it was raised.
            await parked(tmp_path, SPEC, memory=not full)
            assert ("no space left" in caplog.text) == full
            broken = False
            async with device(server) as client:
                session = await client.attach(session.id, SPEC)
                assert session.received == sent
                assert await complete(session) == undisturbed

    run_once(main())


def test_a_session_that_trains_is_not_parked(
    run_once: Run, tmp_path: pathlib.Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is queued is trained on without the device; only then is the session parked."""
    step, gate = Trainer.step, threading.Event()

    def waiting(self: Trainer, batch: Batch) -> float | None:
        assert gate.wait(10.0)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", waiting)

    async def main() -> None:
        async with serving(tmp_path, timeouts=AWAY) as server:
            async with device(server) as client:
                session = await client.open(SPEC)
                await submit(session, 1, 3)
                await session.wait_durable()
            await asyncio.sleep(0.4)
            assert networks(SPEC) == 1
            gate.set()
            await parked(tmp_path, SPEC)
            async with device(server) as client:
                session = await client.attach(session.id, SPEC)
                assert await complete(session) == undisturbed

    try:
        run_once(main())
    finally:
        gate.set()


def test_a_device_that_comes_back_in_time(run_once: Run, tmp_path: pathlib.Path, undisturbed: bytes) -> None:
    """It finds its session as it was; leaving again starts the time anew."""

    async def main() -> None:
        async with serving(tmp_path, timeouts=dataclasses.replace(QUICK, away=0.5)) as server:
            async with device(server) as client:
                session = await client.open(SPEC)
            for seq in range(1, BATCHES + 1):
                await asyncio.sleep(0.2)
                async with device(server) as client:
                    session = await client.attach(session.id, SPEC)
                    await submit(session, seq, seq)
                    await session.wait_applied()
                assert open_logs(tmp_path)
            await parked(tmp_path, SPEC)
            async with device(server) as client:
                session = await client.attach(session.id, SPEC)
                await session.finish()
                await session.wait_finished()
                assert await session.pull() == undisturbed

    run_once(main())


def test_a_parked_session_can_be_deleted_and_a_server_stopped(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Neither needs the device; nothing is left of a deleted session, and the other one is known again."""

    async def main() -> None:
        async with serving(tmp_path, timeouts=AWAY) as server:
            names = [await leave(server, 2) for _ in range(2)]
            await parked(tmp_path, SPEC)
            await asyncio.to_thread(request, tmp_path, "delete", session=names[0].hex(), force=True)
            assert [path.name for path in (tmp_path / "sessions").iterdir()] == [names[1].hex()]
        async with serving(tmp_path, timeouts=AWAY) as server, device(server) as client:
            assert (await client.attach(names[1], SPEC)).received == 2
            with pytest.raises(RemoteError) as info:
                await client.attach(names[0], SPEC)
            assert info.value.code == ErrorCode.SESSION_UNKNOWN

    run_once(main())


def test_the_time_counts_from_the_last_leaving(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A device that was back for a moment is given the whole time again."""

    async def main() -> None:
        spy = Spy()
        async with serving(tmp_path, timeouts=dataclasses.replace(QUICK, away=0.8), meter=spy) as server:
            async with device(server) as client:
                session = await client.open(SPEC)
                await submit(session, 1, 2)
            await asyncio.sleep(0.5)
            async with device(server) as client:
                await client.attach(session.id, SPEC)
            left = time.monotonic()
            while spy.session.training is not None:
                await asyncio.sleep(0.01)
            assert time.monotonic() - left > 0.7

    run_once(main())


def test_sessions_of_an_earlier_run_are_parked(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A server that starts holds no log open of a device that does not come."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            await submit(await client.open(SPEC), 1, 2)
        async with serving(tmp_path, timeouts=AWAY):
            assert open_logs(tmp_path)
            await parked(tmp_path, SPEC, memory=False)

    run_once(main())


def test_a_device_that_comes_back_while_its_session_is_parked(
    run_once: Run, tmp_path: pathlib.Path, undisturbed: bytes
) -> None:
    """It does not wait for the checkpoint, nor do the other sessions of its connection; nothing is lost."""
    gate = threading.Event()

    async def main() -> None:
        spy = Spy()
        async with serving(tmp_path, timeouts=AWAY, meter=spy) as server, device(server) as client:
            session = await client.open(SPEC)
            await submit(session, 1, 2)
            await session.wait_applied()
            await session.detach()
            other = asyncio.create_task(spy.gateway.workers.train("other", lambda: gate.wait(10.0)))
            while spy.session._tasks:  # until it is being parked, and waits for the training thread
                await asyncio.sleep(0.01)
            async with asyncio.timeout(2.0):
                session = await client.attach(session.id, SPEC)
                await submit(session, 3, BATCHES)
                await session.wait_durable()
            gate.set()
            await other
            await session.finish()
            await session.wait_finished()
            assert await session.pull() == undisturbed

    try:
        run_once(main())
    finally:
        gate.set()


def test_a_server_that_stops_while_it_parks(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The session gets its checkpoint all the same."""
    gate = threading.Event()

    async def main() -> None:
        spy = Spy()
        async with serving(tmp_path, timeouts=AWAY, meter=spy) as server:
            await leave(server, 3)
            other = asyncio.create_task(spy.gateway.workers.train("other", lambda: gate.wait(10.0)))
            while spy.session._tasks:
                await asyncio.sleep(0.01)
            threading.Timer(0.3, gate.set).start()
            store = spy.session.store
        await other
        assert store.checkpoints.load() is not None

    run_once(main())


def test_an_unexpected_error(
    run_once: Run, tmp_path: pathlib.Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that fails for any reason leaves a session that its device can go on with."""
    save, broken = Trainer.save, True

    def maybe(self: Trainer, progress: dict[str, Any]) -> bytes:
        if broken:
            raise RuntimeError("out of memory")
        return save(self, progress)

    monkeypatch.setattr(Trainer, "save", maybe)

    async def main() -> None:
        nonlocal broken
        async with serving(tmp_path, timeouts=AWAY) as server:
            name = await leave(server, 2)
            await parked(tmp_path, SPEC, memory=False)
            broken = False
            async with device(server) as client:
                session = await client.attach(name, SPEC)
                assert await complete(session) == undisturbed

    run_once(main())


@pytest.mark.parametrize("end", ["fail", "cancel", "delete"])
def test_memory_of_sessions_that_end_early(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """What waited of a session that failed, or that the operator ended, is not held and not counted."""
    gate = threading.Event()

    def slow(self: Trainer, batch: Batch) -> float | None:
        assert gate.wait(10.0)
        raise RuntimeError("no step")

    monkeypatch.setattr(Trainer, "step", slow)

    async def main() -> None:
        spy = Spy()
        async with serving(tmp_path, timeouts=AWAY, meter=spy) as server:
            async with device(server) as client:
                session = await client.open(SPEC)
                await submit(session, 1, 5)
                await session.wait_durable()
            one = spy.session
            assert one.held
            assert spy.gateway.claimed
            threading.Timer(0.2, gate.set).start()
            if end != "fail":
                await asyncio.to_thread(request, tmp_path, end, session=session.id.hex(), force=True)
            await parked(tmp_path, SPEC, memory=False)
            assert (one.held, one.waiting, one.training) == (0, 0, None)
            assert spy.gateway.claimed == 0

    try:
        run_once(main())
    finally:
        gate.set()


def test_what_is_applied_does_not_fall_within_an_attachment(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[X-3] [X-10] Where no checkpoint could be written, OPENED says so; batches are applied again."""

    async def lost(self: Training) -> bool:
        return False  # as of a worker elsewhere that has died

    monkeypatch.setattr(Training, "checkpoint", lost)

    async def main() -> None:
        async with serving(tmp_path, timeouts=AWAY) as server:
            name = await leave(server, 4)
            await parked(tmp_path, SPEC)
            async with raw(server) as peer:
                opened = await peer.opened(name)
                await peer.applied(4)
                seen = [opened.applied, *(ack.applied for ack in peer.of(Ack))]
                assert seen == sorted(seen)

    run_once(main())


def test_batches_before_the_blobs(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-21] They are refused, so they are held by nobody."""
    what = spec(task="causal-lm", head="ab" * 32, batches=BATCHES)

    async def main() -> None:
        spy = Spy()
        async with serving(tmp_path, timeouts=AWAY, meter=spy) as server:
            async with raw(server) as peer:
                await peer.opened(what)
                await peer.batch(packed(what, 1))
                assert (await peer.get(Error)).code == ErrorCode.SCHEMA_MISMATCH
            await parked(tmp_path, what)
            assert spy.session.held == spy.session.received == spy.gateway.claimed == 0

    run_once(main())


def test_no_file_work_in_the_event_loop(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs are opened and closed in the writing thread."""
    threads: dict[str, set[str]] = {"open": set(), "cut": set()}
    init, cut = ActivationLog.__init__, ActivationLog._cut

    def opening(self: ActivationLog, *args: Any) -> None:
        threads["open"].add(threading.current_thread().name)
        init(self, *args)

    def cutting(self: ActivationLog) -> None:
        threads["cut"].add(threading.current_thread().name)
        cut(self)

    monkeypatch.setattr(ActivationLog, "__init__", opening)
    monkeypatch.setattr(ActivationLog, "_cut", cutting)

    async def main() -> None:
        async with serving(tmp_path, timeouts=AWAY) as server:
            name = await leave(server, 2)
            await parked(tmp_path, SPEC)
            async with device(server) as client:
                await client.attach(name, SPEC)
            await parked(tmp_path, SPEC)

    run_once(main())
    assert all(
        names and all(name.startswith("mobillm-write") for name in names) for names in threads.values()
    )
