"""What each tenant may take of a server: sessions that are not done, and bytes on the disk."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Container, Iterator
from typing import NamedTuple

from ..options import Limits
from .session import Session

__all__ = ["Excess", "Quota"]


class Excess(NamedTuple):
    """Why a tenant may not have more: the name of the limit, and a sentence for its device."""

    limit: str
    text: str


class Quota:
    """The sessions of each tenant, counted when one more or another batch is asked for.

    Args:
        limits: ``sessions`` and ``stored`` are used.
        attached: ids of the sessions that a device is attached to.

    """

    def __init__(self, limits: Limits, attached: Container[bytes]) -> None:
        self._limits = limits
        self._attached = attached
        self._sessions: collections.defaultdict[str, list[Session]] = collections.defaultdict(list)
        self._coming: collections.Counter[str] = collections.Counter()  # sessions that are being made

    def add(self, session: Session) -> None:
        """Count a session from now on."""
        self._sessions[session.tenant].append(session)

    def remove(self, session: Session) -> None:
        """Count a session that was deleted no more."""
        self._sessions[session.tenant].remove(session)

    @contextlib.contextmanager
    def reserved(self, tenant: str) -> Iterator[None]:
        """Count one more session of a tenant while it is being made."""
        self._coming[tenant] += 1
        try:
            yield
        finally:
            self._coming[tenant] -= 1

    def refuse_session(self, tenant: str) -> Excess | None:
        """Return why a tenant may start no session now; None when it may."""
        sessions = self._sessions.get(tenant, ())
        unfinished = sum(1 for one in sessions if not one.ended or one.id in self._attached)
        if unfinished + self._coming[tenant] >= self._limits.sessions:
            return Excess(
                "sessions",
                f"the tenant has {unfinished} sessions that are attached or not finished, and may have "
                f"{self._limits.sessions}; finish or detach from some, or have the server's owner "
                "delete some",
            )
        return self.refuse_batch(tenant, 1)

    def refuse_batch(self, tenant: str, size: int) -> Excess | None:
        """Return why a batch of ``size`` packed bytes cannot be stored for a tenant; None when it can."""
        stored = sum(session.stored for session in self._sessions.get(tenant, ()))
        if stored + size <= self._limits.stored:
            return None
        return Excess(
            "stored",
            f"the tenant's sessions hold {stored} bytes on the server, and may hold {self._limits.stored}; "
            "have the server's owner delete finished ones",
        )
