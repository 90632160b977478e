"""Token buckets and the budget of one connection, by a clock that only the test moves."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import crc32c
import pytest

from mobillm.errors import ConnectionClosedError, ErrorCode
from mobillm.options import Limits
from mobillm.protocol import (
    Abort,
    Bye,
    Commit,
    Credit,
    Data,
    Error,
    Eval,
    Finish,
    Goaway,
    Message,
    Open,
    Opened,
    Ping,
    Pong,
    Pull,
)
from mobillm.transport import Connection
from mobillm.transport.budget import CONTROL, RATES, Budget, TokenBucket
from tests.conftest import Run
from tests.helpers import SESSION, make_spec
from tests.transport.wire import device, eventually, idle, server, until_end

PING = Ping(data=bytes(8))
ABORT = Abort(stream=1, seq=1)


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the present time."""
        return self.now


def spent(budget: Budget, message: Message) -> int:
    """Return how many of a message the budget allows at once."""
    return next(count for count in itertools.count() if budget.spend(message) is not None)


def test_bucket() -> None:
    """It starts full, fills at its rate up to its burst, and takes all or nothing."""
    clock = Clock()
    bucket = TokenBucket(2.0, 3.0, clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 0.5
    assert [bucket.take(), bucket.take()] == [True, False]
    clock.now += 100
    assert not bucket.take(4)
    assert bucket.take(3)
    bucket.refill()
    assert bucket.take(3)


@pytest.mark.parametrize(
    "message", [ABORT, Eval(stream=1), Pull(stream=1), Open(stream=1, session=bytes(16))]
)
def test_rates(message: Message) -> None:
    """[L-16] A burst passes, then the rate; other frames have a budget of their own."""
    clock = Clock()
    budget = Budget(clock)
    rate, burst = RATES[type(message)]
    assert spent(budget, message) == burst
    assert budget.spend(message) == f"{message.type.name} frames"
    assert budget.spend(Finish(stream=1, seq=1)) is None
    clock.now += 1.01 / rate
    assert spent(budget, message) == 1


def test_a_minute_of_aborts() -> None:
    """[L-16] Ten a minute after the first twenty."""
    clock = Clock()
    budget = Budget(clock)
    assert spent(budget, ABORT) == 20
    clock.now += 60.1
    assert spent(budget, ABORT) == 10


def test_control_frames_together() -> None:
    """[L-16] [K-29] All kinds share one budget, and what is dropped unread is paid from it too."""
    clock = Clock()
    budget = Budget(clock)
    rate, burst = CONTROL
    assert spent(budget, Pong(data=bytes(8))) == burst
    assert budget.spend(ABORT) == "control frames"
    clock.now += 1.0
    assert budget.spend_dropped(int(rate) - 1) is None
    assert budget.spend_dropped(2) == "frames that are only dropped"


def test_two_strikes() -> None:
    """[L-16] The first excess of pings is forgiven, a second within a minute is not, a later one is."""
    clock = Clock()
    budget = Budget(clock)
    burst = int(RATES[Ping][1])
    assert spent(budget, PING) == 2 * burst + 1
    clock.now += 3600
    assert spent(budget, PING) == 2 * burst + 1


def test_charged_frames_are_free() -> None:
    """[K-29] However many small DATA and COMMIT frames come, credit alone bounds them."""
    budget = Budget(Clock())
    part = Data(stream=1, seq=1, tensor=0, offset=8, payload=b"x")
    commit = Commit(stream=1, seq=1, tensors=1, size=1, checksum=0, samples=1)
    assert all(budget.spend(message) is None for message in [part, commit] * 5000)


async def sessions(connection: Connection) -> None:
    """Attach every stream that is opened, with credit; read the rest until the device says goodbye."""
    while True:
        message = await connection.recv()
        if isinstance(message, Bye):
            return
        if isinstance(message, Open):
            connection.post(Opened(stream=message.stream, session=SESSION, epoch=1))
            connection.post(Credit(stream=message.stream, offset=1 << 20, last=100))


@pytest.mark.parametrize("kind", ["PING", "ABORT", "EVAL", "PULL", "PONG"])
def test_a_flood_ends_its_own_connection_only(run: Run, kind: str) -> None:
    """[K-28] [E-10] [L-16] GOAWAY and ERROR with CALM for the flood; another device does not notice."""
    frames: dict[str, Message] = {
        "PING": PING,
        "ABORT": ABORT,
        "EVAL": Eval(stream=1),
        "PULL": Pull(stream=1),
        "PONG": Pong(data=bytes(8)),
    }

    async def main() -> None:
        async with await server(sessions) as listening, device(listening) as calm:
            flood = await device(listening)
            flood.post(Open(stream=1, spec=make_spec().to_map()))
            assert isinstance(await flood.recv(), Opened)
            await flood.recv()
            for _ in range(1000):
                flood.post(frames[kind])
            message = await flood.recv()
            assert isinstance(message, Goaway)
            assert message.code == ErrorCode.CALM
            with pytest.raises(ConnectionClosedError) as info:
                await until_end(flood)
            assert info.value.code == ErrorCode.CALM
            assert "too many" in info.value.text
            assert calm.is_open
            calm.ping()
            await eventually(lambda: calm.keepalive.round_trip is not None)
            await eventually(lambda: listening.connections == 1)

    run(main())


def test_unknown_optional_frames_are_counted(run: Run) -> None:
    """[K-29] Frames that this version skips cannot be sent without bound."""
    unknown = b"ML\x01\x90" + bytes(28)

    async def main() -> None:
        async with await server(idle) as listening:
            flood = await device(listening)
            assert flood._transport is not None
            for _ in range(5):
                flood._transport.write(_checked(unknown) * 100)
            with pytest.raises(ConnectionClosedError, match="frames that are only dropped"):
                await until_end(flood)

    run(main())


def _checked(header: bytes) -> bytes:
    return header[:24] + crc32c.crc32c(header[:24]).to_bytes(4, "big") + crc32c.crc32c(b"").to_bytes(4, "big")


def test_many_small_parts_are_no_flood(run: Run) -> None:
    """[K-29] Two thousand DATA frames at once, and then the connection still works."""

    async def main() -> None:
        async with (
            await server(sessions, limits=Limits(queue=1 << 20)) as listening,
            device(listening) as near,
        ):
            near.post(Open(stream=1, spec=make_spec().to_map()))
            assert isinstance(await near.recv(), Opened)
            assert isinstance(await near.recv(), Credit)
            head: dict[str, Any] = {"format": 0, "block": 0, "shape": (1000,)}
            for offset in range(2000):
                extra = head if offset == 0 else {}
                near.post(Data(stream=1, seq=1, tensor=0, offset=offset, payload=b"x", **extra))
            near.ping()
            await asyncio.sleep(0)
            await eventually(lambda: near.keepalive.round_trip is not None)

    run(main())


def test_frames_of_a_failed_stream(run: Run) -> None:
    """[K-29] What is ignored after a stream has failed counts, unless it is charged."""

    async def failing(connection: Connection) -> None:
        assert isinstance(await connection.recv(), Open)
        connection.post(Opened(stream=1, session=SESSION, epoch=1))
        connection.post(Credit(stream=1, offset=1 << 20, last=100))
        connection.post(Error(stream=1, code=ErrorCode.INTERNAL))
        await idle(connection)

    async def main() -> None:
        async with await server(failing) as listening:
            near = await device(listening)
            near.post(Open(stream=1, spec=make_spec().to_map()))
            while not isinstance(await near.recv(), Error):
                pass
            head: dict[str, Any] = {"format": 0, "block": 0, "shape": (1000,)}
            for offset in range(600):
                extra = head if offset == 0 else {}
                near.post(Data(stream=1, seq=1, tensor=0, offset=offset, payload=b"x", **extra))
            near.ping()
            await eventually(lambda: near.keepalive.round_trip is not None)
            for _ in range(600):
                near.post(Eval(stream=1))
            with pytest.raises(ConnectionClosedError, match="CALM: too many frames that are only dropped"):
                await until_end(near)

    run(main())
