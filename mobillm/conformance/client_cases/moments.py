"""Moments of a client's visit at which a case does something, and the usual reactions to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ...errors import ErrorCode
from ...protocol import Commit, Data, Finish, Pull
from ..case import Draft, Run
from ..host import Host
from ..visit import Visit

__all__ = ["MOMENTS", "Act", "Cases", "Moment", "carries_on", "gives_up", "refuses", "resume"]

Cases = list[Draft[Visit]]
Moment = Callable[[Host], Awaitable[None]]
Act = Callable[[Host], Awaitable[None]]


async def hello(_host: Host) -> None:
    """HELLO was read."""


async def auth(host: Host) -> None:
    """AUTH was read."""
    await host.challenge()
    await host.authenticated()


async def opening(host: Host) -> None:
    """OPEN was read and not answered."""
    await host.shake()
    await host.opening()


async def attached(host: Host) -> None:
    """The session is open, without credit."""
    await opening(host)
    await host.attach()


async def sending(host: Host) -> None:
    """The first DATA was read."""
    await host.begin()
    await host.until(Data)


async def committed(host: Host) -> None:
    """The first COMMIT was read and not answered."""
    await host.begin()
    await host.until(Commit)


async def finishing(host: Host) -> None:
    """FINISH was read and not answered."""
    await host.begin()
    await host.until(Finish)


async def pulling(host: Host) -> None:
    """PULL was read and not answered."""
    await host.begin()
    await host.until(Pull)


MOMENTS: dict[str, Moment] = {
    "after HELLO": hello,
    "after AUTH": auth,
    "after OPEN": opening,
    "on an attached stream": attached,
    "inside a batch": sending,
    "after COMMIT": committed,
    "after FINISH": finishing,
    "after PULL": pulling,
}


def refuses(moment: Moment, act: Act, *codes: ErrorCode) -> Run[Visit]:
    """Do something wrong: the client says ERROR with one of the codes, closes, and reports a failure."""

    async def run(visit: Visit) -> None:
        host = await Host.meet(visit)
        await moment(host)
        await act(host)
        await host.peer.refused(*codes)
        await visit.fails()

    return run


def gives_up(moment: Moment, act: Act) -> Run[Visit]:
    """Do something that ends the visit: the client closes, says no ERROR, and reports a failure."""

    async def run(visit: Visit) -> None:
        host = await Host.meet(visit)
        await moment(host)
        await act(host)
        await host.serve()
        await visit.fails()

    return run


def carries_on(moment: Moment, act: Act) -> Run[Visit]:
    """Do something that is legal: the client ends its session in order, with status 0."""

    async def run(visit: Visit) -> None:
        host = await Host.meet(visit)
        await moment(host)
        await act(host)
        await resume(host, moment)
        await host.serve()
        await visit.succeeds()

    return run


async def resume(host: Host, moment: Moment) -> None:
    """Do what the moment has left undone."""
    if moment is hello:
        await host.shake()
    elif moment is auth:
        await host.welcome()
    elif moment is opening:
        await host.attach()
        await host.grant()
    elif moment is attached:
        await host.grant()
    else:
        for kind, undone in ((Commit, committed), (Finish, finishing), (Pull, pulling)):
            if moment is undone:
                await host.answer(host.last[kind])
