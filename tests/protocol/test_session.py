"""Tests of mobillm.protocol.session."""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any

import pytest

from mobillm.formats import Format
from mobillm.protocol import (
    Abort,
    Ack,
    Blob,
    Commit,
    Credit,
    Data,
    Evaluated,
    Finished,
    Gap,
    Message,
    Metrics,
    Open,
    Opened,
    Stored,
    TensorHeader,
    Weights,
)
from tests.helpers import example, make_data

SEQ_GOOD, SEQ_BAD = [0, 2**63 - 1], [-1, 2**63, 1.0, True, None]
CASES: list[tuple[type[Message], str, list[Any], list[Any]]] = [
    (Open, "session", [bytes(16)], [bytes(15), "x" * 16]),
    (Opened, "session", [bytes(16)], [bytes(17)]),
    (Opened, "epoch", [1, 2**32 - 1], [0, 2**32]),
    (Opened, "received", [3, 2**63 - 1], SEQ_BAD),
    (Opened, "durable", [1, 3], SEQ_BAD),
    (Opened, "applied", [0, 2], SEQ_BAD),
    (Opened, "missing", [(), (bytes(32),) * 64], [(bytes(31),), (bytes(32),) * 65, bytes(32)]),
    (Opened, "finished", [True, False], [0, 1, None]),
    (Blob, "digest", [bytes(32)], [bytes(31)]),
    (Blob, "total", [8, 2**48], [0, 2**48 + 1]),
    (Blob, "offset", [0], [-1, 2**48 + 1]),
    (Stored, "digest", [bytes(32)], [bytes(33)]),
    (Data, "tensor", [0, 999, 1000, 1001, 2000, 2999], [-1, 1002, 1999, 3000]),
    (Commit, "tensors", [1, 2002], [0, 2003]),
    (Commit, "size", [1, 2**48], [0, 2**48 + 1]),
    (Commit, "checksum", [0, 2**32 - 1], [-1, 2**32]),
    (Commit, "samples", [1, 2**31 - 1], [0, 2**31]),
    (Commit, "heldout", [True], [1, None]),
    (Abort, "text", ["", "x" * 512], ["x" * 513]),
    (Finished, "steps", SEQ_GOOD, SEQ_BAD),
    (Finished, "loss", [None, -1.0, 1e30], [math.nan, math.inf]),
    (Evaluated, "steps", SEQ_GOOD, SEQ_BAD),
    (Evaluated, "samples", [0, 2**32 - 1], [-1, 2**32]),
    (Evaluated, "values", [{}, {"x": 1.0}], [{"x": math.nan}, {"x": "1"}, {"x" * 65: 1.0}, None]),
    (Weights, "digest", [bytes(32)], [bytes(31)]),
    (Weights, "total", [8, 2**48], [0]),
    (Weights, "offset", [0], [-1]),
    (Weights, "steps", SEQ_GOOD, SEQ_BAD),
    (Ack, "received", [3, 2**63 - 1], [-1, 2**63]),
    (Ack, "applied", [0, 2], [-1]),
    (Credit, "offset", [0, 2**48], [-1, 2**48 + 1]),
    (Credit, "last", SEQ_GOOD, SEQ_BAD),
    (Gap, "expected", SEQ_GOOD, SEQ_BAD),
    (Metrics, "step", SEQ_GOOD, SEQ_BAD),
    (Metrics, "epoch", [0, 2**32 - 1], [-1, 2**32]),
    (Metrics, "loss", [None, 0.5], [math.nan]),
    (Metrics, "lr", [0.0, 1e6], [-1.0, 2e6, math.inf]),
    (Metrics, "queue", [0], [-1]),
    (Metrics, "busy", [0.0, 1e9], [-1.0, math.inf]),
    (Metrics, "spans", [(), ((0, 1, 2, 3),) * 64], [((0, 1, 2),), ((0, 1, 2, -1),), ((0, 1, 2, 3),) * 65]),
]


@pytest.mark.parametrize(("cls", "field", "good", "bad"), CASES, ids=lambda v: getattr(v, "__name__", None))
def test_bounds_of_every_field(cls: type[Message], field: str, good: list[Any], bad: list[Any]) -> None:
    """[M-5] [M-20] [M-22] [M-24] [B-17] Each field takes its range, the ends included, and nothing else."""
    sample = example(cls.type)
    for value in good:
        changes: dict[str, Any] = {field: value}
        assert getattr(dataclasses.replace(sample, **changes), field) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"{cls.type.name}.{field} must be"):
            dataclasses.replace(sample, **{field: value})


def test_open_holds_either_spec_or_session() -> None:
    """[O-12] Both or neither is refused."""
    assert Open(stream=1, spec={"task": "x"}).session is None
    neither: dict[str, Any] = {}
    both: dict[str, Any] = {"spec": {}, "session": bytes(16)}
    for values in (neither, both):
        with pytest.raises(ValueError, match="either spec or session"):
            Open(stream=1, **values)


@pytest.mark.parametrize(("offset", "payload"), [(0, b""), (1, bytes(8)), (8, b"x"), (9, b"")])
def test_parts_of_files_end_inside_the_file(offset: int, payload: bytes) -> None:
    """[W-7] A part is not empty and does not reach beyond the total."""
    with pytest.raises(ValueError, match="must end inside total"):
        Blob(stream=1, digest=bytes(32), total=8, offset=offset, payload=payload)
    with pytest.raises(ValueError, match="must end inside total"):
        Weights(stream=1, digest=bytes(32), total=8, offset=offset, steps=1, payload=payload)


def test_data_header_comes_in_the_first_part_only() -> None:
    """[B-5] [B-21] All of format, block and shape at offset 0, none of them later."""
    first: dict[str, Any] = {"format": 3, "block": 0, "shape": (2,)}
    for missing in first:
        with pytest.raises(ValueError, match="all of format, block and shape"):
            Data(stream=1, seq=1, tensor=0, offset=0, payload=b"1234", **{**first, missing: None})
    with pytest.raises(ValueError, match="first part only"):
        Data(stream=1, seq=1, tensor=0, offset=0, payload=b"1234")
    with pytest.raises(ValueError, match="first part only"):
        Data(stream=1, seq=1, tensor=0, offset=4, payload=b"1234", **first)


def test_data_header_must_describe_a_tensor() -> None:
    """[B-14] [B-22] [L-10] An unknown format, a wrong block and a bad shape are refused."""
    good: dict[str, Any] = {"format": 20, "block": 64, "shape": (2, 64)}
    header = Data(stream=1, seq=1, tensor=0, offset=0, payload=b"x", **good).header()
    assert header == TensorHeader(Format.ASYM4, 64, (2, 64))
    for wrong in (
        {"format": 99},
        {"block": 0},
        {"block": 65},
        {"format": 3},
        {"shape": (0,)},
        {"shape": (2**31,)},
        {"shape": ()},
        {"shape": (1,) * 9},
        {"format": 256},
        {"block": -1},
    ):
        with pytest.raises(ValueError, match=r"DATA|block|dimension|rank"):
            Data(stream=1, seq=1, tensor=0, offset=0, payload=b"x", **{**good, **wrong})


def test_a_later_part_has_no_header() -> None:
    """[B-5] Asking a later part for the tensor's header is an error."""
    with pytest.raises(ValueError, match="first part has a header"):
        make_data(1, 0, b"1234", offset=4).header()


def test_data_commit_and_abort_belong_to_a_batch() -> None:
    """[B-1] [B-8] Batches count from 1, and a part is not empty."""
    with pytest.raises(ValueError, match="batch number and a payload"):
        make_data(0)
    with pytest.raises(ValueError, match="batch number and a payload"):
        make_data(1, 0, b"", values=1)
    with pytest.raises(ValueError, match="COMMIT must have a batch number"):
        Commit(stream=1, tensors=1, size=1, checksum=0, samples=1)
    with pytest.raises(ValueError, match="ABORT must have a batch number"):
        Abort(stream=1)


@pytest.mark.parametrize("figures", [(1, 2, 1), (2, 1, 2), (0, 0, 1)])
def test_ack_figures_are_ordered(figures: tuple[int, int, int]) -> None:
    """[X-1] [X-7] applied <= durable <= received."""
    received, durable, applied = figures
    values: dict[str, Any] = {"received": received, "durable": durable, "applied": applied}
    with pytest.raises(ValueError, match="ACK must have applied <= durable <= received"):
        Ack(stream=1, **values)
    with pytest.raises(ValueError, match="OPENED must have applied <= durable <= received"):
        Opened(stream=1, session=bytes(16), epoch=1, **values)
    assert Ack(stream=1, received=2, durable=2, applied=2)


def test_golden_data_message() -> None:
    """[B-5] [F-2] [F-13] The map and payload of a DATA frame, byte for byte."""
    message = make_data(1, 1001, struct.pack("<2i", 3, 5))
    head, payload = message.encode()
    assert bytes(head)[32:].hex() == (
        "85a674656e736f72cd03e9a66f666673657400a6666f726d617403a5626c6f636b00a573686170659102c600000008"
    )
    assert bytes(payload) == bytes.fromhex("0300000005000000")


def test_what_can_be_equalized() -> None:
    """[B-36] [B-39] [D-74] Taps in a block format, and their first part says so."""
    tap = dataclasses.replace(make_data(), format=Format.ASYM4, block=32, equalizer=7)
    assert tap.header() == TensorHeader(Format.ASYM4, 32, (2,), 7)
    for wrong in (
        {"tensor": 1000},
        {"tensor": 2000},
        {"offset": 4, "format": None, "block": None, "shape": None},
    ):
        with pytest.raises(ValueError, match="an equalizer in the first part of a tap only"):
            dataclasses.replace(tap, **wrong)
    with pytest.raises(ValueError, match="an equalizer for a format without blocks"):
        dataclasses.replace(tap, format=Format.F16, block=0)
