"""Whether and when a device comes back after an error: the codes' column *retry*, pauses, and a bound."""

from __future__ import annotations

import math
import random
import time

from ..errors import ConnectionClosed, ErrorCode, HandshakeError, RemoteError, Retry, retry_of

__all__ = ["Patience", "Setback"]

Setback = ConnectionClosed | HandshakeError | RemoteError | TimeoutError

# Full jitter (between 0 and the bound), so that many devices do not come back at once.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds

# A magic and a `bin` header are checked before any checksum, so damage on the way is refused with these, too.
PERHAPS_DAMAGE = (ErrorCode.PROTOCOL, ErrorCode.DECODE)


class Patience:
    """Decides how often and how long to come back.

    Args:
        seconds: for which it is tried after a loss; 0 gives up at once, None never.

    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._deadline = -math.inf
        self._bound = FIRST_PAUSE
        self._reached: tuple[int, ...] | None = None
        self._damaged = False

    def begin(self, cause: Setback, reached: tuple[int, ...]) -> None:
        """Note what has ended an attachment; :meth:`pause` follows.

        The time begins anew, unless the server has said "later" and nothing was achieved since it last
        did: a disk that stays full is not asked for ever.

        Args:
            cause: what happened.
            reached: figures that grow while the session makes progress.

        """
        progress = reached != self._reached
        if progress or _retry(cause) is not Retry.AFTER:
            self._deadline = time.monotonic() + self._seconds
        if progress:
            self._damaged = False
        self._reached = reached
        self._bound = FIRST_PAUSE

    def pause(self, last: Setback) -> float:
        """Return the seconds to wait before the next try.

        Args:
            last: why the last try failed, or what :meth:`begin` was told.

        Raises:
            ConnectionClosed, HandshakeError, RemoteError, TimeoutError: ``last``; another try cannot help,
                or the time is over.

        """
        least = self._least(last)
        left = self._deadline - time.monotonic()
        if least is None or least >= left:
            raise last
        wait = least + random.uniform(0, self._bound)
        self._bound = min(2 * self._bound, LONGEST_PAUSE)
        return min(wait, left)

    def _least(self, last: Setback) -> float | None:
        """Return what the peer asks for; None when a person must act."""
        kind = _retry(last)
        if kind is Retry.NO and not self._damaged and not isinstance(last, RemoteError | TimeoutError):
            self._damaged = last.code in PERHAPS_DAMAGE
            return 0.0 if self._damaged else None
        if kind is Retry.YES:
            return 0.0 if isinstance(last, TimeoutError) else last.retry_after or 0.0
        return None if kind is Retry.NO or isinstance(last, TimeoutError) else last.retry_after


def _retry(last: Setback) -> Retry:
    if isinstance(last, TimeoutError) or last.code is None:
        return Retry.YES  # the link or the peer was silent, and said nothing against it
    return retry_of(last.code)
