"""Sessions whose device is away: what they hold, and that they go on as if it had never left."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import pathlib
import threading

import pytest

from mobillm.cli.control import request
from mobillm.errors import ErrorCode, RemoteError, StorageError
from mobillm.server.batch import Batch
from mobillm.server.checkpoints import Checkpoints
from mobillm.server.trainer import Trainer
from mobillm.spec import SessionSpec
from tests.conftest import Run
from tests.sessions import QUICK, device, open_logs, serving, spec, submit, train

BATCHES = 6
SPEC = spec(epochs=2, batches=BATCHES)
AWAY = dataclasses.replace(QUICK, away=0.1)


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
                await submit(session, sent + 1, BATCHES)
                await session.finish()
                assert (await session.wait_finished()).steps == 2 * BATCHES
                assert await session.pull() == undisturbed

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
                await submit(session, 4, BATCHES)
                await session.finish()
                await session.wait_finished()
                assert await session.pull() == undisturbed

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
        names = []
        async with serving(tmp_path, timeouts=AWAY) as server:
            for _ in range(2):
                async with device(server) as client:
                    session = await client.open(SPEC)
                    await submit(session, 1, 2)
                    await session.wait_applied()
                    names.append(session.id)
            await parked(tmp_path, SPEC)
            await asyncio.to_thread(request, tmp_path, "delete", session=names[0].hex(), force=True)
            assert [path.name for path in (tmp_path / "sessions").iterdir()] == [names[1].hex()]
        async with serving(tmp_path, timeouts=AWAY) as server, device(server) as client:
            assert (await client.attach(names[1], SPEC)).received == 2
            with pytest.raises(RemoteError) as info:
                await client.attach(names[0], SPEC)
            assert info.value.code == ErrorCode.SESSION_UNKNOWN

    run_once(main())
