"""Every frame type in every state of a connection and of a stream that a device can bring about."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

from ...errors import ErrorCode
from ...protocol import Bye, Detach, Error, Evaluated, Finished, FrameType, Opened, Pong, Weights
from ..case import Deviation, Draft
from ..peer import Peer
from ..samples import valid
from ..target import Lab
from ..wire import frame, resigned
from .stimuli import MUCH, Cases, failed_stream

__all__ = ["drafts"]

E = ErrorCode
T = FrameType
Reach = Callable[[Lab], Awaitable[Peer]]
React = Callable[[Peer], Awaitable[None]]

# What only a server sends is refused in every state of a stream, so the answer to an OPEN that was
# sent a moment before makes no difference.
FROM_SERVER = (
    T.CHALLENGE, T.WELCOME, T.REJECT, T.OPENED, T.STORED, T.FINISHED, T.EVALUATED, T.WEIGHTS, T.ACK, T.CREDIT,
    T.GAP, T.METRICS, T.GOAWAY,
)  # fmt: skip
OF_CONNECTION = (T.HELLO, T.AUTH, T.PING, T.PONG, T.ERROR, T.BYE)


# How to get there.


async def _before_hello(lab: Lab) -> Peer:
    return await lab.connect()


async def _before_auth(lab: Lab) -> Peer:
    peer = await lab.connect()
    await lab.challenged(peer, lab.hello())
    return peer


async def _open(lab: Lab) -> Peer:
    return await lab.open()


async def _attached(lab: Lab) -> Peer:
    stream = await lab.attach()
    await stream.room(MUCH, 1)
    return stream.peer


async def _finishing(lab: Lab) -> Peer:
    stream = await lab.attach()
    await stream.control(T.FINISH)
    await stream.peer.expect(Finished, stream=1)
    return stream.peer


async def _failed(lab: Lab) -> Peer:
    return (await failed_stream(lab)).peer


async def _detached(lab: Lab) -> Peer:
    stream = await lab.attach()
    await stream.detach()
    return stream.peer


# What to see there.


async def _refused(peer: Peer) -> None:
    await peer.refused(E.PROTOCOL)


async def _closes(peer: Peer) -> None:
    await peer.closed()


async def _auth_failed(peer: Peer) -> None:
    await peer.refused(E.AUTH_FAILED)


async def _works(peer: Peer) -> None:
    await peer.alive()


async def _answered(peer: Peer) -> None:
    await peer.expect(Pong)


async def _goodbye(peer: Peer) -> None:
    await peer.expect(Bye)
    await peer.closed()


def _answer(kind: type[Opened | Detach | Evaluated | Weights | Finished]) -> React:
    async def react(peer: Peer) -> None:
        await peer.expect(kind, stream=1)
        await peer.alive()

    return react


async def _stream_refused(peer: Peer) -> None:
    await peer.refused_on(1, E.SCHEMA_MISMATCH)
    await peer.alive()


# A state: how to reach it, on which stream frames are sent, and what is legal there.
_STATES: dict[str, tuple[str, Reach, int, dict[FrameType, React]]] = {
    "before HELLO": (
        "H-9 S-1",
        _before_hello,
        0,
        {T.HELLO: lambda peer: _challenged(peer), T.ERROR: _closes},
    ),
    "before AUTH": ("H-9 S-1", _before_auth, 0, {T.AUTH: _auth_failed, T.ERROR: _closes}),
    "on stream 1 before HELLO": ("H-9 S-3", _before_hello, 1, {}),
    "on stream 1 before AUTH": ("H-9 S-3", _before_auth, 1, {}),
    "on an open connection": (
        "S-1 S-2",
        _open,
        0,
        {T.PING: _answered, T.PONG: _works, T.BYE: _goodbye, T.ERROR: _closes},
    ),
    "on an idle stream": ("S-1 O-1", _open, 1, {T.OPEN: _answer(Opened)}),
    "on an attached stream": (
        "S-1 S-2",
        _attached,
        1,
        {
            T.ABORT: _works,
            T.BLOB: _stream_refused,
            T.DATA: _works,
            T.EVAL: _answer(Evaluated),
            T.PULL: _answer(Weights),
            T.FINISH: _answer(Finished),
            T.DETACH: _answer(Detach),
        },
    ),
    "on a stream after FINISH": (
        "S-1 O-6",
        _finishing,
        1,
        {T.EVAL: _answer(Evaluated), T.PULL: _answer(Weights), T.DETACH: _answer(Detach)},
    ),
    "on a failed stream": (
        "S-5 S-11",
        _failed,
        1,
        {
            **dict.fromkeys((T.ABORT, T.BLOB, T.COMMIT, T.DATA, T.EVAL, T.FINISH, T.PULL), _works),
            T.DETACH: _answer(Detach),
        },
    ),
    "on a stream that was detached": ("O-35 S-1", _detached, 1, {T.OPEN: _answer(Opened)}),
}


async def _challenged(peer: Peer) -> None:
    from_server = await peer.read()
    if from_server is None or from_server.type is not T.CHALLENGE:
        raise Deviation("expected CHALLENGE; got something else")


def drafts() -> Cases:
    """Return the cases."""
    cases: Cases = []
    for where, (ids, reach, number, legal) in _STATES.items():
        for kind in T:
            react = legal.get(kind, _refused)
            run = functools.partial(_send, reach, valid(kind, stream=number), number, react)
            alone = react is _auth_failed  # a server may hold us off after it
            cases.append(Draft(ids, f"{kind.name} {where}", run, alone=alone))
    return [*cases, *_together(), *_after_bye(), *_errors()]


async def _send(reach: Reach, data: bytes, number: int, react: React, lab: Lab) -> None:
    peer = await reach(lab)
    await peer.send(_on(data, number))
    await react(peer)


def _on(data: bytes, number: int) -> bytes:
    """Return a frame on another stream."""
    return resigned(data[:6] + number.to_bytes(2, "big") + data[8:])


def _together() -> Cases:
    """Two frames in one segment, so that the second comes before the first could be answered."""
    cases: Cases = []
    for kind in (*FROM_SERVER, *OF_CONNECTION, T.OPEN):
        frames = valid(T.OPEN) + _on(valid(kind), 1)
        run = functools.partial(_send_all, _open, frames)
        cases.append(Draft("S-1 O-14", f"{kind.name} on a stream right after OPEN", run))
    for kind in T:
        if kind is not T.OPEN:
            frames = frame(T.DETACH, stream=1) + _on(valid(kind), 1)
            run = functools.partial(_send_all, _attached, frames)
            cases.append(Draft("S-1 O-35", f"{kind.name} on a stream right after DETACH", run))
    return cases


async def _send_all(reach: Reach, data: bytes, lab: Lab) -> None:
    peer = await reach(lab)
    await peer.send(data)
    await peer.refused(E.PROTOCOL)


def _after_bye() -> Cases:
    cases: Cases = []
    for kind in T:
        run = functools.partial(_bye_and, _on(valid(kind), 1), True)
        cases.append(Draft("K-5", f"{kind.name} on a stream right after BYE", run))
    for kind in T:
        legal = kind in (T.PING, T.PONG, T.ERROR)
        run = functools.partial(_bye_and, _on(valid(kind), 0), not legal)
        cases.append(Draft("K-20" if legal else "S-1 K-18", f"{kind.name} right after BYE", run))
    return cases


async def _bye_and(data: bytes, refused: bool, lab: Lab) -> None:
    """Send BYE and one frame more: a server that has answered BYE meanwhile need not read it."""
    peer = await _attached(lab)
    await peer.send(frame(T.BYE) + data)
    message = await peer.read()
    while message is not None and (message.stream or message.type is T.PONG):
        message = await peer.read()
    late = isinstance(message, Error) and refused and message.code == E.PROTOCOL
    if late or isinstance(message, Bye):
        await peer.closed()
    elif message is not None or refused:
        wanted = "BYE, or ERROR PROTOCOL" if refused else "BYE"
        got = "the end of the connection" if message is None else message.type.name
        raise Deviation(f"expected {wanted}; got {got}")


def _errors() -> Cases:
    """ERROR by the device: legal on stream 0 only, whatever its code."""
    cases: Cases = []
    for code in (0, 1, 28, 29, 1000, 2**32 - 1):
        data = frame(T.ERROR, {"code": code, "text": "x", "retry_after": 1})
        title = f"ERROR with code {code} by the device closes"
        cases.append(Draft("V-6 E-7", title, functools.partial(_send, _open, data, 0, _closes)))
    for seq in (1, 5):
        data = frame(T.ERROR, {"code": 28}, stream=1, seq=seq)
        title = f"ERROR for batch {seq} by the device"
        cases.append(Draft("S-4 S-1", title, functools.partial(_send, _attached, data, 1, _refused)))
    title = "ERROR while a session is attached"
    data = frame(T.ERROR, {"code": 28})
    cases.append(Draft("E-7 K-26", title, functools.partial(_send, _attached, data, 0, _ends)))
    return cases


async def _ends(peer: Peer) -> None:
    await peer.ended()
