"""Whom a session tells how it goes."""

from __future__ import annotations

from ..errors import ErrorCode
from ..protocol import Finished, Metrics

__all__ = ["Observer"]


class Observer:
    """What a session tells the device that is attached to it; the base class tells nobody."""

    def acknowledge(self) -> None:
        """Report the session's three batch numbers and the credit that comes with them."""

    def report(self, metrics: Metrics) -> None:
        """Report how training goes."""

    def finish(self, finished: Finished) -> None:
        """Report that all epochs have been trained."""

    def fail(self, code: ErrorCode, text: str, *, again: bool = True) -> None:
        """Report why the session cannot go on, and whether it may when it is tried again."""
