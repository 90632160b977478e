"""Submitting batches: several tasks, cancelling, a server that goes, and bad input."""

from __future__ import annotations

import asyncio
import pathlib
import types
from typing import Any, cast

import numpy as np
import pytest

from mobillm.codec import Equalizer, calibrate
from mobillm.device import Session
from mobillm.errors import ConnectionClosed, ErrorCode, LocalProtocolError, QuantizationError, RemoteError
from mobillm.options import Limits
from mobillm.protocol import Bye, Credit, Error, Open, Opened
from mobillm.transport import Connection, serve
from tests.conftest import Run
from tests.sessions import KEYS, WIDTH, arrays, device, serving, spec, submit, train


async def one(session: Any, seq: int, **options: Any) -> int:
    """Submit the batch with this content."""
    data = arrays(seq)
    number: int = await session.submit(data.taps, data.lengths, data.targets, **options)
    return number


def test_several_tasks_submit_at_once(run: Run, tmp_path: pathlib.Path) -> None:
    """Batches go one after another, each with its own number."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            numbers = await asyncio.gather(*(one(session, seq) for seq in range(1, 9)))
            assert sorted(numbers) == list(range(1, 9))
            await session.finish()
            assert (await session.wait_finished()).steps == 8

    run(main())


def test_cancel_in_mid_batch_and_go_on(run: Run, tmp_path: pathlib.Path) -> None:
    """A batch that was given up half way leaves no trace in the result."""
    limits = Limits(queue=16 * 1024, batches=1, frame=16 * 1024, chunk=1024)

    async def main() -> None:
        async with serving(tmp_path, limits=limits) as server, device(server) as client:
            session = await client.open(spec())
            await one(session, 1)
            big = arrays(7, 3000)
            sending = asyncio.ensure_future(session.submit(big.taps, big.lengths, big.targets))
            while not client.connection.endpoint.batch_summary(session.stream)[1]:
                await asyncio.sleep(0)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert session.sent == 1
            await submit(session, 2, 5)
            await session.finish()
            await session.wait_finished()
            weights = await session.pull()
        async with serving(tmp_path / "other") as server, device(server) as client:
            assert (await train(client, spec(), 5))[1] == weights

    run(main())


def test_server_gone_while_everything_waits(run: Run) -> None:
    """All waiters, those for credit included, get the same clear exception."""

    async def gone(connection: Connection) -> None:
        message = await connection.recv()
        assert isinstance(message, Open)
        connection.post(Opened(stream=1, session=bytes(16), epoch=1))
        await connection.recv()
        connection.abort()

    async def main() -> None:
        async with await serve(gone, "127.0.0.1:0", keys=KEYS) as server:
            client = await device(server)
            session = await client.open(spec())
            waits = [one(session, 1), one(session, 2), session.wait_finished(), session.wait_durable(3)]
            tasks = [asyncio.ensure_future(wait) for wait in waits]
            await asyncio.sleep(0.1)
            tasks.append(asyncio.ensure_future(session.evaluate()))
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, ConnectionClosed) for result in results), results
            assert len({id(result) for result in results}) == len(results)
            await session.detach()  # there is nothing to leave any more
            await client.close()

    run(main())


def test_an_error_reaches_those_who_wait_for_credit(run: Run) -> None:
    """The server's own words come, not what they make impossible."""

    async def refusing(connection: Connection) -> None:
        assert isinstance(await connection.recv(), Open)
        connection.post(Opened(stream=1, session=bytes(16), epoch=1))
        connection.post(Credit(stream=1, offset=200, last=5))
        await asyncio.sleep(0.1)
        connection.post(Error(stream=1, code=27, text="the disk is full"))
        async for message in connection:
            if isinstance(message, Bye):
                return

    async def main() -> None:
        async with await serve(refusing, "127.0.0.1:0", keys=KEYS) as server, device(server) as client:
            session = await client.open(spec())
            results = await asyncio.gather(
                one(session, 1), one(session, 2), session.wait_applied(1), return_exceptions=True
            )
            for result in results:
                assert isinstance(result, RemoteError), results
                assert "the disk is full" in str(result)

    run(main())


def test_waits_for_answers_survive_cancellation(run_once: Run, tmp_path: pathlib.Path) -> None:
    """An answer that a cancelled call left behind is not taken for the next one's."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            await submit(session, 1, 1)
            await one(session, 2, heldout=True)
            await session.wait_applied()
            for call in (session.pull, session.evaluate):
                task = asyncio.ensure_future(call())
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            early = await session.pull()
            await submit(session, 3, 4)
            await session.wait_applied()
            assert await session.pull() != early
            assert (await session.evaluate()).steps == 3
            assert session._waiters == []

    run_once(main())


def test_after_detaching_and_finishing(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A session that was left or finished says so."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            await one(session, 1)
            await session.finish()
            await session.finish()
            with pytest.raises(LocalProtocolError, match="takes no more batches"):
                await one(session, 2)
            await session.detach()
            with pytest.raises(LocalProtocolError, match="was detached"):
                await session.pull()

    run_once(main())


def test_bad_input_leaves_the_session_usable(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Nothing was sent, so the next batch has the number."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            good = arrays(1)
            spoilt = [good.taps[0], np.full_like(good.taps[1], np.nan)]
            with pytest.raises(QuantizationError):
                await session.submit(spoilt, good.lengths, good.targets)
            assert await one(session, 1) == 1
            await session.wait_applied()

    run_once(main())


def test_an_error_that_the_reader_has_not_told_yet(run_once: Run) -> None:
    """What the failed stream forbids is explained by what failed it, even if that is read later."""

    class Failed:
        is_open = True
        endpoint = types.SimpleNamespace(caps=())

        async def send(self, message: object) -> None:
            raise LocalProtocolError(ErrorCode.PROTOCOL, "PULL on a stream that is failed")

    async def main() -> None:
        opened = Opened(stream=1, session=bytes(16), epoch=1)
        session = Session(cast(Any, Failed()), 1, spec(), opened)
        pull = asyncio.ensure_future(session.pull())
        await asyncio.sleep(0.01)
        assert not pull.done()
        session.fail(RemoteError(ErrorCode.QUOTA, "too many"))
        with pytest.raises(RemoteError, match="too many"):
            await pull

    run_once(main())


def test_equalizers_that_the_server_never_got(run: Run, tmp_path: pathlib.Path) -> None:
    """[X-18] One that went with a batch beyond what was received does not count: it is sent again."""
    data = arrays(1, 24)

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            lost = Equalizer(np.ones(WIDTH, np.float16))
            session.recall({0: (1, lost), 1: (2, lost)})
            assert session.equalizers == {}
            await session.submit(data.taps, data.lengths, data.targets)
            assert {tap: item[0] for tap, item in session.equalizers.items()} == {0: 1, 1: 1}
            await session.wait_applied()
            session.recall(session.equalizers | {1: (2, lost)})
            assert list(session.equalizers) == [0]

    run(main())


def test_what_was_calibrated_on_an_aborted_batch_is_forgotten(run: Run, tmp_path: pathlib.Path) -> None:
    """[X-18] Batches packed at the same time wait for the one that brings the equalizers."""
    limits = Limits(queue=16 * 1024, batches=1, frame=16 * 1024, chunk=1024)

    async def main() -> None:
        async with serving(tmp_path, limits=limits) as server, device(server) as client:
            session = await client.open(spec())
            big, small = arrays(7, 3000), arrays(2, 24)
            first = asyncio.ensure_future(session.submit(big.taps, big.lengths, big.targets))
            second = asyncio.ensure_future(session.submit(small.taps, small.lengths, small.targets))
            while not client.connection.endpoint.batch_summary(session.stream)[1]:
                await asyncio.sleep(0)
            first.cancel()
            assert await second == 1
            expected = calibrate(small.taps[0], "x")
            assert expected is not None
            assert session.equalizers[0][1].checksum == expected.checksum
            await session.wait_applied()

    run(main())
