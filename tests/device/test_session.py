"""Submitting batches: several tasks, cancelling, a server that goes, and bad input."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import numpy as np
import pytest

from mobillm.device.session import pack_batch, pack_targets
from mobillm.errors import ConfigError, ConnectionClosed, LocalProtocolError, QuantizationError, RemoteError
from mobillm.formats import Format
from mobillm.options import Limits
from mobillm.protocol import Bye, Credit, Error, Open, Opened
from mobillm.transport import Connection, serve
from tests.conftest import Run
from tests.sessions import KEYS, arrays, device, serving, spec, submit, train


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


GOOD = arrays(1)
TOKENS = sum(GOOD.lengths)


def _tap(value: float, dtype: Any = np.float32) -> Any:
    tap = GOOD.taps[1].astype(dtype)
    tap[2, 5] = value
    return [GOOD.taps[0], tap]


@pytest.mark.parametrize(
    ("taps", "lengths", "targets", "match"),
    [
        (GOOD.taps[:1], GOOD.lengths, GOOD.targets, "tap 1 is 'is missing'"),
        ([*GOOD.taps, GOOD.taps[0]], GOOD.lengths, GOOD.targets, "tap 2"),
        ([t[:, :8] for t in GOOD.taps], GOOD.lengths, GOOD.targets, "tap 0 is .*; expected the shape"),
        ([GOOD.taps[0], GOOD.taps[1][:-1]], GOOD.lengths, GOOD.targets, "tap 1 is .*; expected the shape"),
        ([t[0] for t in GOOD.taps], GOOD.lengths, GOOD.targets, "tap 0"),
        ([np.float32(1.0), GOOD.taps[1]], GOOD.lengths, GOOD.targets, r"tap 0 \(layer 2\)"),
        (_tap(0.0, np.float64), GOOD.lengths, GOOD.targets, r"tap 1 \(layer 4\).*float64.*convert"),
        (GOOD.taps, [], GOOD.targets, "lengths"),
        (GOOD.taps, [1, 1, 1, 1], GOOD.targets, "lengths is 'a sum of 4'"),
        (GOOD.taps, [*GOOD.lengths[:-1], 0], GOOD.targets, "lengths"),
        (GOOD.taps, [TOKENS], GOOD.targets, r"targets is \[4\]; expected the shape \[1\]"),
        (GOOD.taps, [0.5] * 4, GOOD.targets, "lengths"),
        (GOOD.taps, GOOD.lengths, [0, 1, 2, 0], "targets is 2; expected numbers from 0 to 1"),
        (GOOD.taps, GOOD.lengths, [0, -1, 1, 0], "targets is -1"),
        (GOOD.taps, GOOD.lengths, [0.5, 1, 1, 0], "targets"),
        (GOOD.taps, GOOD.lengths, ["a", "b", "c", "d"], "targets"),
        (GOOD.taps, GOOD.lengths, [], "targets"),
        (GOOD.taps, GOOD.lengths, [2**40, 0, 0, 0], "32 bits"),
    ],
)
def test_bad_input_is_named(taps: Any, lengths: Any, targets: Any, match: str) -> None:
    """Shapes, counts and ranges are checked before anything is sent."""
    with pytest.raises(ConfigError, match=match):
        pack_batch(spec(), taps, lengths, targets)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named(value: float) -> None:
    """The tap, its layer and the position are in the error."""
    with pytest.raises(QuantizationError, match=r"tap 1 \(layer 4\) value (nan|inf|-inf) at \[2, 5\]"):
        pack_batch(spec(), _tap(value), GOOD.lengths, GOOD.targets)


def test_bad_input_leaves_the_session_usable(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Nothing was sent, so the next batch has the number."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            with pytest.raises(QuantizationError):
                await session.submit(_tap(np.nan), GOOD.lengths, GOOD.targets)
            assert await one(session, 1) == 1
            await session.wait_applied()

    run_once(main())


def test_targets_of_each_task() -> None:
    """Whole numbers may be floats; next tokens may be left out; values must be finite."""
    assert pack_targets(spec(), [0.0, 1.0]).header.format is Format.I32
    language = spec(task="causal-lm", head="0" * 64)
    assert bytes(pack_targets(language, [1, -100]).payload) == np.array([1, -100], "<i4").tobytes()
    value = spec(task="regression", outputs=1)
    assert pack_targets(value, [1, 2]).header.format is Format.F32
    with pytest.raises(QuantizationError, match="targets"):
        pack_targets(value, [1.0, np.nan])
