"""What a device is told when a request is refused, and when it may come back."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError, ErrorCode, MobiLLMError
from ..protocol import Error

__all__ = ["plain", "plain_spec", "refusal"]

LONGEST_TEXT = 512  # characters, as the protocol allows
LONGEST_VALUE = 64

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


def plain(exc: MobiLLMError) -> str:
    """Return the text of an error for a peer, which may be written in any language.

    Args:
        exc: the error; none of its text may be the peer's ([M-7]).

    """
    if not isinstance(exc, ConfigError):
        return str(exc)
    return f"{exc.field} is {_words(exc.value)}; expected {exc.expected}"


def plain_spec(exc: ConfigError) -> str:
    """Return the text of an error in a peer's spec: numbers are repeated, texts are not ([M-7])."""
    seen = "something else" if isinstance(exc.value, str) else exc.value
    return plain(ConfigError(exc.field, seen, exc.expected))


def _words(value: Any) -> str:
    words = {None: "absent", False: "false", True: "true"}
    plain_value = words[value] if value is None or isinstance(value, bool) else str(value)
    return plain_value if len(plain_value) <= LONGEST_VALUE else plain_value[: LONGEST_VALUE - 3] + "..."
