"""Tests of mobillm.conformance.host."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import pytest
import safetensors.numpy

from mobillm.cli import conformance_client
from mobillm.conformance import Deviation, Visit
from mobillm.conformance.host import WEIGHTS, Host
from mobillm.conformance.wire import frame
from mobillm.options import Timeouts
from mobillm.protocol import Commit, FrameBuffer, FrameType, Open, Pull, decode_message
from mobillm.transport import Address, connect
from tests.conftest import Run

Drive = Callable[[str, str], Awaitable[int]]


async def _with_host(
    work: Callable[[Host], Awaitable[None]], drive: Drive = conformance_client.visit
) -> None:
    visit = Visit(drive, Address("127.0.0.1", 0), "a token", bound=5.0)
    try:
        await work(await Host.meet(visit))
    finally:
        await visit.close()


def test_a_whole_session(run: Run) -> None:
    """The host answers everything that a client asks for."""

    async def work(host: Host) -> None:
        await host.begin()
        assert isinstance(await host.until(Commit), Commit)
        await host.answer(host.last[Commit])
        await host.until(Pull)
        await host.answer(host.last[Pull])
        await host.serve()
        await host.visit.succeeds()
        assert host.batches == [1, 2, 3]

    run(_with_host(work))


def test_a_client_that_breaks_the_protocol_is_seen(run_once: Run) -> None:
    """Credit that was not granted, states and batches: the core of a server looks at each frame."""

    async def drive(address: str, token: str) -> int:
        async with connect(address, token=token, timeouts=Timeouts(drain=0.2)) as connection:
            assert connection._transport is not None
            connection._transport.write(frame(FrameType.FINISH, stream=1))
            await asyncio.sleep(0.2)
            connection.abort()
        return 1

    async def work(host: Host) -> None:
        await host.shake()
        with pytest.raises(Deviation, match="the client broke the protocol"):
            await host.peer.expect(Open)

    run_once(_with_host(work, drive))


def test_a_wrong_proof_is_seen(run_once: Run) -> None:
    """The client must hold the token."""

    async def drive(address: str, _token: str) -> int:
        return await conformance_client.visit(address, "another token")

    async def work(host: Host) -> None:
        await host.challenge()
        with pytest.raises(Deviation, match="proof of the token"):
            await host.authenticated()

    run_once(_with_host(work, drive))


def test_what_comes_before_pong_is_kept(run_once: Run) -> None:
    """[K-8] A client that sends ahead answers PING behind what it had sent; all of that is answered later."""

    async def drive(address: str, token: str) -> int:
        async with connect(address, token=token, timeouts=Timeouts(drain=0.2)) as connection:
            assert connection._transport is not None
            connection._transport.write(b"".join(ahead))
            await asyncio.sleep(0.2)
            connection.abort()
        return 1

    pongs = [frame(FrameType.PONG, {"data": bytes([n] * 8)}) for n in (1, 2)]
    ahead = [frame(FrameType.OPEN, {"session": bytes(16)}, stream=1), pongs[0], pongs[1]]

    async def work(host: Host) -> None:
        await host.shake()
        assert (await host.pong()).data == bytes([1] * 8)
        assert (await host.until(Open)).stream == 1
        assert (await host.pong()).data == bytes([2] * 8)

    run_once(_with_host(work, drive))


def test_weights_are_a_file() -> None:
    """They can be read, and a part of them says what the whole is."""
    assert safetensors.numpy.load(WEIGHTS)["x"].shape == (64,)
    host = Host.__new__(Host)
    host.stream = 2
    data = host.raw_weights(5, 9, steps=4)
    message = decode_message(next(FrameBuffer(1 << 20).receive_data(data)))
    assert message == host.weights(5, 9).__class__(
        stream=2,
        digest=hashlib.sha256(WEIGHTS).digest(),
        total=len(WEIGHTS),
        offset=5,
        steps=4,
        payload=WEIGHTS[5:9],
    )
