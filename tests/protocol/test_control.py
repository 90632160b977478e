"""Tests of mobillm.protocol.control."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from mobillm.protocol import Auth, Challenge, Error, Goaway, Hello, Message, Ping, Pong, Reject, Welcome
from tests.helpers import example

CASES: list[tuple[type[Message], str, list[Any], list[Any]]] = [
    (Hello, "min_version", [1], [0, 256, True, "1"]),
    (Hello, "max_version", [1, 255], [0, 256, None]),
    (Hello, "tenant", ["", "x" * 64], ["x" * 65, b"x", None]),
    (Hello, "nonce", [bytes(16)], [bytes(15), bytes(17), "x" * 16]),
    (Hello, "caps", [(), ("x" * 32,) * 64], [("x" * 33,), ("x",) * 65, ["x"], (1,)]),
    (Hello, "agent", ["", "x" * 64], ["x" * 65]),
    (Challenge, "version", [1, 255], [0, 256]),
    (Challenge, "nonce", [bytes(16)], [bytes(15)]),
    (Challenge, "caps", [()], [("x" * 33,)]),
    (Auth, "mac", [bytes(32)], [bytes(31), bytes(33), "x" * 32]),
    (Welcome, "mac", [bytes(32)], [b""]),
    (Welcome, "frame", [16384, 4194304], [16383, 4194305]),
    (Welcome, "batch", [16384, 2**48], [0, 16383, 2**48 + 1]),
    (Welcome, "blob", [16384, 2**48], [0, 16383, 2**48 + 1]),
    (Welcome, "streams", [1, 65535], [0, 65536]),
    (Reject, "code", [0, 2**32 - 1], [-1, 2**32, 1.0]),
    (Reject, "text", ["", "x" * 512], ["x" * 513]),
    (Reject, "retry_after", [None, 0.0, 86400.0], [-1.0, 86401.0, math.nan]),
    (Ping, "data", [bytes(8)], [bytes(7), bytes(9)]),
    (Pong, "data", [bytes(8)], [bytes(7)]),
    (Pong, "time", [None, 0, 2**63 - 1], [-1, 2**63, 1.0]),
    (Error, "code", [0, 999], [-1, 2**32]),
    (Error, "text", ["x" * 512], ["x" * 513]),
    (Error, "retry_after", [None, 1.5], [math.inf]),
    (Goaway, "code", [0], [-1]),
    (Goaway, "text", [""], [None]),
    (Goaway, "grace", [0.0, 86400.0], [-0.5, None]),
]


@pytest.mark.parametrize(("cls", "field", "good", "bad"), CASES, ids=lambda v: getattr(v, "__name__", None))
def test_bounds_of_every_field(cls: type[Message], field: str, good: list[Any], bad: list[Any]) -> None:
    """[M-5] [M-20] [M-23] [M-24] Each field takes its range, the ends included, and nothing else."""
    sample = example(cls.type, 0)
    for value in good:
        changes: dict[str, Any] = {field: value}
        assert getattr(dataclasses.replace(sample, **changes), field) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"{cls.type.name}.{field} must be"):
            dataclasses.replace(sample, **{field: value})


def test_version_range_must_not_be_empty() -> None:
    """[H-4] A minimum above the maximum is refused."""
    with pytest.raises(ValueError, match="min_version must be at most"):
        Hello(min_version=2, max_version=1, tenant="", nonce=bytes(16))
