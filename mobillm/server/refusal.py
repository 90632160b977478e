"""What a device is told when a request is refused, and when it may come back."""

from __future__ import annotations

from ..errors import ErrorCode
from ..protocol import Error

__all__ = ["refusal"]

LONGEST_TEXT = 512  # characters, as the protocol allows

# Seconds until the same request may succeed; codes that are not listed stay refused.
RETRY_AFTER = {
    ErrorCode.QUOTA: 60.0,
    ErrorCode.CALM: 10.0,
    ErrorCode.SERVER_BUSY: 1.0,
    ErrorCode.DRAINING: 10.0,
    ErrorCode.STORAGE_FULL: 30.0,
    ErrorCode.INTERNAL: 30.0,
}


def refusal(
    stream: int, code: ErrorCode, text: str, *, seq: int = 0, retry_after: float | None = None
) -> Error:
    """Return the ERROR of a session or a batch.

    Args:
        stream: the session's stream.
        code: why.
        text: one sentence, cut to 512 characters.
        seq: the batch; 0 for the whole session.
        retry_after: seconds; None takes what is usual for the code.

    """
    again = RETRY_AFTER.get(code) if retry_after is None else retry_after
    return Error(stream=stream, seq=seq, code=code, text=text[:LONGEST_TEXT], retry_after=again)
