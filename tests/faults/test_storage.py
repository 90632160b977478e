"""Rows 58 to 63 of the fault table: exactly once, servers that die, and disks that fail."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pathlib
import random
import signal
import subprocess

import pytest

from benchmarks.tap import available as is_root_with_tun
from mobillm.conformance.samples import tiny_batch
from mobillm.device.uplink import Uplink
from mobillm.errors import ErrorCode, RemoteError, StorageError
from mobillm.protocol import FrameType, Gap
from mobillm.server import serve
from mobillm.server.registry import Registry
from mobillm.server.store import SessionStore
from mobillm.spec import SessionSpec
from mobillm.transport import Address
from tests.conftest import Run
from tests.faults.launcher import PATIENT, launched, through
from tests.faults.neighbour import Neighbour
from tests.faults.proxy import proxied
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


def test_row_58_lost_acknowledgement(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Batches arrive, their ACKs do not: sent again, acknowledged again, applied once."""

    async def main() -> None:
        expected = await undisturbed()
        async with scene(tmp_path) as stage, proxied(stage.address) as proxy:
            uplink = uplink_to(proxy.address)
            await uplink.start()
            await send(uplink, 1, 2)
            await uplink.wait_durable()
            proxy.black_hole(True, 1)
            await send(uplink, 3, 4)
            await asyncio.sleep(0.2)  # they are on the server's disk now
            proxy.cut_all()
            proxy.black_hole(False, 1)
            await send(uplink, 5, BATCHES)
            require_same(await rest(uplink), expected)
            assert stage.log_of(uplink.id) == list(range(1, BATCHES + 1))

    run_once(main())


def test_row_58_resent_batch(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A batch that is sent twice on one connection is acknowledged twice and applied once."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            await stream.submit(tiny_batch(1))
            await stream.acked(applied=1)
            await stream.submit(tiny_batch(1))
            await stream.submit(tiny_batch(2))
            await stream.acked(applied=2)
            await stream.control(FrameType.FINISH, seq=2)
            assert stage.log_of(stream.opened.session) == [1, 2]
            await stage.lab.finished(stream.opened.session, steps=2)

    run_once(main())


def test_row_59_same_number_other_bytes(
    run_once: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A number that is used again for other bytes ends the stream with SEQ_REUSE; the log keeps the first."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            caplog.set_level(logging.INFO, "mobillm")
            stream = await stage.lab.attach()
            await stream.submit(tiny_batch(1))
            await stream.acked(applied=1)
            await stream.submit(tiny_batch(1, variant=1))
            await stream.failed(ErrorCode.SEQ_REUSE)
            again = await stage.lab.resume(stream.opened.session)
            assert again.opened.received == 1

    run_once(main())
    caplog.clear()


def test_row_60_gap(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A number that is left out is asked for; what comes after it is not applied."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            await stream.submit(tiny_batch(1), tiny_batch(3))
            gap = await stream.peer.expect(Gap, stream=1)
            assert (gap.seq, gap.expected) == (3, 2)
            await stream.submit(tiny_batch(2), tiny_batch(3))
            await stream.acked(applied=3)
            assert stage.log_of(stream.opened.session) == [1, 2, 3]

    run_once(main())


def test_row_61_killed_server(run_once: Run, tmp_path: pathlib.Path) -> None:
    """SIGKILL in mid-session: the same weights."""

    async def main() -> None:
        await undisturbed()
        with launched(tmp_path / "server") as server:

            def disturb() -> None:
                server.kill()
                server.start()

            uplink = await through(server, disturb)
            assert uplink.losses >= 1

    run_once(main())


DIES_IN_CHECKPOINT = """
import mobillm.server.files as files
replace = os.replace
def dying(source, target):
    if "checkpoint" in str(target):
        %s
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
files.os.replace = dying
import mobillm.server.training as training
training.CHECKPOINT_INTERVAL = 0.0
"""


@pytest.mark.parametrize("moment", ["pass", pytest.param("replace(source, target)", marks=pytest.mark.slow)])
def test_row_61_killed_in_a_checkpoint(run_once: Run, tmp_path: pathlib.Path, moment: str) -> None:
    """SIGKILL while a checkpoint is written, before and after its rename: the same weights."""

    async def main() -> None:
        expected = await undisturbed()
        with launched(tmp_path / "server", DIES_IN_CHECKPOINT % moment) as server:
            uplink = uplink_to(server.address, timeouts=PATIENT, patience=60.0)
            await uplink.start()
            async with Neighbour(server.address, latency=None):
                sending = asyncio.create_task(send(uplink, 1, BATCHES))
                assert await asyncio.to_thread(server.wait) == -signal.SIGKILL
                await asyncio.to_thread(server.start)
                await sending
                require_same(await rest(uplink), expected)

    run_once(main())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_row_61_killed_over_and_over(tmp_path: pathlib.Path) -> None:
    """Twenty SIGKILLs at random moments: the same weights, each batch once in the log."""
    what = SessionSpec.from_map({**SPEC.to_map(), "batches": 120})
    chance = random.Random(61)

    async def main() -> None:
        expected = await undisturbed(what)
        with launched(tmp_path / "server") as server:
            uplink = uplink_to(server.address, what, timeouts=PATIENT, patience=None)
            await uplink.start()

            async def train() -> bytes:
                await send(uplink, 1, 120, pause=0.1)
                return await rest(uplink)

            async with Neighbour(server.address, latency=None):
                training = asyncio.create_task(train())
                for _ in range(20):
                    await eventually(lambda: training.done() or uplink.session.connection.is_open, 60.0)
                    await asyncio.sleep(chance.uniform(0.05, 1.0))
                    if training.done():
                        break
                    server.kill()
                    await asyncio.to_thread(server.start)
                require_same(await training, expected)
            assert uplink.losses >= 5

    asyncio.run(main())


class Disk:
    """Syncs of one session's log that fail while ``error`` is set; the neighbour's disk is another one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: int | None = None
        self.session = "?"
        self.failures = 0
        self._sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def fdatasync(self, file: int) -> None:
        """Sync a file, or fail."""
        if self.error is not None and self.session in os.readlink(f"/proc/self/fd/{file}"):
            self.failures += 1
            raise OSError(self.error, os.strerror(self.error))
        self._sync(file)


async def until_the_disk_is_full(uplink: Uplink, begin: int) -> None:
    """Go on from a batch until the server cannot store something, which must come."""

    async def work() -> None:
        for seq in range(begin, BATCHES + 1):
            await send(uplink, seq, seq)
            await uplink.wait_durable()
        await uplink.finish()
        await uplink.wait_finished()

    with pytest.raises(RemoteError) as caught:
        await work()
    assert caught.value.code == ErrorCode.STORAGE_FULL


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_row_62_failed_sync(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A sync that fails: STORAGE_FULL, nothing acknowledged, reads are served; later the same weights."""

    async def main() -> None:
        expected = await undisturbed()
        disk = Disk(monkeypatch)
        async with scene(tmp_path) as stage:
            uplink = uplink_to(stage.address)
            await uplink.start()
            disk.session = uplink.id.hex()
            await send(uplink, 1, 3)
            await uplink.wait_durable()
            disk.error = error
            await until_the_disk_is_full(uplink, 4)
            assert uplink.session.durable == 3
            assert disk.failures == 1  # a failed sync is never tried again on the same bytes
            await uplink.close()
            reading = uplink_to(stage.address, session=uplink.id)
            await reading.start()
            assert reading.received == 3
            assert await reading.pull()
            await reading.close()
            disk.error = None
            again = uplink_to(stage.address, session=uplink.id)
            await again.start()
            assert again.received == 3
            await send(again, 4, BATCHES)
            require_same(await rest(again), expected)
            assert stage.log_of(uplink.id) == list(range(1, BATCHES + 1))

    run_once(main())


def test_row_62_torn_write(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Bytes that were written before the power went, in part: cut off, asked for again, the same weights."""

    async def main() -> None:
        expected = await undisturbed()
        address: Address | None = None
        async with serve("127.0.0.1:0", keys=KEYS, directory=tmp_path, timeouts=QUICK) as server:
            address = server.address
            uplink = uplink_to(address)
            await uplink.start()
            await send(uplink, 1, 4)
            await uplink.wait_durable()
        log = tmp_path / "sessions" / uplink.id.hex() / "activations.log"
        for path in log.parent.glob("checkpoint-*"):
            path.unlink()  # the power went before there was one
        os.truncate(log, log.stat().st_size - 100)
        async with serve(str(address), keys=KEYS, directory=tmp_path, timeouts=QUICK):
            again = uplink_to(address, session=uplink.id)
            await again.start()
            assert again.received == 3
            await send(again, 4, BATCHES)
            require_same(await rest(again), expected)

    run_once(main())


SMALL_FILES = """
import errno
pwritev = os.pwritev
def limited(file, buffers, offset):
    if offset + sum(map(len, buffers)) > 2_000:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return pwritev(file, buffers, offset)
os.pwritev = limited
"""


@pytest.mark.slow
def test_row_62_file_limit(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A log that may not grow: STORAGE_FULL; a server that may write goes on to the same weights."""

    async def main() -> None:
        expected = await undisturbed()
        with launched(tmp_path / "server", SMALL_FILES) as server:
            uplink = uplink_to(server.address)
            await uplink.start()
            async with Neighbour(server.address, latency=None, idle=True):
                await until_the_disk_is_full(uplink, 1)
                await uplink.close()
                server.kill()
                await asyncio.to_thread(server.start)
                again = uplink_to(server.address, session=uplink.id)
                await again.start()
                await send(again, again.received + 1, BATCHES)
                require_same(await rest(again), expected)

    run_once(main())


@pytest.mark.skipif(not is_root_with_tun(), reason="needs root to mount a small tmpfs")
def test_row_62_full_disk(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A disk that is full: STORAGE_FULL; with room again the same weights."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this root may not mount")

    async def main() -> None:
        expected = await undisturbed()
        with launched(place / "server") as server:
            uplink = uplink_to(server.address)
            await uplink.start()
            async with Neighbour(server.address, idle=True):
                await send(uplink, 1, 3)
                await uplink.wait_durable()
                free = os.statvfs(place)
                (place / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))
                await until_the_disk_is_full(uplink, 4)
                await uplink.close()
                (place / "ballast").unlink()
                again = uplink_to(server.address, session=uplink.id)
                await again.start()
                assert again.received >= 3
                await send(again, again.received + 1, BATCHES)
                require_same(await rest(again), expected)

    try:
        run_once(main())
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


async def half_a_session(directory: pathlib.Path) -> bytes:
    """Train four batches with two checkpoints; return the session's name."""
    async with serve("127.0.0.1:0", keys=KEYS, directory=directory, timeouts=QUICK) as server:
        uplink = uplink_to(server.address)
        await uplink.start()
        await send(uplink, 1, 2)
        await uplink.session.wait_applied()
        await uplink.close()
    async with serve("127.0.0.1:0", keys=KEYS, directory=directory, timeouts=QUICK) as server:
        again = uplink_to(server.address, session=uplink.id)
        await again.start()
        await send(again, 3, 4)
        await again.session.wait_applied()
        await again.close()
    return uplink.id


def damage(path: pathlib.Path, kind: str) -> None:
    """Turn a bit of a file, or cut it."""
    if kind == "truncation":
        os.truncate(path, path.stat().st_size // 2)
        return
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["bit flip", "truncation"])
def test_row_63_damaged_checkpoint(
    run_once: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The one before it is used, with an error in the log, and the weights are the same."""

    async def main() -> None:
        expected = await undisturbed()
        name = await half_a_session(tmp_path)
        checkpoints = sorted((tmp_path / "sessions" / name.hex()).glob("checkpoint-*"))
        assert len(checkpoints) == 2
        damage(checkpoints[-1], kind)
        caplog.clear()
        async with scene(tmp_path) as stage:
            again = uplink_to(stage.address, session=name)
            await again.start()
            await send(again, 5, BATCHES)
            require_same(await rest(again), expected)
        assert any("is damaged" in r.message and r.levelno >= logging.ERROR for r in caplog.records)

    run_once(main())
    caplog.clear()


def test_row_63_all_checkpoints_damaged(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The session is refused, and never begun anew; nothing of it is deleted."""

    async def main() -> None:
        await undisturbed()
        name = await half_a_session(tmp_path)
        place = tmp_path / "sessions" / name.hex()
        checkpoints = sorted(place.glob("checkpoint-*"))
        for path in checkpoints:
            damage(path, "bit flip")
        with Registry(tmp_path / "registry.sqlite") as registry, pytest.raises(StorageError, match="restore"):
            SessionStore(place, registry, name).checkpoints.load()
        async with scene(tmp_path) as stage:
            client = await dial(stage.address)

            async def pull() -> None:
                await (await client.attach(name, SPEC)).pull()

            with pytest.raises(RemoteError) as caught:
                await pull()
            assert (caught.value.code, caught.value.retry_after) == (ErrorCode.INTERNAL, None)
            await client.close()
        assert sorted(place.glob("checkpoint-*")) == checkpoints

    run_once(main())


def test_row_63_damaged_log(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A bit that turned in the middle of the log is found: the session is refused, not trained on it."""

    async def main() -> None:
        await undisturbed()
        name = await half_a_session(tmp_path)
        log = tmp_path / "sessions" / name.hex() / "activations.log"
        data = bytearray(log.read_bytes())
        data[len(data) // 8] ^= 1
        log.write_bytes(data)
        async with scene(tmp_path) as stage:
            client = await dial(stage.address)
            with pytest.raises(RemoteError):
                await client.attach(name, SPEC)
            await client.close()
        assert log.read_bytes() == data

    run_once(main())
