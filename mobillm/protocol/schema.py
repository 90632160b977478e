"""Rules that the fields of a message obey, on both sides of the wire.

A rule is a callable that returns nothing and raises :exc:`ValueError` with a sentence that says what
would have been accepted. ``docs/protocol.md``, section "Metadata".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgpack

from ..errors import ErrorCode, RemoteProtocolError

__all__ = [
    "Rule",
    "boolean",
    "decode_map",
    "integer",
    "items",
    "mapping",
    "number",
    "octets",
    "optional",
    "text",
]

Rule = Callable[[object], None]

MAX_ITEMS = 64
MAX_DEPTH = 4
MAX_FLOAT = sys.float_info.max


def integer(low: int, high: int) -> Rule:
    """Accept an integer from ``low`` to ``high``; booleans are not integers."""

    def check(value: object) -> None:
        if type(value) is int and low <= value <= high:
            return  # nearly always
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"an integer from {low} to {high}")

    return check


def boolean(value: object) -> None:
    """Accept true and false."""
    if type(value) is not bool:
        raise ValueError("true or false")


def number(low: float = -MAX_FLOAT, high: float = MAX_FLOAT) -> Rule:
    """Accept a finite float or integer from ``low`` to ``high``."""

    def check(value: object) -> None:
        # NaN fails every comparison, and an infinity one of the two.
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a finite number from {low:g} to {high:g}")

    return check


def text(limit: int) -> Rule:
    """Accept a string of at most ``limit`` characters."""

    def check(value: object) -> None:
        if type(value) is not str or len(value) > limit:
            raise ValueError(f"a string of at most {limit} characters")

    return check


def octets(size: int) -> Rule:
    """Accept exactly ``size`` bytes."""

    def check(value: object) -> None:
        if type(value) is not bytes or len(value) != size:
            raise ValueError(f"{size} bytes")

    return check


def optional(rule: Rule) -> Rule:
    """Accept ``None`` and whatever ``rule`` accepts."""

    def check(value: object) -> None:
        if value is not None:
            rule(value)

    return check


def items(rule: Rule, limit: int = MAX_ITEMS, low: int = 0) -> Rule:
    """Accept a tuple of ``low`` to ``limit`` values that ``rule`` accepts."""

    def check(value: object) -> None:
        if type(value) is not tuple or not low <= len(value) <= limit:
            raise ValueError(f"a list of {low} to {limit} items")
        for item in value:
            rule(item)

    return check


def mapping(rule: Rule | None = None) -> Rule:
    """Accept a map with short string keys whose values ``rule`` accepts; ``None`` accepts any."""

    def check(value: object) -> None:
        if type(value) is not dict or len(value) > MAX_ITEMS:
            raise ValueError(f"a map of at most {MAX_ITEMS} items")
        for key, item in value.items():
            if type(key) is not str or len(key) > 64:
                raise ValueError("a map whose keys are strings of at most 64 characters")
            if rule is not None:
                rule(item)

    return check


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    for key in found:
        if type(key) is not str:
            raise ValueError("a key is not a string")
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_extension(code: int, data: bytes) -> None:
    # An empty extension type passes the length limit.
    raise ValueError("an extension type")


def _check_depth(value: dict[str, Any] | tuple[Any, ...], depth: int = 1) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    for item in value.values() if type(value) is dict else value:
        if type(item) is dict or type(item) is tuple:
            _check_depth(item, depth + 1)


def decode_map(data: bytes) -> dict[str, Any]:
    """Decode the metadata map of a frame, which has at most 4 KiB.

    Raises:
        RemoteProtocolError: not exactly one map with distinct string keys, nested too deep, or with
            an extension type.

    """
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            object_pairs_hook=_no_duplicates,
            ext_hook=_no_extension,
            max_ext_len=0,
            max_array_len=1024,
            max_map_len=MAX_ITEMS,
        )
        if not isinstance(value, dict):
            raise ValueError("not a map")
        _check_depth(value)
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        # The text names the rule only: nothing of the peer's bytes is reflected.
        raise RemoteProtocolError(
            ErrorCode.DECODE, f"the metadata map is malformed ({_reason(exc)})"
        ) from exc
    return value


def _reason(exc: Exception) -> str:
    if type(exc) is ValueError and len(exc.args) == 1 and isinstance(exc.args[0], str):
        return exc.args[0]
    return type(exc).__name__
