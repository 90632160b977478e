"""Tests of mobillm.options."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from mobillm.errors import ConfigError
from mobillm.options import Limits, Timeouts


def test_default_timeouts() -> None:
    """The defaults are documented; changing one is a decision."""
    assert dataclasses.asdict(Timeouts()) == {
        "connect": 10.0,
        "handshake": 5.0,
        "request": 30.0,
        "keepalive": 20.0,
        "keepalive_reply": 20.0,
        "drain": 10.0,
        "unacknowledged": 30.0,
        "reconnect": 60.0,
        "away": 60.0,
    }


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Timeouts)])
def test_bounds_of_timeouts(field: str) -> None:
    """Each is a positive number or None."""
    for good in (0.001, 1, None):
        assert getattr(Timeouts(**{field: good}), field) == good
    for bad in (0, -1, math.inf, math.nan):
        with pytest.raises(ConfigError, match=rf"timeouts\.{field} is .* expected a positive number"):
            Timeouts(**{field: bad})


def test_default_limits() -> None:
    """The defaults are documented; changing one is a decision."""
    assert dataclasses.asdict(Limits()) == {
        "frame": 2**20,
        "chunk": 2**19,
        "batch": 2**26,
        "blob": 2**31,
        "queue": 2**26,
        "batches": 16,
        "streams": 64,
        "outbound": 2**22,
        "handshakes": 64,
        "handshakes_per_host": 8,
        "failed_logins": 10,
        "sessions": 64,
        "stored": 2**36,
        "parameters": 2**27,
        "memory": 2**32,
        "steps": 0,
    }


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("frame", 2**14, 2**22),
        ("chunk", 2**10, 2**22 - 2**13),
        ("batch", 2**14, 2**40),
        ("blob", 2**14, 2**40),
        ("queue", 2**14, 2**40),
        ("batches", 1, 2**20),
        ("streams", 1, 65535),
        ("outbound", 2**16, 2**40),
        ("handshakes", 1, 2**20),
        ("handshakes_per_host", 1, 2**20),
        ("failed_logins", 0, 2**20),
        ("sessions", 1, 2**20),
        ("stored", 2**14, 2**50),
        ("parameters", 1, 2**40),
        ("memory", 2**16, 2**50),
        ("steps", 0, 2**30),
    ],
)
def test_bounds_of_limits(field: str, low: int, high: int) -> None:
    """Each takes its range, the ends included, and integers only."""
    others: dict[str, Any] = {"chunk": 1024, "frame": 2**22}
    for good in (low, high):
        assert getattr(Limits(**{**others, field: good}), field) == good
    for bad in (low - 1, high + 1, float(low), "1", None):
        with pytest.raises(
            ConfigError, match=rf"limits\.{field} is .* expected an integer from {low} to {high}"
        ):
            Limits(**{**others, field: bad})


def test_a_chunk_fits_into_a_frame() -> None:
    """8 KiB are left for the map and the bin header."""
    assert Limits(frame=65536, chunk=65536 - 8192).chunk == 57344
    with pytest.raises(ConfigError, match=r"limits\.chunk is 57345; expected at most limits\.frame - 8192"):
        Limits(frame=65536, chunk=57345)


def test_narrowed_takes_the_smaller_figures() -> None:
    """What the peer does not bound stays; the chunk follows the frame."""
    ours = Limits(batches=3, queue=2**20)
    found = ours.narrowed(frame=65536, batch=2**30, blob=2**20, streams=2)
    assert found == dataclasses.replace(ours, frame=65536, chunk=57344, blob=2**20, streams=2)
    assert ours.narrowed(frame=2**22, batch=2**40, blob=2**40, streams=65535) == ours


def test_options_are_frozen_and_keyword_only() -> None:
    """Nobody changes the options of a running connection."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().frame = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Timeouts(1.0)  # type: ignore[call-arg]
