"""The oracle of the fault table: weights after a fault are those of a run without one, bit for bit."""

from __future__ import annotations

__all__ = ["require_same", "taken"]

_comparisons = 0


def require_same(weights: bytes, expected: bytes) -> None:
    """See that two files of weights have the same bytes; count the comparison for the table."""
    global _comparisons
    assert expected, "there are no weights to compare with"
    assert weights == expected, "the weights differ from those of an undisturbed run"
    _comparisons += 1


def taken() -> int:
    """Return how many weights were compared and equal since the last call."""
    global _comparisons
    count, _comparisons = _comparisons, 0
    return count
