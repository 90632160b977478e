"""All messages, by frame type."""

from __future__ import annotations

from .control import Auth, Bye, Challenge, Error, Goaway, Hello, Ping, Pong, Reject, Welcome
from .frames import Frame, FrameType
from .message import Message
from .session import (
    Abort,
    Ack,
    Blob,
    Commit,
    Credit,
    Data,
    Detach,
    Eval,
    Evaluated,
    Finish,
    Finished,
    Gap,
    Metrics,
    Open,
    Opened,
    Pull,
    Stored,
    Weights,
)

__all__ = [
    "MESSAGES",
    "Abort",
    "Ack",
    "Auth",
    "Blob",
    "Bye",
    "Challenge",
    "Commit",
    "Credit",
    "Data",
    "Detach",
    "Error",
    "Eval",
    "Evaluated",
    "Finish",
    "Finished",
    "Gap",
    "Goaway",
    "Hello",
    "Message",
    "Metrics",
    "Open",
    "Opened",
    "Ping",
    "Pong",
    "Pull",
    "Reject",
    "Stored",
    "Weights",
    "Welcome",
    "decode_message",
]

MESSAGES: dict[FrameType, type[Message]] = {
    cls.type: cls
    for cls in (
        Hello, Challenge, Auth, Welcome, Reject, Open, Opened, Blob, Stored, Data, Commit, Abort, Finish,
        Finished, Eval, Evaluated, Pull, Weights, Detach, Ack, Credit, Gap, Metrics, Ping, Pong, Error,
        Goaway, Bye,
    )
}  # fmt: skip


def decode_message(frame: Frame) -> Message:
    """Read the message that a frame carries.

    Raises:
        RemoteProtocolError: a field is missing or breaks its rule.

    """
    return MESSAGES[frame.type].decode(frame)
