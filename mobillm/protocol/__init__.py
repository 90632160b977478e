"""The wire protocol without any I/O: bytes in, messages and buffers out.

``docs/protocol.md`` is the specification.
"""

from .auth import derive_key
from .compression import CAPABILITY, compress, decompress
from .control import Auth, Bye, Challenge, Error, Goaway, Hello, Ping, Pong, Reject, Welcome
from .endpoint import Endpoint
from .frames import HEADER_SIZE, MAX_META, VERSION, Frame, FrameBuffer, FrameType, encode_frame
from .message import Message
from .messages import MESSAGES, decode_message
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
from .state import CONNECTION, STREAM, Phase, Role, StreamPhase
from .tensors import EQUALIZERS, LENGTHS, TARGETS, TensorHeader, checksum, tensor_name

__all__ = [
    "CAPABILITY",
    "CONNECTION",
    "EQUALIZERS",
    "HEADER_SIZE",
    "LENGTHS",
    "MAX_META",
    "MESSAGES",
    "STREAM",
    "TARGETS",
    "VERSION",
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
    "Endpoint",
    "Error",
    "Eval",
    "Evaluated",
    "Finish",
    "Finished",
    "Frame",
    "FrameBuffer",
    "FrameType",
    "Gap",
    "Goaway",
    "Hello",
    "Message",
    "Metrics",
    "Open",
    "Opened",
    "Phase",
    "Ping",
    "Pong",
    "Pull",
    "Reject",
    "Role",
    "Stored",
    "StreamPhase",
    "TensorHeader",
    "Weights",
    "Welcome",
    "checksum",
    "compress",
    "decode_message",
    "decompress",
    "derive_key",
    "encode_frame",
    "tensor_name",
]
