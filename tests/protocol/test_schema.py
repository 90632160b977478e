"""Tests of mobillm.protocol.schema."""

from __future__ import annotations

import math

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm.errors import ErrorCode, RemoteProtocolError
from mobillm.protocol.schema import (
    MAX_ITEMS,
    Rule,
    boolean,
    decode_map,
    integer,
    items,
    mapping,
    number,
    octets,
    optional,
    text,
)


def accepts(rule: Rule, value: object) -> bool:
    """Tell whether a rule accepts a value; a refusal must say what it wants."""
    try:
        rule(value)
    except ValueError as exc:
        return str(exc) == ""
    return True


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (integer(1, 5), [1, 5, ErrorCode.PROTOCOL], [0, 6, True, 2.0, "2", None, b"2"]),
        (boolean, [True, False], [0, 1, None, "true"]),
        (number(0.0, 2.0), [0.0, 2.0, 1, 0], [-0.1, 2.1, 3, True, math.nan, math.inf, "1", None]),
        (number(), [-1e308, 1e308, 2**64, -(2**63)], [math.nan, math.inf, -math.inf, 10**400, False]),
        (text(3), ["", "abc", "äöü", "\U0001f600" * 3], ["abcd", b"abc", None, 3]),
        (octets(2), [b"ab"], [b"a", b"abc", "ab", bytearray(2), None]),
        (optional(integer(0, 1)), [None, 0, 1], [2, "x"]),
        (items(integer(0, 1), 2, 1), [(0,), (0, 1)], [(), (0, 0, 0), (2,), [0], 0, None]),
        (mapping(), [{}, {"a": [1], "b" * 64: None}], [{1: 2}, {"b" * 65: 1}, {b"a": 1}, [], None]),
        (mapping(number()), [{"a": 1.0}], [{"a": "1"}, {"a": math.nan}]),
        (mapping(), [{str(i): 0 for i in range(MAX_ITEMS)}], [{str(i): 0 for i in range(MAX_ITEMS + 1)}]),
    ],
)
def test_rules(rule: Rule, good: list[object], bad: list[object]) -> None:
    """Each rule takes the values inside its bounds, the bounds included, and no others.

    [M-5] [M-8] [M-20] [M-21] [M-22] [M-23] [M-24]
    """
    assert [value for value in good if not accepts(rule, value)] == []
    assert [value for value in bad if accepts(rule, value)] == []


def nested(depth: int) -> object:
    """Return a list nested ``depth`` deep."""
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x80",
        b"\x81\xa1a",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\xa1x\x82\xa1a\x01\xa1a\x02",
        b"\x81\x01\x02",
        b"\x81\xc4\x01a\x02",
        b"\x81\xa1x\x81\xc4\x01a\x02",
        b"\x81\xa1a\xc1",
        b"\x81\xa2\xff\xfe\x01",
        b"\x81\xa1a\xa2\xff\xfe",
        b"\x81\xa1a\xc7\x00\x05",
        b"\x81\xa1a\xc7\x00\xff",
        b"\x81\xa1a\xd4\x05\x00",
        b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a" + b"\x91" * 4000 + b"\x01",
        msgpack.packb([1]),
        msgpack.packb("text"),
        msgpack.packb(None),
        msgpack.packb({"a": nested(4)}),
        msgpack.packb({"a": {"b": {"c": {"d": {}}}}}),
        msgpack.packb({"a": [0] * 1025}),
        msgpack.packb({str(i): i for i in range(65)}),
        msgpack.packb({"a": {str(i): i for i in range(65)}}),
    ],
)
def test_malformed_maps_are_refused(data: bytes) -> None:
    """Everything but one small flat map with distinct string keys is refused with DECODE.

    [M-1] [M-2] [M-10] [M-11] [M-12] [M-13] [M-14] [M-15] [M-16] [Y-7]
    """
    with pytest.raises(RemoteProtocolError, match="malformed") as caught:
        decode_map(data)
    assert caught.value.code is ErrorCode.DECODE


def test_limits_are_inclusive() -> None:
    """[M-2] [M-15] [M-16] [L-1] Depth 4, 64 items and 1024 elements pass."""
    assert decode_map(msgpack.packb({"a": nested(3)})) == {"a": (((1,),),)}
    assert len(decode_map(msgpack.packb({str(i): i for i in range(64)}))) == 64
    assert len(decode_map(msgpack.packb({"a": [0] * 1024}))["a"]) == 1024


def test_values_arrive_as_plain_types() -> None:
    """Lists come as tuples, bytes as bytes, and floats keep their value."""
    value = {"a": [1, 2], "b": b"x", "c": 0.5, "d": None, "e": True, "f": "ü", "g": 2**64 - 1}
    assert decode_map(msgpack.packb(value)) == {**value, "a": (1, 2)}
    assert decode_map(msgpack.packb({"c": 0.5}, use_single_float=True)) == {"c": 0.5}


def test_nothing_of_the_peer_is_reflected() -> None:
    """[M-7] The refusal names the rule, not what was sent."""
    for data in (b"\x82\xa6secret\x01\xa6secret\x02", b"\x81\xa6secret\xc1", b"\x81\xa1a\xa7secret\xff"):
        with pytest.raises(RemoteProtocolError) as caught:
            decode_map(data)
        assert "secret" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_map_or_refused(data: bytes) -> None:
    """[M-1] No bytes raise anything but the documented refusal."""
    code = None
    try:
        value: object = decode_map(data)
    except RemoteProtocolError as exc:
        value, code = {}, exc.code
    assert isinstance(value, dict)
    assert code in (None, ErrorCode.DECODE)
