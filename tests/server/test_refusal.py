"""Refusals say when to come back."""

from __future__ import annotations

import pytest

from mobillm.errors import ErrorCode
from mobillm.server.refusal import refusal

PASSING = ("QUOTA", "CALM", "SERVER_BUSY", "DRAINING", "STORAGE_FULL", "INTERNAL")


@pytest.mark.parametrize("code", list(ErrorCode), ids=lambda code: code.name)
def test_retry_after(code: ErrorCode) -> None:
    """[E-10] [E-4] What may pass by itself names a time, all other codes none."""
    again = refusal(1, code, "no").retry_after
    assert (again is not None and again > 0) == (code.name in PASSING)


def test_the_rest() -> None:
    """Stream and batch are those given; a long text is cut; a given time counts."""
    error = refusal(3, ErrorCode.QUOTA, "x" * 600, seq=7, retry_after=2.5)
    assert (error.stream, error.seq, len(error.text), error.retry_after) == (3, 7, 512, 2.5)
