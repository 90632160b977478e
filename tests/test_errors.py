"""Tests of mobillm.errors."""

from __future__ import annotations

import copy
import inspect
import pathlib
import re

import pytest

from mobillm import errors
from mobillm.errors import (
    ConfigError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    DamageError,
    DataError,
    EngineError,
    ErrorCode,
    HandshakeError,
    LocalProtocolError,
    MobiLLMError,
    ModelError,
    ProtocolError,
    QuantizationError,
    RemoteError,
    RemoteProtocolError,
    Retry,
    StorageError,
    describe_code,
    retry_of,
)

EXAMPLES: list[tuple[MobiLLMError, str]] = [
    (ConfigError("limits.frame", 5, "a multiple of 7"), "limits.frame is 5; expected a multiple of 7"),
    (DataError("row 3 has no label"), "row 3 has no label"),
    (ModelError("no layers"), "no layers"),
    (StorageError("disk is full"), "disk is full"),
    (DamageError("batch 3 is damaged"), "batch 3 is damaged"),
    (EngineError("no node has room"), "no node has room"),
    (QuantizationError("is not finite", (2, 3), 1.5), "value 1.5 at [2, 3]: is not finite"),
    (QuantizationError("is too large", (0,), 9.0, "tap 1"), "tap 1 value 9.0 at [0]: is too large"),
    (ProtocolError(3, "too much"), "FLOW_CONTROL: too much"),
    (LocalProtocolError(1, "not now"), "PROTOCOL: not now"),
    (RemoteProtocolError(999, "what"), "UNKNOWN(999): what"),
    (ConnectionClosed(None, "reset by peer"), "connection lost: reset by peer"),
    (ConnectionClosedOK(0, "goodbye"), "connection closed: NO_ERROR: goodbye"),
    (ConnectionClosedError(24, "reads too slowly"), "connection closed: SLOW_CONSUMER: reads too slowly"),
    (ConnectionClosedError(23, "too many", 10.0), "connection closed: CALM: too many; try again in 10 s"),
    (RemoteError(20, "no such session"), "SESSION_UNKNOWN: no such session"),
    (RemoteError(26, "it stops", 5.0), "DRAINING: it stops; try again in 5 s"),
    (HandshakeError(8, "wrong token"), "AUTH_FAILED: wrong token"),
    (HandshakeError(25, "full", 1.5), "SERVER_BUSY: full; try again in 1.5 s"),
]


@pytest.mark.parametrize(("exc", "text"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_text(exc: MobiLLMError, text: str) -> None:
    """Each error says what was seen, and a copy says the same."""
    assert str(exc) == text
    assert str(copy.copy(exc)) == text
    assert str(type(exc)(*exc.args)) == text


def test_every_error_is_listed_and_derives_from_the_base() -> None:
    """`__all__` is complete and sorted, and one except clause catches everything."""
    defined = {
        name for name, value in vars(errors).items() if getattr(value, "__module__", "") == "mobillm.errors"
    }
    assert {name for name in defined if not name.startswith("_")} == set(errors.__all__)
    assert errors.__all__ == sorted(errors.__all__)
    classes = [
        value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)
    ]
    assert len(classes) == 16
    assert all(issubclass(cls, MobiLLMError) for cls in classes)
    assert {type(exc) for exc, _ in EXAMPLES} == set(classes) - {MobiLLMError}


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (ConfigError, ValueError),
        (DataError, ValueError),
        (ModelError, ValueError),
        (QuantizationError, ValueError),
        (StorageError, OSError),
        (DamageError, StorageError),
        (LocalProtocolError, ProtocolError),
        (RemoteProtocolError, ProtocolError),
        (ConnectionClosedOK, ConnectionClosed),
        (ConnectionClosedError, ConnectionClosed),
    ],
)
def test_hierarchy(cls: type[Exception], base: type[Exception]) -> None:
    """Errors can be caught by their built-in or common base."""
    assert issubclass(cls, base)


def test_attributes() -> None:
    """What went wrong can be read by programs."""
    config = ConfigError("a.b", 1, "2")
    assert (config.field, config.value, config.expected) == ("a.b", 1, "2")
    quantization = QuantizationError("bad", (1, 2), 3.0, "tap 0")
    assert (quantization.reason, quantization.position, quantization.value) == ("bad", (1, 2), 3.0)
    assert quantization.tensor == "tap 0"
    for cls in (ProtocolError, ConnectionClosed, RemoteError):
        exc = cls(7, "text")
        assert (exc.code, exc.text) == (7, "text")
    for refused in (HandshakeError, RemoteError):
        assert refused(25, "busy", 2.0).retry_after == 2.0
        assert refused(8, "no").retry_after is None


def test_codes_are_the_wire_numbers() -> None:
    """Codes count from 0 without gaps; they are on the wire and never change."""
    assert [int(code) for code in ErrorCode] == list(range(29))
    assert (ErrorCode.PROTOCOL, ErrorCode.AUTH_FAILED, ErrorCode.GAP, ErrorCode.INTERNAL) == (1, 8, 17, 28)


def test_unknown_codes_have_a_name_too() -> None:
    """A newer peer may send codes that this version does not know."""
    assert describe_code(3) == "FLOW_CONTROL"
    assert describe_code(29) == "UNKNOWN(29)"
    assert describe_code(-1) == "UNKNOWN(-1)"


def test_retries_are_those_of_the_specification() -> None:
    """[E-9] The column *retry* of the table of codes; unknown codes depend on what the peer says."""
    text = (pathlib.Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| [csb, ]+ \| (no|yes|after) \|", text, re.MULTILINE)
    assert [(int(code), name) for code, name, _ in rows] == [(code.value, code.name) for code in ErrorCode]
    assert {name: retry_of(int(code)).value for code, name, _ in rows} == {
        name: retry for _, name, retry in rows
    }
    assert retry_of(4711) is Retry.AFTER
