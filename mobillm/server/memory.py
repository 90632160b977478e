"""How much memory the batches of all sessions together may take: what waits, and what may still come."""

from __future__ import annotations

from ..errors import ConfigError
from ..nn.upper import KEPT, frozen_values, held_type, inner_bytes
from ..spec import SessionSpec

__all__ = ["Memory", "check_step"]


def check_step(spec: SessionSpec, tokens: int, limit: int) -> None:
    """Check that a step in the layers above a tap fits, which grows with the batch; other kinds are small.

    Args:
        spec: the session.
        tokens: of the batch.
        limit: bytes that the frozen weights and the step's hidden states may take together.

    Raises:
        ConfigError: they would take more.

    """
    if spec.tail is None:
        return
    width, layers = spec.model.hidden_size, len(spec.tail.layers)
    inside = tokens * inner_bytes(spec)
    if inside > KEPT:  # then of one layer at a time, and the hidden states between them
        inside = inside // layers + tokens * layers * 4 * width
    need = _frozen_bytes(spec) + inside
    if need > limit:
        expected = f"a smaller batch or a higher tap: the step would take {need} bytes of {limit}"
        raise ConfigError("the batch's number of tokens", tokens, expected)


def check_weights(spec: SessionSpec, limit: int) -> None:
    """Check that the frozen weights above a tap fit, before any of them is taken.

    Args:
        spec: the session.
        limit: as of :func:`check_step`.

    Raises:
        ConfigError: they would take more.

    """
    if spec.tail is None:
        return
    need = _frozen_bytes(spec)
    if need > limit:
        expected = f"fewer, so a higher tap: their weights would take {need} bytes of {limit} on this server"
        raise ConfigError("the number of tail.layers", len(spec.tail.layers), expected)


def _frozen_bytes(spec: SessionSpec) -> int:
    """Return what a tail's frozen weights take, an LM head and one matrix that is widened among them."""
    assert spec.tail is not None
    width, inner = spec.model.hidden_size, spec.tail.intermediate_size
    head = 0 if spec.head is None else 4 * spec.outputs * width
    return frozen_values(spec) * held_type(spec).itemsize + head + 4 * width * max(width, inner)


# A session is offered this part of what is free, so that there is always room for the next one (dynamic
# thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
PART = 8


class Memory:
    """A budget in bytes that sessions share.

    A session's claim is what it holds and the credit that its device has and has not used: that cannot be
    taken back. Each attached session keeps a claim of at least one frame, so that all of them get on.

    Args:
        limit: bytes of all claims.
        least: bytes that an attached session can always claim.

    """

    def __init__(self, limit: int, least: int) -> None:
        self._limit = limit
        self._least = least
        self._claims: dict[bytes, int] = {}
        self._total = 0

    @property
    def total(self) -> int:
        """Bytes of all claims."""
        return self._total

    @property
    def has_room(self) -> bool:
        """Whether one more session can be attached."""
        return self._total + self._least <= self._limit

    def grant(self, session: bytes, held: int, owed: int, window: int) -> int:
        """Return how many bytes a device may send from now on, and claim them.

        Args:
            session: whose device.
            held: bytes that the session holds.
            owed: credit that the device has not used yet.
            window: most bytes that the session may hold.

        """
        free = self._limit - (self._total - self._claims.get(session, 0)) - held
        room = max(0, owed, min(window - held, free // PART))
        if not held:
            room = max(room, self._least)
        self._claim(session, max(held + room, self._least))
        return room

    def leave(self, session: bytes, held: int) -> None:
        """Reduce a session's claim to what it holds: no device has credit any more."""
        self._claim(session, held)

    def _claim(self, session: bytes, size: int) -> None:
        self._total += size - self._claims.pop(session, 0)
        if size:
            self._claims[session] = size
