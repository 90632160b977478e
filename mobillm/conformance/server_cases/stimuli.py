"""Shapes that many cases share: send this in that state, and see it refused, ignored or answered."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ErrorCode
from ...protocol import FrameType
from ..case import Draft, Run
from ..peer import Peer
from ..target import Lab, Stream

__all__ = [
    "MUCH",
    "Cases",
    "failed_stream",
    "fails_stream",
    "ignored",
    "refused",
    "refused_at_start",
    "refused_on_stream",
]

Cases = list[Draft[Lab]]


def refused_at_start(data: bytes, *codes: ErrorCode) -> Run[Lab]:
    """Send bytes as the first ones of a connection: REJECT with one of the codes, then the end."""

    async def run(lab: Lab) -> None:
        peer = await lab.connect()
        await peer.send(data)
        await peer.refused(*codes)

    return run


def refused(data: bytes, *codes: ErrorCode) -> Run[Lab]:
    """Send bytes once the handshake is over: ERROR with one of the codes, then the end."""

    async def run(lab: Lab) -> None:
        peer = await lab.open()
        await peer.send(data)
        await peer.refused(*codes)

    return run


def ignored(data: bytes) -> Run[Lab]:
    """Send bytes once the handshake is over: no answer, and the connection works on."""

    async def run(lab: Lab) -> None:
        peer = await lab.open()
        await peer.send(data)
        await peer.alive()

    return run


def refused_on_stream(frames: Sequence[bytes], *codes: ErrorCode) -> Run[Lab]:
    """Send frames on an attached stream with credit: ERROR on stream 0, then the end."""

    async def run(lab: Lab) -> None:
        stream = await lab.attach()
        await stream.room(MUCH, 1)
        await stream.peer.send(*frames)
        await stream.peer.refused(*codes)

    return run


def fails_stream(frames: Sequence[bytes], *codes: ErrorCode, seq: int = 0) -> Run[Lab]:
    """Send frames on an attached stream: ERROR there, and the connection works on."""

    async def run(lab: Lab) -> None:
        stream = await lab.attach()
        await stream.send(*frames)
        await stream.failed(*codes, seq=seq)
        await stream.peer.alive()

    return run


# Enough credit for each stimulus that is not about credit.
MUCH = 16384


async def failed_stream(lab: Lab, peer: Peer | None = None) -> Stream:
    """Return a stream that the server has ended with an error: FINISH named a batch that never came."""
    stream = await lab.attach(peer)
    await stream.control(FrameType.FINISH, seq=99)
    await stream.failed(ErrorCode.SCHEMA_MISMATCH)
    return stream
