"""The table "Fields" of docs/protocol.md, row by row, against what messages accept."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import Any

import pytest

from mobillm.errors import ErrorCode
from mobillm.protocol import Data, FrameType, Message
from tests.helpers import example

TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
ROW = re.compile(r"`\[(D-\d+)\]` \| (\w+) `(\w+)`")
# Id, message, field, type, unit, default and meaning of each row.
ROWS = [
    (*found.groups(), *(cell.strip() for cell in line.strip("|").split("|")[2:]))
    for line in TEXT.splitlines()
    if (found := ROW.match(line.removeprefix("| ")))
]
DEFAULTS: dict[str, Any] = {"nil": None, "[]": (), '""': "", "false": False, "0": 0}
# A field whose neighbours must follow when it changes, with the values that they need.
TOGETHER: dict[tuple[str, str], dict[str, Any]] = {
    ("HELLO", "min_version"): {"max_version": 255},
    ("HELLO", "max_version"): {"min_version": 1},
    ("ACK", "received"): {"durable": 0, "applied": 0},
    ("ACK", "durable"): {"received": 2**63 - 1, "applied": 0},
    ("ACK", "applied"): {"received": 2**63 - 1, "durable": 2**63 - 1},
    ("BLOB", "total"): {"payload": b"x"},
    ("WEIGHTS", "total"): {"payload": b"x"},
    ("OPEN", "spec"): {"session": None},
}
TOGETHER |= {("OPENED", name): TOGETHER["ACK", name] for name in ("received", "durable", "applied")}


def figure(text: str) -> int | float:
    """Read a bound of the table: 5, 2^48, 2^31-1 or inf."""
    if text == "inf":
        return math.inf
    base, _, power = text.removesuffix("-1").partition("^")
    value: int = int(base) ** int(power or 1)
    return value - text.endswith("-1")


def values(kind: str) -> tuple[list[Any], list[Any]]:
    """Return values inside and outside a type of the table."""
    name, *words = kind.split(" ")
    if name == "int":
        low, high = figure(words[0]), figure(words[2])
        return [low, high], [low - 1, high + 1, True, 1.0, "1", None]
    if name == "number":
        if not words:
            return [-1.7e308, 1.7e308, 3], [math.nan, math.inf, -math.inf, True, "1"]
        low, high = figure(words[0]), figure(words[2])
        above = [] if high == math.inf else [high + 1]
        return [float(low), 1e300 if high == math.inf else float(high)], [
            low - 1,
            *above,
            math.nan,
            math.inf,
            True,
        ]
    if name == "text":
        limit = int(figure(words[1]))
        return ["", "\U0001f600" * limit], ["x" * (limit + 1), b"x", 1]
    if name == "bytes":
        size = int(figure(words[0]))
        return [bytes(size)], [bytes(size - 1), bytes(size + 1), "x" * size, 1]
    if name == "bool":
        return [True, False], [0, 1, "true"]
    if name == "map":
        inner = {"k" * 64: 1.5} if words else {"k" * 64: [None]}
        return [inner], [{"k" * 65: 1.5}, [], "x", *([{"k": "x"}, {"k": math.nan}] if words else [])]
    assert name == "list", kind
    low, high = int(words[1]), int(words[3])
    good, bad = values(" ".join(words[4:]))
    wrong = [(item,) * max(low, 1) for item in bad]
    return [(good[-1],) * low, (good[0],) * high], [*wrong, (good[0],) * (high + 1), good[0], None]


def changed(message: Message, field: str, value: object) -> Message:
    """Return a message with another value for one field, and neighbours that go with it."""
    changes: dict[str, Any] = {**TOGETHER.get((message.type.name, field), {}), field: value}
    if isinstance(message, Data) and field == "offset" and value:
        changes |= {"format": None, "block": None, "shape": None, "equalizer": None}
    if message.type.name in ("BLOB", "WEIGHTS") and field == "offset":
        changes |= {"total": 2**48, "payload": b"x"}
    return dataclasses.replace(message, **changes)


def accepts(message: Message, field: str, value: object) -> bool:
    """Tell whether a message takes a value; a refusal of the field itself says "must be"."""
    try:
        changed(message, field, value)
    except ValueError as exc:
        return "must be" not in str(exc) or "a known packed format" in str(exc)
    return True


def test_the_table_is_complete() -> None:
    """[M-3] Every field of every message has one row."""
    assert len(ROWS) == len({row[0] for row in ROWS}) == 75
    for frame_type in FrameType:
        names = {field.name for field in dataclasses.fields(example(frame_type))}
        assert {row[2] for row in ROWS if row[1] == frame_type.name} == names - {"stream", "seq", "payload"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
def test_range_and_default(row: tuple[str, ...]) -> None:
    """[M-4] [M-5] [M-6] [M-25] [D-1] to [D-75] Type, both ends of the range, default and nil."""
    _, name, field, kind, _, default, meaning = row
    assert meaning
    message = example(FrameType[name])
    good, bad = values(kind)
    if default == "nil":
        bad = [value for value in bad if value is not None]
    elif None not in bad:
        bad.append(None)
    assert [value for value in good if not accepts(message, field, value)] == []
    assert [value for value in bad if accepts(message, field, value)] == []
    (declared,) = (item for item in dataclasses.fields(message) if item.name == field)
    expected = DEFAULTS[default] if default else dataclasses.MISSING
    assert declared.default == expected


def test_codes_fit_their_field() -> None:
    """[D-68] [E-9] Every error code of the table can be sent."""
    for code in ErrorCode:
        assert accepts(example(FrameType.ERROR), "code", code)
