"""What a device is told when a request is refused, and when it may come back."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError, DamageError, EngineError, ErrorCode, MobiLLMError, StorageError
from ..protocol import Error

__all__ = ["CANCELLED", "NOWHERE", "failure", "plain", "plain_spec", "refusal", "storage"]

CANCELLED = "the server's owner has cancelled the session"
NOWHERE = "the server has nowhere to train this session now"
LONGEST_TEXT = 512  # characters, as the protocol allows
LONGEST_VALUE = 64

# Seconds until the same request may succeed; codes that are not listed stay refused.
RETRY_AFTER = {
    ErrorCode.QUOTA: 30.0,  # less than devices are patient: 60 s, if nobody says otherwise
    ErrorCode.CALM: 10.0,
    ErrorCode.SERVER_BUSY: 1.0,
    ErrorCode.DRAINING: 10.0,
    ErrorCode.STORAGE_FULL: 30.0,
    ErrorCode.INTERNAL: 30.0,
}


def refusal(
    stream: int,
    code: ErrorCode,
    text: str,
    *,
    seq: int = 0,
    retry_after: float | None = None,
    again: bool = True,
) -> Error:
    """Return the ERROR of a session or a batch.

    Args:
        stream: the session's stream.
        code: why.
        text: one sentence, cut to 512 characters.
        seq: the batch; 0 for the whole session.
        retry_after: seconds; None takes what is usual for the code.
        again: whether the same request may ever succeed without a person's help.

    """
    if retry_after is None and again:
        retry_after = RETRY_AFTER.get(code)
    return Error(stream=stream, seq=seq, code=code, text=text[:LONGEST_TEXT], retry_after=retry_after)


def storage(exc: StorageError, session: bytes, text: str) -> tuple[ErrorCode, str, bool]:
    """Return code and text of an error of the server's files, and whether to try again; no path is told.

    Args:
        exc: what has happened.
        session: whose files they are.
        text: says what cannot be done now, if nothing is damaged.

    """
    if isinstance(exc, DamageError):
        text = (
            f"the server's files of session {session.hex()} are damaged; have the server's owner mend them "
            "or delete the session ('mobillm sessions show' there says what is wrong)"
        )
        return ErrorCode.INTERNAL, text, False
    return ErrorCode.STORAGE_FULL, text, True


def failure(exc: Exception, session: bytes, *, skipped: bool) -> tuple[ErrorCode, str, bool]:
    """Return code and text of what ended a session's work, and whether to try again.

    Args:
        exc: what has happened.
        session: whose work it was.
        skipped: whether too many losses in a row were not finite.

    """
    if isinstance(exc, StorageError):
        return storage(exc, session, "the server cannot store or read this session's data")
    if isinstance(exc, EngineError):
        return ErrorCode.SERVER_BUSY, NOWHERE, True
    if isinstance(exc, MobiLLMError):
        return ErrorCode.NON_FINITE if skipped else ErrorCode.SCHEMA_MISMATCH, plain(exc), True
    return ErrorCode.INTERNAL, "the server failed; its log says why", True


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
