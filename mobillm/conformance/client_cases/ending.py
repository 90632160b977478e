"""The connection ends or falls silent at each moment: the client notices, and ends in bounded time."""

from __future__ import annotations

import functools

from ...protocol import FrameType
from ..case import Draft
from ..host import Host
from ..visit import Visit
from ..wire import frame
from .moments import MOMENTS, Cases, Moment

__all__ = ["drafts"]

T = FrameType
# Keepalive takes 40 seconds by default, and a case some more.
PATIENCE = 60.0


def drafts() -> Cases:
    """Return the cases."""
    cases: Cases = [Draft("T-10", "the connection is closed at once", _at_once)]
    for where, moment in MOMENTS.items():
        ids = "T-10 K-23" if where in ("after HELLO", "after AUTH") else "K-23"
        cases.append(Draft(ids, f"the end of the stream {where}", functools.partial(_closed, moment)))
        cases.append(Draft(ids, f"a reset {where}", functools.partial(_reset, moment)))
        cases.append(
            Draft(f"T-4 {ids}", f"the end inside a frame {where}", functools.partial(_inside, moment))
        )
        ids = "H-7 H-18" if "T-10" in ids else "K-11 K-2"
        run = functools.partial(_silent, moment)
        cases.append(Draft(ids, f"silence {where}", run, PATIENCE + 10.0))
    return [
        *cases,
        Draft("K-6 K-4", "BYE comes last, and nothing after it", _goodbye),
        Draft("T-3", "the whole session byte by byte", _trickled),
    ]


async def _at_once(visit: Visit) -> None:
    peer = await visit.begin()
    await peer.close()
    await visit.fails()


async def _closed(moment: Moment, visit: Visit) -> None:
    host = await Host.meet(visit)
    await moment(host)
    host.peer.half_close()
    await host.peer.drained()
    await visit.fails()


async def _reset(moment: Moment, visit: Visit) -> None:
    host = await Host.meet(visit)
    await moment(host)
    host.peer.abort()
    await visit.fails()


async def _inside(moment: Moment, visit: Visit) -> None:
    host = await Host.meet(visit)
    await moment(host)
    data = frame(T.PING, {"data": bytes(8)})
    await host.peer.send(data[:-3])
    host.peer.half_close()
    await host.peer.drained()
    await visit.fails()


async def _silent(moment: Moment, visit: Visit) -> None:
    host = await Host.meet(visit)
    await moment(host)
    await visit.fails(PATIENCE)


async def _goodbye(visit: Visit) -> None:
    host = await Host.meet(visit)
    await host.shake()
    await host.serve()
    await host.peer.drained()
    await visit.succeeds()


async def _trickled(visit: Visit) -> None:
    """Everything that we send goes out in single bytes."""
    host = await Host.meet(visit)
    host.peer.segment = 1
    await host.shake()
    await host.serve()
    await visit.succeeds()
