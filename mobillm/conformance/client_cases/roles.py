"""Every frame type that a server must not send, in every state that it can bring about."""

from __future__ import annotations

import functools

from ...errors import ErrorCode
from ...protocol import FrameType
from ..case import Draft
from ..host import Host
from ..samples import valid
from ..wire import resigned
from .moments import Cases, Moment, attached, auth, finishing, hello, opening, refuses

__all__ = ["drafts"]

T = FrameType
REPORTS = (T.ACK, T.CREDIT, T.EVALUATED, T.FINISHED, T.GAP, T.METRICS, T.STORED, T.WEIGHTS, T.ERROR)

# A state: how to reach it, which stream (0, the client's own as 1, or one that is not in use as 2), and
# what is legal there.
_STATES: dict[str, tuple[str, Moment, int, tuple[FrameType, ...]]] = {
    "after HELLO": ("H-9 S-1", hello, 0, (T.CHALLENGE, T.REJECT, T.ERROR)),
    "after AUTH": ("H-9 S-1", auth, 0, (T.WELCOME, T.REJECT, T.ERROR)),
    "on a stream after HELLO": ("H-9 S-3", hello, 2, ()),
    "on an open connection": ("S-1 S-2", opening, 0, (T.PING, T.PONG, T.GOAWAY, T.BYE, T.ERROR)),
    "on a stream that waits for OPENED": ("S-1 O-2", opening, 1, (T.OPENED, T.ERROR)),
    "on a stream that is not in use": ("S-1 S-3", opening, 2, ()),
    "on an attached stream": ("S-1 S-2", attached, 1, REPORTS),
    "on a stream after FINISH": ("S-1 S-2", finishing, 1, REPORTS),
}


def drafts() -> Cases:
    """Return the cases."""
    cases: Cases = []
    for where, (ids, moment, place, legal) in _STATES.items():
        for kind in T:
            if kind not in legal:
                act = functools.partial(_send, kind, place)
                cases.append(Draft(ids, f"{kind.name} {where}", refuses(moment, act, ErrorCode.PROTOCOL)))
    return cases


async def _send(kind: FrameType, place: int, host: Host) -> None:
    number = (0, host.stream, host.stream + 1)[place]
    data = valid(kind)
    await host.peer.send(resigned(data[:6] + number.to_bytes(2, "big") + data[8:]))
