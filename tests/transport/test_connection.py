"""An open connection: keepalive, cancelling, backpressure in both directions, and closing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

import pytest

from mobillm.errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ErrorCode,
    LocalProtocolError,
)
from mobillm.options import Limits, Timeouts
from mobillm.protocol import Ack, Bye, Commit, Credit, Data, Endpoint, Eval, Evaluated, Message, Ping
from mobillm.transport import Connection
from tests.conftest import Run
from tests.helpers import KEY, TENANT, EndpointPair, make_data
from tests.transport.wire import (
    QUICK,
    attach,
    eventually,
    given_up_once_nothing_moves,
    pair,
    payload_of,
    until_end,
)

KEEPALIVE = Timeouts(keepalive=0.15, keepalive_reply=0.3, drain=0.5)
SMALL = Limits(frame=16384, chunk=8192, outbound=64 * 1024)
CHUNK = 8192


def part(number: int, *, seq: int = 1, size: int = CHUNK) -> Data:
    """Return one part of a long tensor."""
    data = bytes([number % 251]) * size
    return make_data(seq, 0, data, offset=number * size, values=1 << 23)


async def flood(connection: Connection, count: int) -> int:
    """Send parts; return how many."""
    for number in range(count):
        await connection.send(part(number))
    return count


def test_keepalive_pings_an_idle_peer(run: Run) -> None:
    """[K-2] [K-8] [L-13] An idle connection is pinged and stays."""

    async def main() -> None:
        async with pair(timeouts=KEEPALIVE) as (near, far):
            await eventually(lambda: near.keepalive.round_trip is not None)
            assert 0 <= (near.keepalive.round_trip or 0.0) < 1.0
            assert abs(near.keepalive.clock_offset or 0.0) < 0.5  # both are on this machine's clock
            await asyncio.sleep(0.6)
            assert near.is_open
            assert far.is_open

    run(main())


def test_keepalive_finds_a_dead_peer(run: Run) -> None:
    """[K-11] [L-13] A peer that stopped reading and writing is given up after both bounds."""

    async def main() -> None:
        async with pair(timeouts=KEEPALIVE) as (near, far):
            far._pause(True)  # what the peer would do if its process had stopped
            start = time.monotonic()
            with pytest.raises(ConnectionClosedError) as info:
                await near.recv()
            assert info.value.code == ErrorCode.IDLE_TIMEOUT
            assert 0.4 < time.monotonic() - start < 3.0

    run(main())


def test_keepalive_waits_while_the_network_takes_what_is_ahead_of_the_ping(run: Run) -> None:
    """[K-30] On a slow link a peer is not dead that cannot have seen the PING; once nothing moves, it is."""

    async def main() -> None:
        async with pair(timeouts=KEEPALIVE) as (near, far):
            await attach(near, far)
            await given_up_once_nothing_moves(near, far)

    run(main())


def test_keepalive_does_not_blame_the_peer_for_our_not_reading(run: Run) -> None:
    """While we hold reading back, silence proves nothing."""

    async def main() -> None:
        async with pair(timeouts=KEEPALIVE, server_timeouts=KEEPALIVE, limits=SMALL) as (near, far):
            await attach(near, far)
            sending = asyncio.get_running_loop().create_task(flood(near, 1000))
            await eventually(lambda: not far._reading)
            # The server does not read on for longer than both bounds, and yet keeps the connection.
            for _ in range(8):
                near.keepalive.last_read = (
                    near._loop.time()
                )  # the device cannot know; its own bound is not the matter
                await asyncio.sleep(0.1)
            assert far.is_open
            reading = asyncio.get_running_loop().create_task(take(far, 1000))
            assert await sending == await reading == 1000

    run(main())


async def take(connection: Connection, count: int) -> int:
    """Receive parts and check their order; return how many."""
    for number in range(count):
        payload = payload_of(await connection.recv())
        assert payload[0] == number % 251
    return count


def test_recv_can_be_cancelled(run: Run) -> None:
    """A cancelled recv loses no message, and leaves nothing in the connection."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far)
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await far.recv()
            assert far._waiters == []
            near.post(Eval(stream=1))
            assert isinstance(await far.recv(), Eval)

    run(main())


def test_send_can_be_cancelled_while_it_waits_for_credit(run: Run) -> None:
    """[C-11] A cancelled send was not sent; after credit the same message goes."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far, credit=100)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await near.send(part(0))
            assert near.endpoint.credit_used(1) == 0
            far.post(Credit(stream=1, offset=1 << 20, last=100))
            await near.send(part(0))
            assert payload_of(await far.recv()).nbytes == CHUNK

    run(main())


def test_send_waits_for_the_link(run: Run) -> None:
    """A peer that does not read holds the sender back, in bytes; cancelling is safe there too."""

    async def main() -> None:
        async with pair(limits=SMALL, device_limits=SMALL) as (near, far):
            await attach(near, far)
            sending = asyncio.get_running_loop().create_task(flood(near, 4000))
            await eventually(lambda: not far._reading and not near._writable)
            sent = near.bytes_sent
            await asyncio.sleep(0.1)
            assert near.bytes_sent == sent  # it waits
            assert far._held <= SMALL.frame + CHUNK
            assert near._transport is not None
            buffered = near._transport.get_write_buffer_size()
            assert 0 < buffered <= 4 * CHUNK
            assert near.unsent > buffered  # the system's buffer is full too
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            parts = 0
            while parts * CHUNK < sent - 4 * CHUNK:
                assert payload_of(await far.recv()).nbytes == CHUNK
                parts += 1
            # The core knows which part was the last to be sent: the next one is accepted.
            await near.send(part(near.endpoint._streams[1].batch._offset // CHUNK))

    run(main())


def test_a_slow_reader_is_cut_off(run: Run) -> None:
    """Control frames that nobody reads are bounded; then the connection ends with SLOW_CONSUMER.

    [K-25] [L-11]
    """

    async def main() -> None:
        async with pair(limits=SMALL) as (near, far):
            await attach(near, far)
            near._pause(True)
            with pytest.raises(ConnectionClosedError) as info:
                await report_for_ever(far)
            assert info.value.code == ErrorCode.SLOW_CONSUMER
            near.abort()

    run(main())


async def report_for_ever(connection: Connection) -> None:
    """Send control frames whether or not they are read."""
    while True:
        connection.post(Evaluated(stream=1, steps=1, samples=1, values={"x" * 60: 1.0}))
        await asyncio.sleep(0)


def test_control_frames_overtake_data(run: Run) -> None:
    """[K-7] [K-8] [K-27] A PING is answered while a long upload waits for its turn."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far)
            sending = asyncio.get_running_loop().create_task(flood(near, 400))
            reading = asyncio.get_running_loop().create_task(take(far, 400))
            await asyncio.sleep(0)
            near.ping()
            await eventually(lambda: near.keepalive.round_trip is not None)
            assert (near.keepalive.round_trip or 9.0) < 1.0
            assert await sending == await reading == 400

    run(main())


def test_a_waiting_upload_does_not_block_control(run: Run) -> None:
    """[K-7] While data waits for credit, other messages pass."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far, credit=10)
            waiting = asyncio.get_running_loop().create_task(near.send(part(0)))
            await asyncio.sleep(0.02)
            await near.send(Eval(stream=1))
            assert isinstance(await far.recv(), Eval)
            far.post(Credit(stream=1, offset=1 << 20, last=9))
            await waiting
            assert near.credit_wait > 0.0

    run(main())


class Recorder(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Take no note."""

    def write(self, data: Any) -> None:
        """Keep the very object."""
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        """Return that nothing waits."""
        return 0

    def is_closing(self) -> bool:
        """Return that it is open."""
        return False


def test_payloads_are_not_copied(run_once: Run) -> None:
    """The transport gets the caller's own memory."""

    async def main() -> None:
        wire = EndpointPair.attached()
        connection = Connection(
            wire.device, timeouts=Timeouts(handshake=None, keepalive=None), limits=Limits()
        )
        transport = Recorder()
        connection.connection_made(transport)
        memory = bytearray(b"\x07" * 64)
        first = make_data(1, 0, bytes(64), values=16)
        await connection.send(dataclasses.replace(first, payload=memoryview(memory)))
        buffer = transport.written[-1]
        assert buffer.obj is memory
        assert memory == b"\x07" * 64
        connection.connection_lost(None)

    run_once(main())


def test_close_from_both_sides_and_twice(run: Run, no_fd_leak: None) -> None:
    """Closing says goodbye; doing it again, at once or later, changes nothing."""

    async def main() -> None:
        async with pair() as (near, far):
            await asyncio.gather(near.close(), near.close(), answer(far))
            await near.close()
            with pytest.raises(ConnectionClosedOK):
                await near.recv()
            with pytest.raises(ConnectionClosed):
                near.post(Ping(data=bytes(8)))
            with pytest.raises(ConnectionClosed):
                await near.send(Eval(stream=1))

    run(main())


async def answer(connection: Connection) -> None:
    """Read up to the goodbye, and answer it."""
    while not isinstance(await connection.recv(), Bye):
        pass
    await connection.close()


def test_close_is_bounded(run: Run) -> None:
    """A peer that does not answer the goodbye delays closing up to the bound."""

    async def main() -> None:
        async with pair(timeouts=Timeouts(drain=0.3, keepalive=None)) as (near, _):
            start = time.monotonic()
            await near.close()
            assert 0.2 < time.monotonic() - start < 2.0

    run(main())


def test_close_reads_on(run: Run) -> None:
    """Closing does not wait for messages that nobody will take."""

    async def main() -> None:
        async with pair(device_limits=SMALL, limits=SMALL) as (near, far):
            await attach(near, far)
            for _ in range(100):
                far.post(Evaluated(stream=1, steps=1, samples=1, values={}))
            near._reading = False
            near._pause(True)
            start = time.monotonic()
            await asyncio.gather(near.close(), answer(far))
            assert time.monotonic() - start < 1.5

    run(main())


def test_messages_can_be_iterated(run: Run) -> None:
    """[K-6] [K-23] Iterating ends with an agreed end, and raises at any other."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far)
            far.post(Ack(stream=1, received=0, durable=0, applied=0))
            far.post(Bye())
            found: list[Message] = [message async for message in near]
            assert [type(message) for message in found] == [Ack, Bye]
        async with pair() as (near, far):
            far.abort()
            with pytest.raises(ConnectionClosedError):
                async for _ in near:
                    pass

    run(main())


def test_a_broken_rule_is_told_and_raised_on_both_sides(run: Run) -> None:
    """[E-8] The peer of a rule breaker says why, even if it was in the middle of an upload."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far)
            assert near._transport is not None
            near._pause(True)  # it is busy with writing, and reads the answer only later
            for _ in range(8):
                near._transport.write(b"?" * 65536)
                await asyncio.sleep(0.02)
            assert far.endpoint.is_closed()
            near._pause(False)
            with pytest.raises(ConnectionClosedError, match="not a MobiLLM frame"):
                await until_end(far)
            with pytest.raises(ConnectionClosedError) as info:
                await until_end(near)
            assert info.value.code == ErrorCode.PROTOCOL

    run(main())


def test_upload_on_a_stream_that_takes_none(run: Run) -> None:
    """Waiting for credit that cannot come is refused instead."""

    async def main() -> None:
        async with pair() as (near, _):
            with pytest.raises(LocalProtocolError):
                await near.send(Commit(stream=1, seq=1, tensors=1, size=4, checksum=0, samples=1))

    run(main())


def test_handshake_failure_before_a_transport(run_once: Run) -> None:
    """A connection that never was can be aborted and shown."""

    async def main() -> None:
        endpoint = Endpoint.device(TENANT, KEY, nonce=bytes(16))
        connection = Connection(endpoint, timeouts=QUICK, limits=Limits())
        connection.abort()
        assert connection.peer == "unknown"
        assert "Connection device" in repr(connection)
        with contextlib.suppress(ConnectionClosed):
            connection.post(Ping(data=bytes(8)))
        assert not connection.is_open

    run_once(main())
