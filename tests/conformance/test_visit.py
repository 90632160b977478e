"""Tests of mobillm.conformance.visit."""

from __future__ import annotations

import asyncio
import sys

import pytest

from mobillm.conformance import Deviation, Drive, Visit, command_drive
from mobillm.transport import Address
from tests.conftest import Run

HERE = Address("127.0.0.1", 0)
CLIENT = (
    "import socket, sys; address = sys.argv[1].split('//')[1].split(':'); print(sys.argv[2]); "
    "socket.create_connection(address).close(); sys.exit(7)"
)
COMMAND = f'{sys.executable} -c "{CLIENT}" {{address}} {{token}}'


async def _at_once(_address: str, _token: str) -> int:
    return 3


async def _never(_address: str, _token: str) -> int:
    await asyncio.sleep(3600)
    return 0


async def _connects(address: str, _token: str) -> int:
    _, writer = await asyncio.open_connection(*address.removeprefix("mobillm://").split(":"))
    writer.close()
    await writer.wait_closed()
    return 0


def test_a_command_is_run(run: Run) -> None:
    """Address and token are filled in, its output is noted, and its status is known."""
    lines: list[str] = []

    async def main() -> None:
        visit = Visit(command_drive(COMMAND, lines.append), HERE, "the token")
        try:
            peer = await visit.begin()
            await peer.closed()
            await visit.fails()
            assert await visit.status() == 7
            with pytest.raises(Deviation, match="status 0; it is 7"):
                await visit.succeeds()
        finally:
            await visit.close()

    run(main())
    assert lines == ["the token"]


def test_a_command_that_goes_on_is_killed(run_once: Run) -> None:
    """Closing the visit ends the process."""
    sleeping = command_drive(f'{sys.executable} -c "import time; time.sleep(3600)"')

    async def main() -> None:
        visit = Visit(sleeping, HERE, "x")
        arrival = asyncio.create_task(visit.begin())
        await asyncio.sleep(0.3)
        arrival.cancel()
        await asyncio.gather(arrival, return_exceptions=True)
        await visit.close()

    run_once(main())


@pytest.mark.parametrize(("drive", "text"), [(_at_once, "it ended with status 3"), (_never, "it still runs")])
def test_a_client_that_does_not_come(
    run_once: Run, monkeypatch: pytest.MonkeyPatch, drive: Drive, text: str
) -> None:
    """Its status or its silence is told."""
    monkeypatch.setattr("mobillm.conformance.visit.ARRIVAL", 0.2)

    async def main() -> None:
        visit = Visit(drive, HERE, "x")
        try:
            with pytest.raises(Deviation, match=text):
                await visit.begin()
        finally:
            await visit.close()

    run_once(main())


def test_outcomes(run_once: Run) -> None:
    """Success where failure was due, and a client that goes on."""

    async def main() -> None:
        visit = Visit(_connects, HERE, "x")
        await visit.begin()
        with pytest.raises(Deviation, match="ended with status 0"):
            await visit.fails()
        await visit.succeeds()
        await visit.close()
        visit = Visit(_never, HERE, "x")
        task = asyncio.create_task(visit.begin())
        await asyncio.sleep(0.05)
        with pytest.raises(Deviation, match="still runs"):
            await visit.status(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await visit.close()

    run_once(main())
