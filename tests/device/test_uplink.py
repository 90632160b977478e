"""Exactly once over connections and servers that break: the weights are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import functools
import itertools
import pathlib
import random
import shutil
import time
from typing import Any

import pytest

from mobillm.device import Client, connect
from mobillm.device.packing import pack_batch
from mobillm.device.uplink import Equalizers, KeptBatch, Uplink
from mobillm.errors import (
    ConfigError,
    ConnectionClosed,
    ErrorCode,
    HandshakeError,
    LocalProtocolError,
    RemoteError,
    StorageError,
)
from mobillm.options import Limits, Timeouts
from mobillm.protocol import Ack, Goaway
from mobillm.server import Gateway, serve
from mobillm.server.batch import Batch
from mobillm.server.log import ActivationLog
from mobillm.server.refusal import RETRY_AFTER, refusal
from mobillm.server.trainer import Trainer
from mobillm.spec import SessionSpec
from tests.conftest import Run
from tests.sessions import KEYS, QUICK, TOKEN, arrays, device, packed, serving, spec, train

BATCHES = 12
SPEC = spec(batches=BATCHES, epochs=2)


async def send(uplink: Uplink, first: int, last: int, chaos: random.Random | None = None) -> None:
    """Send batches tensor by tensor; cut the connection between tensors as ``chaos`` says."""
    for seq in range(first, last + 1):
        data = arrays(seq)
        batch = await uplink.begin(len(data.lengths))
        assert batch.seq == seq
        for number, tensor in pack_batch(uplink.spec, data.taps, data.lengths, data.targets).items():
            if chaos is not None and chaos.random() < 0.1:
                uplink.session.connection.abort()
            await uplink.send(batch, number, tensor)
        if chaos is not None and chaos.random() < 0.1:
            uplink.session.connection.abort()
        await uplink.commit(batch)


async def rest(uplink: Uplink) -> bytes:
    """Finish the session and pull its weights."""
    await uplink.finish()
    await uplink.wait_finished()
    return await uplink.pull()


async def undisturbed(directory: pathlib.Path) -> bytes:
    """Return the weights of a run without any fault."""
    async with serving(directory) as server, device(server) as client:
        return (await train(client, SPEC, BATCHES))[1]


@pytest.mark.parametrize("seed", range(3))
def test_cut_connections(run_once: Run, tmp_path: pathlib.Path, seed: int) -> None:
    """Connections are cut between and inside batches; the weights are bit-equal."""

    async def main() -> None:
        expected = await undisturbed(tmp_path / "a")
        async with serving(tmp_path / "b") as server:
            dial = functools.partial(device, server)
            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=20.0)
            await uplink.start()
            await send(uplink, 1, BATCHES, random.Random(seed))
            assert uplink.losses > 0
            uplink.session.connection.abort()  # and once more, while the server trains the second epoch
            assert await rest(uplink) == expected
            await uplink.close()

    run_once(main())


def test_a_server_that_is_restored_from_a_backup(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has lost cannot be sent again; it is not told either that nothing more will come."""
    step = Trainer.step

    def slow(self: Trainer, *parts: Batch) -> float | None:
        time.sleep(0.1)
        return step(self, *parts)

    async def main() -> None:
        expected = await undisturbed(tmp_path / "a")
        async with serving(tmp_path / "b") as server:
            address = server.address

            dial = functools.partial(connect, address, token=TOKEN, timeouts=QUICK)
            first = Uplink(dial, SPEC, keep=1 << 20, patience=20.0)
            await first.start()
            await send(first, 1, 3)
            await first.session.wait_durable()
        shutil.copytree(tmp_path / "b", tmp_path / "backup")
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "step", slow)  # so that the loss comes before the end of training
            async with serve(address, keys=KEYS, directory=tmp_path / "b", timeouts=QUICK):
                await send(first, 4, BATCHES)
                await first.finish()
                await first.wait_durable()
        async with serve(address, keys=KEYS, directory=tmp_path / "backup", timeouts=QUICK):
            with pytest.raises(LocalProtocolError, match="has lost batch 4"):
                await first.wait_finished()
            second = Uplink(
                dial, SPEC, session=first.id, equalizers=first.session.equalizers, keep=1 << 20, patience=20.0
            )
            await first.close()
            await second.start()
            await send(second, 4, BATCHES)
            assert await rest(second) == expected
            await second.close()

    run_once(main())


def test_restarted_server(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The server stops in mid-run and comes back at the same address; the weights are bit-equal."""

    async def main() -> None:
        expected = await undisturbed(tmp_path / "a")
        async with serving(tmp_path / "b") as server:
            address = server.address

            dial = functools.partial(connect, address, token=TOKEN, timeouts=QUICK)
            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=20.0)
            await uplink.start()
            await send(uplink, 1, 5)

        async def come_back() -> None:
            await asyncio.sleep(0.3)
            async with serve(address, keys=KEYS, directory=tmp_path / "b", timeouts=QUICK):
                await done.wait()

        done = asyncio.Event()
        later = asyncio.get_running_loop().create_task(come_back())
        await send(uplink, 6, BATCHES)
        assert await rest(uplink) == expected
        assert uplink.losses >= 1
        await uplink.close()
        done.set()
        await later

    run_once(main())


def test_restarted_device(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A device that knows only its session's id goes on after what the server has received."""

    async def main() -> None:
        expected = await undisturbed(tmp_path / "a")
        async with serving(tmp_path / "b") as server:
            dial = functools.partial(device, server)
            first = Uplink(dial, SPEC, keep=1 << 20, patience=0)
            await first.start()
            await send(first, 1, 5)
            await first.wait_durable()
            half = await first.begin(4)
            tensors = pack_batch(SPEC, arrays(6).taps, arrays(6).lengths, arrays(6).targets)
            await first.send(half, *next(iter(tensors.items())))
            first.session.connection.abort()  # the process is killed
            await first.close()
            second = Uplink(dial, SPEC, session=first.id, keep=1 << 20, patience=0)
            await second.start()
            assert second.received == 5
            await send(second, 6, BATCHES)
            assert await rest(second) == expected
            await second.close()

    run_once(main())


@pytest.mark.parametrize("batch", [1, 2])
def test_equalizers_over_a_restart(run_once: Run, tmp_path: pathlib.Path, batch: int) -> None:
    """[X-2] [X-18] [X-19] Cut while a batch is open, stopped, started again: the weights are bit-equal."""
    what = spec(batches=5, epochs=2)
    saved: list[Equalizers] = []

    async def submit(uplink: Uplink, first: int, last: int) -> None:
        for seq in range(first, last + 1):
            data = arrays(seq, 24)
            packer = uplink.session.packer
            tensors = pack_batch(what, data.taps, data.lengths, data.targets, packer)
            assert tensors[0].equalizer is not None
            kept = await uplink.begin(24)
            for number, tensor in tensors.items():
                if seq == batch and number == 1:
                    uplink.session.connection.abort()
                await uplink.send(kept, number, tensor)
            await uplink.commit(kept)

    async def main() -> None:
        weights = []
        for place, stop in (("a", 0), ("b", 3)):
            async with serving(tmp_path / place) as server:
                dial = functools.partial(device, server)
                uplink = Uplink(dial, what, keep=1 << 20, patience=20.0)
                uplink.on_equalizers = saved.append
                await uplink.start()
                await submit(uplink, 1, stop)
                if stop:
                    await uplink.wait_durable()
                    assert {tap: item[0] for tap, item in saved[-1].items()} == {0: 1, 1: 1}
                    await uplink.close()
                    session, held = uplink.id, saved[-1]
                    uplink = Uplink(dial, what, session=session, equalizers=held, keep=1 << 20, patience=20.0)
                    await uplink.start()
                await submit(uplink, stop + 1, 5)
                weights.append(await rest(uplink))
                await uplink.close()
        assert weights[0] == weights[1]
        assert len(saved) == 2

    run_once(main())


def test_what_is_kept_is_bounded(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Beyond the bound sending waits for the server's disk, and what is durable is dropped."""

    async def main() -> None:
        size = packed(SPEC, 1).size
        async with serving(tmp_path) as server:
            dial = functools.partial(device, server)
            uplink = Uplink(dial, SPEC, keep=3 * size, patience=0)
            await uplink.start()
            for seq in range(1, BATCHES + 1):
                await send(uplink, seq, seq)
                assert sum(batch.size for batch in uplink._kept) <= 4 * 2 * size
            await uplink.wait_durable()
            assert not uplink._kept
            await uplink.close()

    run_once(main())


def test_only_what_is_durable_is_forgotten(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[X-2] [X-13] A batch that has arrived but is not on the disk is kept, and sent again if it is lost."""

    async def main() -> None:
        expected = await undisturbed(tmp_path / "a")
        async with serving(tmp_path / "b") as server:
            address = server.address

            dial = functools.partial(connect, address, token=TOKEN, timeouts=QUICK)
            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=20.0)
            await uplink.start()
            await send(uplink, 1, 2)
            await uplink.wait_durable()
        # What a server says that has all of them in memory, and is then gone with two of them.
        held = [KeptBatch(seq, 4, False, whole=True) for seq in (3, 4)]
        for batch in held:
            data = arrays(batch.seq)
            tensors = pack_batch(SPEC, data.taps, data.lengths, data.targets)
            batch.tensors = list(tensors.items())
        uplink._kept.extend(held)
        uplink.session.sent = 4
        uplink.session.receive(Ack(stream=1, received=4, durable=2, applied=2))
        uplink._forget()
        assert [batch.seq for batch in uplink._kept] == [3, 4]
        async with serve(address, keys=KEYS, directory=tmp_path / "b", timeouts=QUICK):
            await send(uplink, 5, BATCHES)
            assert uplink.resent == 2
            assert await rest(uplink) == expected
            await uplink.close()

    run_once(main())


def test_patience_ends(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A server that does not come back is an error after the patience, with the last reason."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            address = server.address

            dial = functools.partial(connect, address, token=TOKEN, timeouts=QUICK)
            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=0.6)
            await uplink.start()
            await send(uplink, 1, 2)
        before = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionClosed, match="cannot reach"):
            await send(uplink, 3, 3)
        assert asyncio.get_running_loop().time() - before < 2.0
        await uplink.close()

    run_once(main())


def test_refusals_are_not_tried_again(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A wrong token, an unknown session and a batch that does not fit end the uplink at once."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            tokens = [TOKEN, "wrong"]

            async def dial() -> Client:
                return await device(server, token=tokens.pop(0))

            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=20.0)
            await uplink.start()
            uplink.session.connection.abort()
            with pytest.raises(HandshakeError, match="unknown tenant or wrong token"):
                await send(uplink, 1, 1)
            await uplink.close()

            async def again() -> Client:
                return await device(server)

            unknown = Uplink(again, SPEC, session=bytes(16), keep=1 << 20, patience=20.0)
            with pytest.raises(RemoteError, match="SESSION_UNKNOWN"):
                await unknown.start()

    run_once(main())


@pytest.mark.parametrize("code", ["SERVER_BUSY", "DRAINING", "STORAGE_FULL", "INTERNAL"])
def test_attachments_that_are_refused_for_a_time(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """[E-10] What passes by itself is waited for, at least as long as the server says."""
    attach = Gateway._attach
    attempts: list[float] = []

    async def twice(self: Gateway, connection: Any, stream: int, session: Any, streams: Any) -> None:
        attempts.append(time.monotonic())
        if len(attempts) in (2, 3):
            connection.post(refusal(stream, ErrorCode[code], "not now", retry_after=0.3))
        else:
            await attach(self, connection, stream, session, streams)

    monkeypatch.setattr(Gateway, "_attach", twice)

    async def main() -> None:
        async with serving(tmp_path) as server:
            dial = functools.partial(device, server)
            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=20.0)
            await uplink.start()
            uplink.session.connection.abort()
            await send(uplink, 1, 2)
            await uplink.wait_durable()
            assert all(later - one >= 0.3 for one, later in itertools.pairwise(attempts[1:]))
            assert len(attempts) == 4
            await uplink.close()

    run_once(main())


def test_sessions_that_are_refused_for_a_time(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[E-9] A session that ends because the disk is full goes on when it is not; the weights are the same."""
    append = ActivationLog.append
    failures = itertools.count()

    def failing(self: ActivationLog, batches: Any) -> None:
        if batches[-1].seq >= 5 and next(failures) < 2:
            raise StorageError("the disk is full")
        append(self, batches)

    async def main() -> None:
        expected = await undisturbed(tmp_path / "a")
        monkeypatch.setattr(ActivationLog, "append", failing)
        monkeypatch.setitem(RETRY_AFTER, ErrorCode.STORAGE_FULL, 0.05)
        async with serving(tmp_path / "b") as server:
            dial = functools.partial(device, server)
            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=20.0)
            await uplink.start()
            await send(uplink, 1, BATCHES)
            assert await rest(uplink) == expected
            assert uplink.losses == 2
            await uplink.close()

    run_once(main())


def test_a_server_that_stops_is_left(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[K-14] After GOAWAY no batch is begun: what was sent becomes durable, then the next server is found."""

    async def main() -> None:
        expected = await undisturbed(tmp_path / "a")
        slow = Timeouts(keepalive=None, drain=5.0)
        async with serve("127.0.0.1:0", keys=KEYS, directory=tmp_path / "b", timeouts=slow) as server:
            address = server.address

            dial = functools.partial(connect, address, token=TOKEN, timeouts=QUICK)
            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=20.0)
            await uplink.start()
            await send(uplink, 1, 5)
            first = uplink.session
            stopping = asyncio.create_task(server.close())
            while first.connection.is_open and uplink._client is not None and uplink._client.draining is None:
                await asyncio.sleep(0.005)
            more = asyncio.create_task(send(uplink, 6, BATCHES))
            await asyncio.wait_for(stopping, 3.0)  # long before the time that the server would wait
            assert (first.sent, first.durable) == (5, 5)
        async with serve(address, keys=KEYS, directory=tmp_path / "b", timeouts=QUICK):
            await more
            assert await rest(uplink) == expected
            assert (uplink.losses, uplink.resent) == (1, 0)
            await uplink.close()

    run_once(main())


def test_only_a_planned_stop_is_a_reason_to_leave(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[K-21] GOAWAY with an error's code leaves the last word to the ERROR behind it."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            dial = functools.partial(device, server)
            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=20.0)
            await uplink.start()
            assert uplink._client is not None
            uplink._client.draining = Goaway(code=ErrorCode.CALM)
            await uplink.begin(4)
            assert uplink.losses == 0
            uplink.abort()
            await uplink.close()

    run_once(main())


def test_abort_frees_the_number(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A batch that lacks a tap cannot be ended; given up, its number is used again."""

    async def main() -> None:
        expected = await undisturbed(tmp_path / "a")
        async with serving(tmp_path / "b", limits=Limits()) as server:
            dial = functools.partial(device, server)
            uplink = Uplink(dial, SPEC, keep=1 << 20, patience=0)
            await uplink.start()
            tensors = pack_batch(SPEC, arrays(9).taps, arrays(9).lengths, arrays(9).targets)
            batch = await uplink.begin(4)
            await uplink.send(batch, *next(iter(tensors.items())))
            with pytest.raises(ConfigError, match="missing"):
                await uplink.commit(batch)
            uplink.abort()
            await send(uplink, 1, BATCHES)
            assert await rest(uplink) == expected
            await uplink.close()

    run_once(main())


def test_spec_is_the_sessions() -> None:
    """The uplink's spec is what its batches are packed for."""

    async def dial() -> Client:
        raise AssertionError

    what: SessionSpec = SPEC
    assert Uplink(dial, what, keep=1, patience=None).spec is what
