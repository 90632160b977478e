"""How taps are packed: equalizers that come once, and widths that the device chooses."""

from __future__ import annotations

import dataclasses
import functools
import struct
from typing import Any

import crc32c

from ...errors import ErrorCode
from ...formats import Format, packed_size
from ...protocol import EQUALIZERS, LENGTHS, TARGETS, FrameType
from ..case import Draft
from ..samples import BLOCK, HIDDEN, Batch, Tensor, tiny_batch
from ..target import Lab
from ..wire import frame
from .stimuli import Cases, fails_stream, refused_on_stream

__all__ = ["drafts"]

E = ErrorCode
ONES = struct.pack("<e", 1.0) * HIDDEN
TWOS = struct.pack("<e", 2.0) * HIDDEN
ADAPTIVE: dict[str, Any] = {"codec": {"format": "asym4", "block": BLOCK, "bits": [2, 4, 8]}}


def drafts() -> Cases:
    """Return the cases."""
    return [*_headers(), *_equalizers(), *_delivery(), *_widths()]


def _equalizer(factors: bytes = ONES, **changes: Any) -> Tensor:
    return dataclasses.replace(Tensor(EQUALIZERS, Format.F16, 0, (HIDDEN,), factors), **changes)


def _equalized(seq: int, names: bytes | None = ONES, brings: Tensor | None = None) -> Batch:
    """Return a batch whose tap names an equalizer, and that brings one; None does not."""
    batch = tiny_batch(seq)
    if names is not None:
        batch = batch.replaced(0, equalizer=crc32c.crc32c(names))
    tensors = batch.tensors if brings is None else (brings, *batch.tensors)
    return dataclasses.replace(batch, tensors=tensors)


def _headers() -> Cases:
    """What DATA itself must not say."""

    def data(tensor: int, offset: int = 0, **values: Any) -> bytes:
        return frame(
            FrameType.DATA, {"tensor": tensor, "offset": offset, **values}, bytes(4), stream=1, seq=1
        )

    plain: dict[str, Any] = {"format": 3, "block": 0, "shape": [1]}
    block: dict[str, Any] = {"format": 20, "block": 32, "shape": [1]}
    wrong = [
        ("B-39", "an equalizer for a format without blocks", data(0, equalizer=1, **plain)),
        ("B-39", "targets that are equalized", data(TARGETS, equalizer=1, **block)),
        ("B-39", "lengths that are equalized", data(LENGTHS, equalizer=1, **block)),
        ("B-39", "an equalizer that is equalized", data(EQUALIZERS, equalizer=1, **block)),
        ("B-39", "an equalizer in a later part", data(0, 4, equalizer=1)),
        ("D-74 M-5", "a negative checksum of an equalizer", data(0, equalizer=-1, **block)),
        ("D-74 M-5", "a checksum of 2^32", data(0, equalizer=2**32, **block)),
        ("D-74 M-5", "an equalizer as text", data(0, equalizer="1", **block)),
        ("B-17 B-35", "tensor number 1999", data(1999, **plain)),
        ("B-17 B-35", "tensor number 3000", data(3000, **plain)),
    ]
    return [Draft(ids, title, refused_on_stream([raw], E.SCHEMA_MISMATCH)) for ids, title, raw in wrong]


def _equalizers() -> Cases:
    """Whole batches that break a rule, each followed by a right one with its number."""
    wrong: list[tuple[str, str, Batch]] = [
        ("B-37", "names an equalizer that never came", _equalized(1)),
        ("B-38", "names another equalizer than it brings", _equalized(1, TWOS, _equalizer())),
        ("B-37", "brings an equalizer as f32", _equalized(1, None, _equalizer(ONES * 2, format=Format.F32))),
        ("B-37", "brings an equalizer of rank 2", _equalized(1, None, _equalizer(shape=(1, HIDDEN)))),
        (
            "B-37",
            "brings an equalizer that is too short",
            _equalized(1, None, _equalizer(ONES[2:], shape=(HIDDEN - 1,))),
        ),
        ("B-11 B-35", "brings the equalizer of tap 1 of 1", _equalized(1, None, _equalizer(number=2001))),
    ]
    for title, factor in {"zero": 0x0000, "negative": 0xBC00, "infinite": 0x7C00, "NaN": 0x7E00}.items():
        factors = ONES[2:] + struct.pack("<H", factor)
        wrong.append(
            ("B-37", f"brings a factor that is {title}", _equalized(1, factors, _equalizer(factors)))
        )
    cases = [
        Draft(f"{ids} B-31", f"a batch that {title}", functools.partial(_refused, batch))
        for ids, title, batch in wrong
    ]
    cases += [
        Draft(
            "B-35 B-36", "an equalized batch", functools.partial(_passes, [_equalized(1, ONES, _equalizer())])
        ),
        Draft(
            "B-37",
            "an equalizer that comes after its tap",
            functools.partial(_passes, [_reversed(_equalized(1, ONES, _equalizer()))]),
        ),
        Draft(
            "B-36 B-37",
            "an equalizer first, then plain and equalized taps",
            functools.partial(_passes, [_equalized(1, None, _equalizer()), _equalized(2), tiny_batch(3)]),
        ),
        Draft(
            "B-37",
            "an equalizer that comes with the second batch",
            functools.partial(
                _passes, [tiny_batch(1), _equalized(2, TWOS, _equalizer(TWOS)), _equalized(3, TWOS)]
            ),
        ),
    ]
    for title, batch in {
        "the same": _equalized(2, None, _equalizer()),
        "another": _equalized(2, TWOS, _equalizer(TWOS)),
    }.items():
        frames = [*_equalized(1, ONES, _equalizer()).frames(), *batch.frames()]
        run = fails_stream(frames, E.SCHEMA_MISMATCH, seq=2)
        cases.append(Draft("B-38 B-31", f"{title} equalizer once more", run))
    plain: dict[str, Any] = {"codec": {"format": "asym4", "block": BLOCK, "equalize": False}}
    for title, batch in {
        "an equalizer": _equalized(1, None, _equalizer()),
        "an equalized tap": _equalized(1),
    }.items():
        run_plain = functools.partial(_refused, batch, **plain)
        cases.append(Draft("B-38 B-36", f"{title} although the spec says no", run_plain))
    return cases


def _reversed(batch: Batch) -> Batch:
    return dataclasses.replace(batch, tensors=tuple(reversed(batch.tensors)))


async def _passes(batches: list[Batch], lab: Lab, **changes: Any) -> None:
    stream = await lab.attach(**changes)
    await stream.submit(*batches)
    await stream.acked(applied=len(batches))
    await stream.peer.alive()


async def _refused(batch: Batch, lab: Lab, **changes: Any) -> None:
    stream = await lab.attach(**changes)
    await stream.submit(batch)
    await stream.failed(E.SCHEMA_MISMATCH, seq=1)
    await stream.submit(tiny_batch(1))
    await stream.acked(applied=1)


def _delivery() -> Cases:
    return [
        Draft("X-18", "an equalizer holds after attaching again", _holds),
        Draft("X-18 B-10", "an equalizer of an aborted batch never came", _aborted),
        Draft("X-18 B-31", "an equalizer of a refused batch never came", _with_refused),
        Draft("X-18 O-7", "an equalized session trains a second epoch", _epochs),
    ]


async def _holds(lab: Lab) -> None:
    first = await lab.attach()
    await first.submit(_equalized(1, ONES, _equalizer()))
    await first.acked(durable=1)
    again = await lab.resume(first.opened.session)
    await again.submit(_equalized(2))
    await again.acked(applied=2)
    await again.submit(_equalized(3, TWOS, _equalizer(TWOS)))
    await again.failed(E.SCHEMA_MISMATCH, seq=3)


async def _aborted(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(*_equalized(1, ONES, _equalizer()).data())
    await stream.peer.send(frame(FrameType.ABORT, {}, stream=1, seq=1))
    await stream.submit(_equalized(1))
    await stream.failed(E.SCHEMA_MISMATCH, seq=1)
    await stream.submit(_equalized(1, TWOS, _equalizer(TWOS)))
    await stream.acked(applied=1)


async def _with_refused(lab: Lab) -> None:
    stream = await lab.attach()
    wrong = dataclasses.replace(_equalized(1, ONES, _equalizer()), samples=3)
    await stream.submit(wrong)
    await stream.failed(E.SCHEMA_MISMATCH, seq=1)
    await stream.submit(_equalized(1, TWOS, _equalizer(TWOS)), _equalized(2, TWOS))
    await stream.acked(applied=2)


async def _epochs(lab: Lab) -> None:
    stream = await lab.attach(epochs=2)
    await stream.submit(_equalized(1, ONES, _equalizer()), _equalized(2), tiny_batch(3))
    await stream.acked(applied=3)
    await stream.control(FrameType.FINISH, seq=3)
    await lab.finished(stream.opened.session, steps=6)


def _widths() -> Cases:
    """Sessions whose spec lets the device choose the width of each tap."""
    wide = [_tap(seq, Format.parse(f"asym{bits}")) for seq, bits in enumerate((2, 8, 4, 2), 1)]
    cases = [
        Draft("B-40", "another width in each batch", functools.partial(_passes, wide, **ADAPTIVE)),
        Draft("B-40 O-7", "mixed widths in a second epoch", functools.partial(_mixed, wide)),
    ]
    for fmt in (Format.ASYM3, Format.ASYM6, Format.NF4, Format.F8, Format.F16, Format.F32):
        run = functools.partial(_refused, _tap(1, fmt), **ADAPTIVE)
        cases.append(Draft("B-40 B-31", f"a tap as {fmt.name.lower()}, not of 2, 4 or 8 bits", run))
    run = functools.partial(_refused, _tap(1, Format.ASYM2, 64), **ADAPTIVE)
    return [*cases, Draft("B-40 B-31", "a width of the list with another block", run)]


def _tap(seq: int, fmt: Format, block: int = BLOCK) -> Batch:
    batch = tiny_batch(seq)
    block = block if fmt.is_block else 0
    size = packed_size(fmt, block, batch.tensors[2].shape)
    return batch.replaced(0, format=fmt, block=block, payload=bytes(size))


async def _mixed(batches: list[Batch], lab: Lab) -> None:
    stream = await lab.attach(epochs=2, **ADAPTIVE)
    await stream.submit(*batches)
    await stream.acked(applied=len(batches))
    await stream.control(FrameType.FINISH, seq=len(batches))
    await lab.finished(stream.opened.session, steps=2 * len(batches))
