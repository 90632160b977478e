"""Who may send what, when. Two tables, and nothing else.

Rules of this file: every legal move stands in a table here, and what does not is an error; the file
knows neither bytes nor which role we play, since a frame moves both ends alike, whether it was sent or
received. ``docs/protocol.md``, section "States".
"""

from __future__ import annotations

import enum
from typing import Final

from .frames import FrameType as T

__all__ = ["CONNECTION", "STREAM", "Phase", "Role", "StreamPhase"]


class Role(enum.Enum):
    """The two ends of a connection."""

    __hash__ = object.__hash__  # each member exists once; the tables are asked for every frame

    DEVICE = "device"
    SERVER = "server"

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.SERVER if self is Role.DEVICE else Role.DEVICE


class Phase(enum.Enum):
    """What a connection waits for."""

    __hash__ = object.__hash__

    HELLO = "waiting for HELLO"
    CHALLENGE = "waiting for CHALLENGE"
    AUTH = "waiting for AUTH"
    WELCOME = "waiting for WELCOME"
    OPEN = "open"
    DRAINING = "draining"
    CLOSING = "closing"
    CLOSED = "closed"


class StreamPhase(enum.Enum):
    """What a stream is used for."""

    __hash__ = object.__hash__

    IDLE = "not in use"
    OPENING = "opening"
    ATTACHED = "attached"
    FINISHING = "finishing"
    FAILED = "failed"
    DETACHING = "detaching"


D, S = Role.DEVICE, Role.SERVER
_Moves = dict[tuple[Role, T], Phase]
_StreamMoves = dict[tuple[Role, T], StreamPhase]


def _refusals() -> _Moves:
    return {(S, T.REJECT): Phase.CLOSED, (S, T.ERROR): Phase.CLOSED, (D, T.ERROR): Phase.CLOSED}


def _upkeep(phase: Phase) -> _Moves:
    return {
        (D, T.PING): phase,
        (D, T.PONG): phase,
        (S, T.PING): phase,
        (S, T.PONG): phase,
        (D, T.ERROR): Phase.CLOSED,
        (S, T.ERROR): Phase.CLOSED,
        (S, T.BYE): Phase.CLOSED,
    }


# Frames on stream 0.
CONNECTION: Final[dict[Phase, _Moves]] = {
    Phase.HELLO: {(D, T.HELLO): Phase.CHALLENGE, **_refusals()},
    Phase.CHALLENGE: {(S, T.CHALLENGE): Phase.AUTH, **_refusals()},
    Phase.AUTH: {(D, T.AUTH): Phase.WELCOME, **_refusals()},
    Phase.WELCOME: {(S, T.WELCOME): Phase.OPEN, **_refusals()},
    Phase.OPEN: {**_upkeep(Phase.OPEN), (S, T.GOAWAY): Phase.DRAINING, (D, T.BYE): Phase.CLOSING},
    Phase.DRAINING: {**_upkeep(Phase.DRAINING), (S, T.GOAWAY): Phase.DRAINING, (D, T.BYE): Phase.CLOSING},
    Phase.CLOSING: {**_upkeep(Phase.CLOSING), (S, T.GOAWAY): Phase.CLOSING},
    Phase.CLOSED: {},
}


def _reports(phase: StreamPhase) -> _StreamMoves:
    return {
        (S, T.ACK): phase,
        (S, T.CREDIT): phase,
        (S, T.EVALUATED): phase,
        # Also before FINISH: an earlier attachment may have sent it, and training goes on without a device.
        (S, T.FINISHED): phase,
        (S, T.GAP): phase,
        (S, T.METRICS): phase,
        (S, T.STORED): phase,
        (S, T.WEIGHTS): phase,
        # A batch's error (seq > 0) leaves the stream as it is; the endpoint knows the difference.
        (S, T.ERROR): StreamPhase.FAILED,
    }


def _uploads(phase: StreamPhase) -> _StreamMoves:
    return {
        (D, T.ABORT): phase,
        (D, T.BLOB): phase,
        (D, T.COMMIT): phase,
        (D, T.DATA): phase,
        (D, T.EVAL): phase,
        (D, T.FINISH): phase,
        (D, T.PULL): phase,
        (D, T.DETACH): StreamPhase.DETACHING,
    }


# Frames on streams 1 to 65535, while the connection is open, draining or (server's only) closing.
STREAM: Final[dict[StreamPhase, _StreamMoves]] = {
    StreamPhase.IDLE: {(D, T.OPEN): StreamPhase.OPENING},
    StreamPhase.OPENING: {(S, T.OPENED): StreamPhase.ATTACHED, (S, T.ERROR): StreamPhase.IDLE},
    StreamPhase.ATTACHED: {
        **_uploads(StreamPhase.ATTACHED),
        **_reports(StreamPhase.ATTACHED),
        (D, T.FINISH): StreamPhase.FINISHING,
    },
    StreamPhase.FINISHING: {
        **_reports(StreamPhase.FINISHING),
        (D, T.EVAL): StreamPhase.FINISHING,
        (D, T.PULL): StreamPhase.FINISHING,
        (D, T.DETACH): StreamPhase.DETACHING,
    },
    # What the device had sent before it learned of the failure is legal and ignored.
    StreamPhase.FAILED: _uploads(StreamPhase.FAILED),
    # Likewise what the server had sent before it read DETACH.
    StreamPhase.DETACHING: {
        **_reports(StreamPhase.DETACHING),
        (S, T.ERROR): StreamPhase.DETACHING,
        (S, T.DETACH): StreamPhase.IDLE,
    },
}
