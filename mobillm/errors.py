"""Every exception the package raises on purpose, and the error codes of the wire.

::

    MobiLLMError
    ├── ConfigError (ValueError)            an option or a session spec is out of range
    ├── DataError (ValueError)              a data file cannot be used
    ├── ModelError (ValueError)             a backbone or a side network cannot be used
    ├── QuantizationError (ValueError)      values that the chosen format cannot carry
    ├── StorageError (OSError)              the server's files cannot be read or written
    │   └── DamageError                     they are damaged or gone: a person has to mend them
    ├── EngineError                         the server has nowhere to train a session now
    ├── ProtocolError                       code
    │   ├── LocalProtocolError              we asked for an illegal thing; state is unchanged
    │   └── RemoteProtocolError             the peer broke the specification
    ├── ConnectionClosed                    the connection is gone; the cause is chained
    │   ├── ConnectionClosedOK
    │   └── ConnectionClosedError
    ├── RemoteError                         the peer refused one request; the connection lives on
    └── HandshakeError                      the server refused the connection

A wait that ran out raises the built-in :exc:`TimeoutError`, whose text names the wait.
"""

from __future__ import annotations

import enum

__all__ = [
    "ConfigError",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "DamageError",
    "DataError",
    "EngineError",
    "ErrorCode",
    "HandshakeError",
    "LocalProtocolError",
    "MobiLLMError",
    "ModelError",
    "ProtocolError",
    "QuantizationError",
    "RemoteError",
    "RemoteProtocolError",
    "Retry",
    "StorageError",
    "describe_code",
    "retry_of",
]


class ErrorCode(enum.IntEnum):
    """Codes of ERROR, REJECT and GOAWAY frames; a peer may send integers that are not listed here."""

    NO_ERROR = 0
    PROTOCOL = 1
    FRAME_SIZE = 2
    FLOW_CONTROL = 3
    CRC_HEADER = 4
    CRC_BODY = 5
    UNSUPPORTED_VERSION = 6
    UNSUPPORTED = 7
    AUTH_FAILED = 8
    NOT_AUTHORIZED = 9
    HANDSHAKE_TIMEOUT = 10
    IDLE_TIMEOUT = 11
    DECODE = 12
    LIMIT = 13
    DECOMPRESS = 14
    SCHEMA_MISMATCH = 15
    NON_FINITE = 16
    GAP = 17
    SEQ_REUSE = 18
    STALE_EPOCH = 19
    SESSION_UNKNOWN = 20
    SESSION_TAKEN_OVER = 21
    QUOTA = 22
    CALM = 23
    SLOW_CONSUMER = 24
    SERVER_BUSY = 25
    DRAINING = 26
    STORAGE_FULL = 27
    INTERNAL = 28


class Retry(enum.Enum):
    """What the receiver of an error code may do: the column *retry* of ``docs/protocol.md``."""

    NO = "no"  # a person must act
    YES = "yes"  # connect again, attach, go on
    AFTER = "after"  # the same once retry_after is over


_RETRIES = {
    Retry.YES: (
        ErrorCode.NO_ERROR,
        ErrorCode.CRC_HEADER,
        ErrorCode.CRC_BODY,
        ErrorCode.HANDSHAKE_TIMEOUT,
        ErrorCode.IDLE_TIMEOUT,
        ErrorCode.GAP,
        ErrorCode.STALE_EPOCH,
        ErrorCode.SLOW_CONSUMER,
    ),
    Retry.AFTER: (
        ErrorCode.QUOTA,
        ErrorCode.CALM,
        ErrorCode.SERVER_BUSY,
        ErrorCode.DRAINING,
        ErrorCode.STORAGE_FULL,
        ErrorCode.INTERNAL,
    ),
}


def retry_of(code: int) -> Retry:
    """Return what may be done after an error; codes this version does not know say it by ``retry_after``."""
    for retry, codes in _RETRIES.items():
        if code in codes:
            return retry
    return Retry.NO if code in set(ErrorCode) else Retry.AFTER


def describe_code(code: int) -> str:
    """Name a wire error code; integers this version does not know are shown as ``UNKNOWN(n)``."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"UNKNOWN({code})"


class MobiLLMError(Exception):
    """Base of every exception this package raises on purpose."""


class ConfigError(MobiLLMError, ValueError):
    """An option or a spec field has a value outside its range.

    Args:
        field: dotted name of the field, as the user wrote it.
        value: the value seen.
        expected: the range or the set of values that would have been accepted.

    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(field, value, expected)
        self.field = field
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.field} is {self.value!r}; expected {self.expected}"


class DataError(MobiLLMError, ValueError):
    """A data file is missing, malformed or lacks a column; the text says where and what to do."""


class ModelError(MobiLLMError, ValueError):
    """A backbone or a saved side network cannot be loaded, or the two do not fit together."""


class QuantizationError(MobiLLMError, ValueError):
    """A tensor holds a value that the chosen format cannot carry.

    Args:
        reason: what is wrong with the value.
        position: index of the first such value in the tensor.
        value: that value.
        tensor: name of the tensor, for example ``tap 3 (layer 16)``; None when the caller knows it.

    """

    def __init__(
        self, reason: str, position: tuple[int, ...], value: float, tensor: str | None = None
    ) -> None:
        super().__init__(reason, position, value, tensor)
        self.reason = reason
        self.position = position
        self.value = value
        self.tensor = tensor

    def __str__(self) -> str:
        where = f"{self.tensor} " if self.tensor else ""
        return f"{where}value {self.value} at {list(self.position)}: {self.reason}"


class StorageError(MobiLLMError, OSError):
    """A checkpoint, activation log or blob of the server cannot be read or written."""


class DamageError(StorageError):
    """A file of the server is damaged or gone; it stays so until a person has mended it."""


class EngineError(MobiLLMError):
    """The server's engine has no room for a session, has lost its workers, or cannot be used at all."""


class ProtocolError(MobiLLMError):
    """The specification was broken.

    Args:
        code: the error code that goes on the wire.
        text: one sentence for a person; never holds bytes of the peer.

    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{describe_code(self.code)}: {self.text}"


class LocalProtocolError(ProtocolError):
    """We asked for something that is illegal now; nothing was sent and the state is unchanged."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something illegal; the connection is being closed."""


class ConnectionClosed(MobiLLMError):
    """The connection is gone.

    Args:
        code: error code of the closing frame, or None when the transport broke without one.
        text: what is known about the reason.
        retry_after: seconds to wait before another connection; None when the peer has not said.

    """

    def __init__(self, code: int | None, text: str, retry_after: float | None = None) -> None:
        super().__init__(code, text, retry_after)
        self.code = code
        self.text = text
        self.retry_after = retry_after

    def __str__(self) -> str:
        if self.code is None:
            return f"connection lost: {self.text}"
        return f"connection closed: {describe_code(self.code)}: {self.text}{_again(self.retry_after)}"


class ConnectionClosedOK(ConnectionClosed):
    """The connection ended as agreed (BYE, or GOAWAY with NO_ERROR)."""


class ConnectionClosedError(ConnectionClosed):
    """The connection ended because of an error on either side or of the network."""


class RemoteError(MobiLLMError):
    """The peer refused one request and said why; the connection lives on.

    Args:
        code: error code of the ERROR frame.
        text: the peer's sentence.
        retry_after: seconds to wait before another try; None when a retry cannot help.

    """

    def __init__(self, code: int, text: str, retry_after: float | None = None) -> None:
        super().__init__(code, text, retry_after)
        self.code = code
        self.text = text
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{describe_code(self.code)}: {self.text}{_again(self.retry_after)}"


class HandshakeError(MobiLLMError):
    """The server refused the connection before the session began.

    Args:
        code: error code of the REJECT frame.
        text: the server's sentence.
        retry_after: seconds to wait before another try; None when a retry cannot help.

    """

    def __init__(self, code: int, text: str, retry_after: float | None = None) -> None:
        super().__init__(code, text, retry_after)
        self.code = code
        self.text = text
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{describe_code(self.code)}: {self.text}{_again(self.retry_after)}"


def _again(seconds: float | None) -> str:
    return "" if seconds is None else f"; try again in {seconds:g} s"
