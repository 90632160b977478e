"""DATA: the order of parts, their sizes in every packed format, and headers that describe no tensor."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from ...errors import ErrorCode
from ...formats import Format, packed_size
from ...protocol import LENGTHS, TARGETS, FrameType
from ..case import Draft
from ..samples import HIDDEN, Tensor, integers, tiny_batch
from ..target import Lab
from ..wire import frame
from .stimuli import MUCH, Cases, fails_stream, refused_on_stream

__all__ = ["drafts"]

E = ErrorCode
SHAPE = (3, HIDDEN)


def drafts() -> Cases:
    """Return the cases."""
    return [*_headers(), *_sizes(), *_order(), *_limits()]


def _data(tensor: int, offset: int, payload: bytes, seq: int = 1, **header: Any) -> bytes:
    values = {"tensor": tensor, "offset": offset, **header}
    return frame(FrameType.DATA, values, payload, stream=1, seq=seq)


def _first(fmt: int, block: int, shape: list[int], payload: bytes = bytes(4)) -> bytes:
    return _data(0, 0, payload, format=fmt, block=block, shape=shape)


def _headers() -> Cases:
    mismatch = E.SCHEMA_MISMATCH
    cases: Cases = []
    for code in (4, 5, 15, 16, 17, 25, 32, 35, 38, 39, 41, 64, 127, 128, 255):
        run = refused_on_stream([_first(code, 0, [1])], mismatch)
        cases.append(Draft("B-14", f"unknown format {code}", run))
    for fmt in Format:
        blocks = (0, 1, 16, 63, 65, 255) if fmt.is_block else (1, 32, 64, 128)
        for block in blocks:
            run = refused_on_stream([_first(fmt, block, [1])], mismatch)
            cases.append(Draft("B-14", f"{fmt.name.lower()} with a block of {block}", run))
    whole: dict[str, Any] = {"format": 3, "block": 0, "shape": [1]}
    for left_out in ("format", "block", "shape"):
        header = {name: value for name, value in whole.items() if name != left_out}
        run = refused_on_stream([_data(0, 0, bytes(4), **header)], mismatch)
        cases.append(Draft("B-5", f"the first part without {left_out}", run))
        header = {**whole, left_out: None}
        run = refused_on_stream([_data(0, 0, bytes(4), **header)], mismatch)
        cases.append(Draft("B-5 M-25", f"the first part with {left_out} nil", run))
    cases.append(
        Draft("B-5", "the first part without a header", refused_on_stream([_data(0, 0, bytes(4))], mismatch))
    )
    begin = _first(3, 0, [4])
    for name, value in whole.items():
        run = refused_on_stream([begin, _data(0, 4, bytes(4), **{name: value})], mismatch)
        cases.append(Draft("B-21", f"a later part with {name}", run))
    run = refused_on_stream([begin, _data(0, 4, bytes(4), **whole)], mismatch)
    cases.append(Draft("B-21", "a later part with a whole header", run))
    for tensor in (1, 7, 999):  # in range, but not of this spec: known when the batch is whole
        batch = tiny_batch(1)
        extra = Tensor(tensor, Format.I32, 0, (1,), bytes(4))
        wrong = dataclasses.replace(batch, tensors=(*batch.tensors, extra))
        run = fails_stream(wrong.frames(), mismatch, seq=1)
        cases.append(Draft("B-11 B-31", f"tap {tensor}, which the spec does not have", run))
    for tensor in (1002, 1003, 65535, -1):
        run = refused_on_stream([_data(tensor, 0, bytes(4), **whole)], mismatch)
        cases.append(Draft("B-17", f"tensor number {tensor}", run))
    run = refused_on_stream([_data(0, 0, b"", **whole)], mismatch)
    cases.append(Draft("B-8", "a first part without payload", run))
    run = refused_on_stream([begin, _data(0, 4, b"")], mismatch)
    cases.append(Draft("B-8", "a later part without payload", run))
    for kind in (FrameType.DATA, FrameType.COMMIT, FrameType.ABORT):
        seq_0 = _zero_seq(kind)
        cases.append(Draft("B-1", f"{kind.name} with batch number 0", refused_on_stream([seq_0], mismatch)))
    shapes = {"rank 8": [1] * 7 + [HIDDEN], "the largest dimension": [1, 2**31 - 1]}
    for title, shape in shapes.items():
        fine = title == "rank 8"
        data = _first(20, 32, shape, bytes(packed_size(Format.ASYM4, 32, shape) if fine else 64))
        ids = "L-10 D-45"
        if fine:
            cases.append(Draft(ids, f"a tensor of {title}", functools.partial(_passes, data)))
        else:
            cases.append(Draft(f"{ids} B-7", f"a tensor of {title}", refused_on_stream([data], E.LIMIT)))
    return cases


def _zero_seq(kind: FrameType) -> bytes:
    batch = tiny_batch(0)
    if kind is FrameType.DATA:
        return batch.data()[0]
    return batch.end() if kind is FrameType.COMMIT else frame(kind, stream=1)


async def _passes(data: bytes, lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(data)
    await stream.peer.alive()


def _sizes() -> Cases:
    """In each format: one byte too many, one byte too few, and exactly right."""
    cases: Cases = []
    for fmt in Format:
        for block in (32, 64, 128) if fmt.is_block else (0,):
            shape = [3, 70]  # the last block of a row is short
            size = packed_size(fmt, block, shape)
            name = fmt.name.lower() + (f" with blocks of {block}" if block else "")
            next_one = _data(TARGETS, 0, bytes(8), format=3, block=0, shape=[2])
            long = [_first(fmt, block, shape, bytes(size + 1))]
            short = [_first(fmt, block, shape, bytes(size - 1))]
            right = [_first(fmt, block, shape, bytes(size)), next_one]
            cases += [
                Draft("B-20 B-22 P7", f"{name}, a byte too long", refused_on_stream(long, E.SCHEMA_MISMATCH)),
                Draft(
                    "B-19 B-22 P7",
                    f"{name}, a byte too short",
                    refused_on_stream([*short, next_one], E.SCHEMA_MISMATCH),
                ),
                Draft("B-22 P6", f"{name}, exactly right", functools.partial(_whole, right)),
            ]
    return cases


async def _whole(frames: list[bytes], lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(*frames)
    await stream.peer.alive()


def _order() -> Cases:
    tap = tiny_batch(1).tensors[2]
    size = len(tap.payload)
    half = size // 2

    def part(offset: int, end: int, tensor: int = 0) -> bytes:
        header: dict[str, Any] = {}
        if offset == 0:
            header = {"format": tap.format, "block": tap.block, "shape": list(tap.shape)}
        return _data(tensor, offset, (tap.payload + bytes(8))[offset:end], **header)

    targets = tiny_batch(1).tensors[1].parts(1)[0]
    wrong: list[tuple[str, str, list[bytes], ErrorCode]] = [
        ("B-18", "a part that leaves one byte out", [part(0, half), part(half + 1, size)], E.PROTOCOL),
        ("B-18", "a part that repeats one byte", [part(0, half), part(half - 1, size)], E.PROTOCOL),
        (
            "B-18",
            "the same part twice",
            [part(0, half), part(half, half + 4), part(half, half + 4)],
            E.PROTOCOL,
        ),
        ("B-18", "the second part first", [part(half, size)], E.PROTOCOL),
        ("B-18", "two parts in the other order", [part(0, 8), part(16, 24), part(8, 16)], E.PROTOCOL),
        ("B-18", "a later part of another tensor", [part(0, half), part(half, size, 5)], E.PROTOCOL),
        ("B-18", "a part after the last one", [part(0, size), part(size, size + 1)], E.SCHEMA_MISMATCH),
        ("B-18", "a part far behind", [part(0, half), _data(0, 2**48, b"x")], E.PROTOCOL),
        ("B-19", "a tensor that begins inside another", [part(0, half), targets], E.SCHEMA_MISMATCH),
        ("B-20", "a last part that is too long", [part(0, half), part(half, size + 1)], E.SCHEMA_MISMATCH),
        ("B-6", "a tensor twice", [part(0, size), part(0, size)], E.PROTOCOL),
        ("B-6", "a tensor twice, another one between", [part(0, size), targets, part(0, size)], E.PROTOCOL),
        (
            "B-19",
            "a tensor that begins again before its end",
            [part(0, half), part(0, size)],
            E.SCHEMA_MISMATCH,
        ),
        ("B-16", "another batch before the end", [part(0, size), *tiny_batch(2).data()], E.PROTOCOL),
        ("B-16", "another batch inside a tensor", [part(0, half), *tiny_batch(2).data()], E.PROTOCOL),
    ]
    cases = [Draft(ids, title, refused_on_stream(frames, code)) for ids, title, frames, code in wrong]
    cases += [
        Draft("B-4", f"tensors in parts of {count} bytes", functools.partial(_in_parts, count))
        for count in (1, 2, 3, 7, 20)
    ]
    cases += [
        Draft("B-23", f"tensors in the order {order}", functools.partial(_ordered, order))
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1))
    ]
    return cases


async def _in_parts(size: int, lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(*tiny_batch(1).frames(size=size))
    await stream.acked(applied=1)


async def _ordered(order: tuple[int, ...], lab: Lab) -> None:
    stream = await lab.attach()
    batch = tiny_batch(1)
    await stream.submit(dataclasses.replace(batch, tensors=[batch.tensors[index] for index in order]))
    await stream.acked(applied=1)


def _limits() -> Cases:
    return [
        Draft(
            "B-7 B-24 L-5", "a tensor above WELCOME's batch, by its header", functools.partial(_too_large, 1)
        ),
        Draft("B-7 B-24 L-5", "two tensors above WELCOME's batch together", functools.partial(_too_large, 2)),
        Draft("B-7 L-5", "a tensor of exactly WELCOME's batch", _largest),
        Draft("B-7 L-10", "a size beyond 64 bits", functools.partial(_huge, [2**31 - 1] * 8)),
        Draft("B-7 L-10", "a size beyond 2^48", functools.partial(_huge, [2**31 - 1, 2**31 - 1])),
    ]


async def _too_large(tensors: int, lab: Lab) -> None:
    peer = await lab.connect()
    limit = (await lab.welcomed(peer)).batch
    stream = await lab.attach(peer)
    await stream.room(MUCH, 1)
    if tensors == 2:
        await stream.send(*integers(LENGTHS, [2, 1]).parts(1))
    rest = math.ceil((limit + 1) / 4) if tensors == 1 else math.floor(limit / 4)
    await stream.peer.send(_data(0, 0, bytes(64), format=3, block=0, shape=[rest]))
    await peer.refused(E.LIMIT)


async def _largest(lab: Lab) -> None:
    peer = await lab.connect()
    limit = (await lab.welcomed(peer)).batch
    shape = [limit // 4] if limit // 4 < 2**31 else [limit // 4096, 1024]
    stream = await lab.attach(peer)
    await stream.send(_data(0, 0, bytes(64), format=3, block=0, shape=shape))
    await peer.alive()


async def _huge(shape: list[int], lab: Lab) -> None:
    stream = await lab.attach()
    await stream.room(MUCH, 1)
    await stream.peer.send(_data(0, 0, bytes(64), format=0, block=0, shape=shape))
    await stream.peer.refused(E.LIMIT)
