"""Tests of mobillm.conformance.client_cases.moments."""

from __future__ import annotations

import asyncio

import pytest

from mobillm.cli import conformance_client
from mobillm.conformance import Deviation, Visit
from mobillm.conformance.case import Run
from mobillm.conformance.client_cases.moments import MOMENTS, carries_on, gives_up, refuses
from mobillm.conformance.host import Host
from mobillm.errors import ErrorCode
from mobillm.transport import Address


async def _nothing(_host: Host) -> None:
    pass


async def _garbage(host: Host) -> None:
    await host.peer.send(bytes(40))


def _try(run: Run[Visit]) -> str | None:
    async def main() -> str | None:
        visit = Visit(conformance_client.visit, Address("127.0.0.1", 0), "a token", bound=5.0)
        try:
            await run(visit)
        except Deviation as exc:
            return str(exc)
        finally:
            await visit.close()
        return None

    return asyncio.run(main())


@pytest.mark.parametrize("name", MOMENTS)
def test_every_moment_is_reached_and_left(name: str) -> None:
    """The client comes that far, and ends its session in order when nothing is done to it."""
    assert _try(carries_on(MOMENTS[name], _nothing)) is None


@pytest.mark.parametrize("name", MOMENTS)
def test_garbage_is_refused_at_every_moment(name: str) -> None:
    """Refused with the right code, and so not with another one."""
    assert _try(refuses(MOMENTS[name], _garbage, ErrorCode.PROTOCOL)) is None
    text = _try(refuses(MOMENTS[name], _garbage, ErrorCode.DECODE))
    assert text == "expected ERROR DECODE; got " + str(text).partition("got ")[2]


def test_carrying_on_is_no_giving_up() -> None:
    """A client that ends in order has not failed."""
    assert "ended with status 0" in str(_try(gives_up(MOMENTS["after OPEN"], _answer)))


async def _answer(host: Host) -> None:
    await host.attach()
    await host.grant()
