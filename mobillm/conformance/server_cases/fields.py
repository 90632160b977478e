"""Every field of every message of the device: absent, of another type, and just outside its range."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...errors import ErrorCode
from ...protocol import FrameType
from ..case import Draft, Run
from ..samples import spec
from ..target import Lab
from ..wire import frame
from .stimuli import MUCH, Cases

__all__ = ["FIELDS", "Field", "drafts"]

E = ErrorCode
NAN, INFINITY = float("nan"), float("inf")


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A row of the specification's table of fields.

    Attributes:
        id: of the row.
        kind: ``int``, ``number``, ``text``, ``bytes``, ``bool``, ``map``, ``texts`` or ``ints``.
        low, high: range, or number of characters, bytes or items.
        good: a value in range.
        required: whether absence is refused.
        optional: whether nil means absence.

    """

    id: str
    kind: str
    low: int
    high: int
    good: Any
    required: bool = True
    optional: bool = False


def _default(id: str, kind: str, low: int, high: int, good: Any) -> Field:
    return Field(id, kind, low, high, good, required=False)


def _nil(id: str, kind: str, low: int, high: int, good: Any) -> Field:
    return Field(id, kind, low, high, good, required=False, optional=True)


# The rows of docs/protocol.md for what a device sends.
FIELDS: dict[FrameType, dict[str, Field]] = {
    FrameType.HELLO: {
        "min_version": Field("D-1", "int", 1, 255, 1),
        "max_version": Field("D-2", "int", 1, 255, 1),
        "tenant": Field("D-3", "text", 0, 64, "nobody"),
        "nonce": Field("D-4", "bytes", 16, 16, bytes(16)),
        "caps": _default("D-5", "texts", 0, 64, []),
        "agent": _default("D-6", "text", 0, 64, ""),
    },
    FrameType.AUTH: {"mac": Field("D-10", "bytes", 32, 32, bytes(32))},
    FrameType.OPEN: {
        "spec": _nil("D-19", "map", 0, 64, spec()),
        "session": _nil("D-20", "bytes", 16, 16, None),
    },
    FrameType.BLOB: {
        "digest": Field("D-28", "bytes", 32, 32, bytes(32)),
        "total": Field("D-29", "int", 1, 2**48, 4),
        "offset": Field("D-30", "int", 0, 2**48, 0),
    },
    FrameType.DATA: {
        "tensor": Field("D-41", "int", 0, 2999, 0),
        "offset": Field("D-42", "int", 0, 2**48, 0),
        "format": _nil("D-43", "int", 0, 255, 3),
        "block": _nil("D-44", "int", 0, 255, 0),
        "shape": _nil("D-45", "ints", 1, 8, [1]),
        "equalizer": _nil("D-74", "int", 0, 2**32 - 1, None),
        "zstd": _nil("D-75", "int", 1, 2**48, None),
    },
    FrameType.COMMIT: {
        "tensors": Field("D-46", "int", 1, 2002, 1),
        "size": Field("D-47", "int", 1, 2**48, 4),
        "checksum": Field("D-48", "int", 0, 2**32 - 1, 0),
        "samples": Field("D-49", "int", 1, 2**31 - 1, 1),
        "heldout": _default("D-50", "bool", 0, 0, False),
    },
    FrameType.ABORT: {"text": _default("D-51", "text", 0, 512, "")},
    FrameType.PING: {"data": Field("D-65", "bytes", 8, 8, bytes(8))},
    FrameType.PONG: {
        "data": Field("D-66", "bytes", 8, 8, bytes(8)),
        "time": _nil("D-67", "int", 0, 2**63 - 1, 1),
    },
    FrameType.ERROR: {
        "code": Field("D-68", "int", 0, 2**32 - 1, 28),
        "text": _default("D-69", "text", 0, 512, ""),
        "retry_after": _nil("D-70", "number", 0, 86400, 1.5),
    },
}

STREAMS = (FrameType.OPEN, FrameType.BLOB, FrameType.DATA, FrameType.COMMIT, FrameType.ABORT)


def drafts() -> Cases:
    """Return the cases."""
    cases: Cases = []
    for kind, fields in FIELDS.items():
        for name, field in fields.items():
            cases += _of_field(kind, name, field)
        cases += _of_message(kind)
    for kind in (FrameType.FINISH, FrameType.EVAL, FrameType.PULL, FrameType.DETACH, FrameType.BYE):
        cases += _of_message(kind)
    return cases


def _of_field(kind: FrameType, name: str, field: Field) -> Cases:
    cases: Cases = []
    title = f"{kind.name} {name}"
    if field.required:
        cases.append(Draft(f"{field.id} M-4", f"{title} absent", _refused(kind, {name: ...}, E.DECODE)))
    if not field.optional:
        run = _refused(kind, {name: None}, E.SCHEMA_MISMATCH)
        cases.append(Draft(f"{field.id} M-25", f"{title} nil", run))
    for what, value in _of_another_type(field).items():
        run = _refused(kind, {name: value}, E.SCHEMA_MISMATCH)
        cases.append(Draft(f"{field.id} M-5", f"{title} is {what}", run))
    for what, value in _outside(field).items():
        run = _refused(kind, {name: value}, E.SCHEMA_MISMATCH)
        cases.append(Draft(f"{field.id} M-5", f"{title} is {what}", run))
    return cases


def _of_another_type(field: Field) -> dict[str, Any]:
    values: dict[str, Any] = {
        "an integer": 1, "a text": "1", "bytes": b"1", "a list": [1], "a map": {"x": 1}, "a boolean": True,
        "a float": 1.0,
    }  # fmt: skip
    own = {
        "int": {"an integer"},
        "number": {"an integer", "a float"},
        "text": {"a text"},
        "bytes": {"bytes"},
        "bool": {"a boolean"},
        "map": {"a map"},
        "texts": {"a list"},
        "ints": {"a list"},
    }[field.kind]
    values = {what: value for what, value in values.items() if what not in own}
    if field.kind == "bytes":
        values["a text of its length"] = "x" * field.low
    return values


def _outside(field: Field) -> dict[str, Any]:
    low, high = field.low, field.high
    if field.kind == "int":
        values: dict[str, Any] = {f"{low - 1}": low - 1}
        return values | ({f"{high + 1}": high + 1} if high < 2**64 - 1 else {})
    if field.kind == "number":
        return {"-0.5": -0.5, f"{high + 1}": high + 1, "NaN": NAN, "infinite": INFINITY}
    if field.kind == "text":
        return {f"{high + 1} characters": "ä" * (high + 1)}
    if field.kind == "bytes":
        return {
            "empty": b"", f"{low - 1} bytes": bytes(low - 1), f"{low + 1} bytes": bytes(low + 1),
        }  # fmt: skip
    if field.kind == "texts":
        return {"65 texts": ["x"] * 65, "a text of 33 characters": ["x" * 33], "a list with an integer": [1]}
    if field.kind == "ints":
        return {
            "an empty list": [],
            "9 dimensions": [1] * 9,
            "a dimension of 0": [0],
            "a dimension of -1": [-1],
            "a dimension of 2^31": [2**31],
            "a list with a text": ["1"],
            "a list with a boolean": [True],
            "a list with nil": [None],
            "a list with a float": [1.0],
        }
    if field.kind == "map":
        return {"a map with a key of 65 characters": {"x" * 65: 1}}
    return {}


def _of_message(kind: FrameType) -> Cases:
    return [Draft("V-8", f"{kind.name} with a critical key", _refused(kind, {"!new": 1}, E.UNSUPPORTED))]


def _refused(kind: FrameType, changes: dict[str, Any], code: ErrorCode) -> Run[Lab]:
    """Send a message with fields changed, in a state in which the right one would be legal."""

    async def run(lab: Lab) -> None:
        values = {name: field.good for name, field in FIELDS.get(kind, {}).items()} | changes
        values = {name: value for name, value in values.items() if value is not ...}
        on_stream = kind in STREAMS or kind.name in ("FINISH", "EVAL", "PULL", "DETACH")
        payload = bytes(4) if kind.has_payload else None
        seq = 1 if kind in (FrameType.DATA, FrameType.COMMIT, FrameType.ABORT) else 0
        data = frame(kind, values, payload, stream=1 if on_stream else 0, seq=seq)
        peer = await (lab.connect() if kind in (FrameType.HELLO, FrameType.AUTH) else lab.open())
        if kind is FrameType.AUTH:
            await lab.challenged(peer, lab.hello())
        elif on_stream and kind is not FrameType.OPEN:
            stream = await lab.attach(peer)
            await stream.room(MUCH, 1)
        await peer.send(data)
        await peer.refused(code)

    return run
