"""What a server counts while it works; the base class counts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..transport import Server
    from .curves import Curves  # needs tensorboard, which few servers have
    from .gateway import Gateway

__all__ = ["Meter"]


class Meter:
    """Told of everything that is worth counting, from any thread; every call returns at once.

    Attributes:
        curves: draws each session's figures; None draws nothing.

    """

    curves: Curves | None = None

    def start(self, gateway: Gateway) -> None:
        """Note that a server begins; called in its event loop."""

    def listen(self, server: Server) -> None:
        """Note that devices can come now."""

    def drain(self) -> None:
        """Note that the server stops taking connections."""

    async def close(self) -> None:
        """Note that the server has stopped."""

    def opened(self) -> None:
        """Note a connection that has logged in."""

    def closed(self, reason: str, received: int, sent: int) -> None:
        """Note the end of such a connection.

        Args:
            reason: ``ok``, ``lost``, or the name of an error code.
            received: bytes of its frames that came.
            sent: bytes of its frames that were sent.

        """

    def resumed(self) -> None:
        """Note that a device has come back to a session."""

    def received(self, size: int, seconds: float) -> None:
        """Note a whole batch.

        Args:
            size: packed bytes.
            seconds: from its first part to its last.

        """

    def duplicate(self) -> None:
        """Note a batch that had come before and changes nothing."""

    def gap(self) -> None:
        """Note a batch that came before its turn and was dropped."""

    def rejected(self, reason: str) -> None:
        """Note a batch that was refused, by the name of the error code."""

    def durable(self, batches: int, seconds: float) -> None:
        """Note a group commit of the activation log."""

    def replayed(self) -> None:
        """Note a batch of the first epoch that was read from the log, after a restart."""

    def applied(self, seconds: float) -> None:
        """Note one optimizer step."""

    def checkpoint(self, size: int, seconds: float) -> None:
        """Note a checkpoint that is on the disk."""

    def checkpoint_failed(self) -> None:
        """Note a checkpoint that could not be written."""

    def lagged(self, seconds: float) -> None:
        """Note by how much the event loop was late."""
