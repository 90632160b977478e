"""Whole batches: what COMMIT states, what a batch must hold, ABORT, and what is kept for evaluation."""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from ...errors import ErrorCode
from ...formats import Format, packed_size
from ...protocol import LENGTHS, TARGETS, FrameType
from ..case import Draft, Run
from ..samples import BLOCK, HIDDEN, Batch, Tensor, integers, tiny_batch
from ..target import Lab, Stream
from ..wire import frame
from .stimuli import Cases, refused_on_stream

__all__ = ["drafts"]

E = ErrorCode
T = FrameType


def drafts() -> Cases:
    """Return the cases."""
    return [*_commits(), *_contents(), *_formats(), *_tasks(), *_aborts()]


def _with(**commit: Any) -> Batch:
    return dataclasses.replace(tiny_batch(1), commit=tuple(commit.items()))


def _commits() -> Cases:
    batch = tiny_batch(1)
    size = sum(len(tensor.payload) for tensor in batch.tensors)
    wrong: list[tuple[str, Batch]] = [
        *[(f"tensors {count}", _with(tensors=count)) for count in (1, 2, 4, 1002)],
        *[(f"size {number}", _with(size=number)) for number in (1, size - 1, size + 1, 2**48)],
        *[(f"checksum {number}", _with(checksum=number)) for number in (0, 1, 2**32 - 1)],
    ]
    cases = [
        Draft("B-9", f"COMMIT with a wrong {title}", refused_on_stream(item.frames(), E.SCHEMA_MISMATCH))
        for title, item in wrong
    ]
    swapped = dataclasses.replace(batch, tensors=batch.tensors[::-1])
    mixed = [*batch.data(), swapped.end()]
    cases.append(
        Draft("B-9", "COMMIT with the checksum of another order", refused_on_stream(mixed, E.SCHEMA_MISMATCH))
    )
    early = [*batch.data()[:-1], *batch.tensors[2].parts(1, size=20)[:1], batch.end()]
    states: list[tuple[str, str, list[bytes], ErrorCode]] = [
        ("B-25", "COMMIT inside a tensor", early, E.SCHEMA_MISMATCH),
        ("B-26", "COMMIT without a batch", [batch.end()], E.PROTOCOL),
        ("B-26", "COMMIT twice", [*batch.frames(), batch.end()], E.PROTOCOL),
        ("B-26", "COMMIT of another batch", [*batch.data(), tiny_batch(2).end()], E.PROTOCOL),
        ("O-23", "FINISH inside a batch", [*batch.data(), _finish(0)], E.PROTOCOL),
        ("O-23", "FINISH inside a batch, naming it", [*batch.data(), _finish(1)], E.PROTOCOL),
    ]
    cases += [Draft(ids, title, refused_on_stream(frames, code)) for ids, title, frames, code in states]
    fine: dict[str, Batch] = {
        "heldout false": _with(heldout=False),
        "heldout true": _with(heldout=True),
        "unknown keys": _with(grease=1, x=[None]),
    }
    cases += [Draft("B-9 M-6", f"COMMIT with {title}", _passes(item)) for title, item in fine.items()]
    return cases


def _finish(seq: int) -> bytes:
    return frame(T.FINISH, stream=1, seq=seq)


def _passes(batch: Batch) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        stream = await lab.attach()
        await stream.submit(batch)
        await stream.acked(received=1, durable=1, applied=1)
        await stream.peer.alive()

    return run


def _mismatch(batch: Batch, **changes: Any) -> Run[Lab]:
    """See a whole batch refused by its number, and its number used for a right one."""

    async def run(lab: Lab) -> None:
        stream = await lab.attach(**changes)
        await stream.submit(batch)
        await stream.failed(E.SCHEMA_MISMATCH, seq=1)
        if not changes:
            await stream.submit(tiny_batch(1))
            await stream.acked(applied=1)
        await stream.peer.alive()

    return run


def _tap(rows: int, width: int = HIDDEN, fmt: Format = Format.ASYM4, block: int = BLOCK) -> dict[str, Any]:
    shape = (rows, width)
    block = block if fmt.is_block else 0
    return {"format": fmt, "block": block, "shape": shape, "payload": bytes(packed_size(fmt, block, shape))}


def _numbers(values: list[int]) -> dict[str, Any]:
    tensor = integers(0, values)
    return {"shape": tensor.shape, "payload": tensor.payload}


def _contents() -> Cases:
    batch = tiny_batch(1)

    def without(number: int) -> Batch:
        return dataclasses.replace(batch, tensors=[t for t in batch.tensors if t.number != number])

    column = Tensor(LENGTHS, Format.I32, 0, (2, 1), integers(0, [2, 1]).payload)
    wrong: list[tuple[str, str, Batch]] = [
        ("B-11", "without the tap", without(0)),
        ("B-11", "without targets", without(TARGETS)),
        ("B-11", "without lengths", without(LENGTHS)),
        ("B-11", "with a tap one column too wide", batch.replaced(0, **_tap(3, HIDDEN + 1))),
        ("B-11", "with a tap one column too narrow", batch.replaced(0, **_tap(3, HIDDEN - 1))),
        ("B-11", "with a tap of rank 1", batch.replaced(0, shape=(3 * HIDDEN,), payload=bytes(60))),
        ("B-11", "with a tap of rank 3", batch.replaced(0, shape=(1, 3, HIDDEN), payload=bytes(60))),
        ("B-28 B-11", "with one token more than the lengths", batch.replaced(0, **_tap(4))),
        ("B-28 B-11", "with one token less than the lengths", batch.replaced(0, **_tap(2))),
        ("B-28", "with one length too few", batch.replaced(LENGTHS, **_numbers([3]))),
        ("B-28", "with one length too many", batch.replaced(LENGTHS, **_numbers([1, 1, 1]))),
        ("B-28", "with a length of 0", batch.replaced(LENGTHS, **_numbers([3, 0]))),
        ("B-28", "with a negative length", batch.replaced(LENGTHS, **_numbers([4, -1]))),
        ("B-28", "with lengths whose sum is too small", batch.replaced(LENGTHS, **_numbers([1, 1]))),
        ("B-28", "with lengths whose sum is too large", batch.replaced(LENGTHS, **_numbers([2, 2]))),
        (
            "B-28",
            "with lengths whose sum is right modulo 2^32",
            batch.replaced(LENGTHS, **_numbers([2**31 - 1, 1])),
        ),
        ("B-28", "with lengths of rank 2", batch.replaced(LENGTHS, shape=column.shape)),
        ("B-28", "with lengths as f32", batch.replaced(LENGTHS, format=Format.F32)),
        ("B-28", "with lengths as f16", batch.replaced(LENGTHS, format=Format.F16, payload=bytes(4))),
        ("B-29", "with one target too few", batch.replaced(TARGETS, **_numbers([1]))),
        ("B-29", "with a target for each token", batch.replaced(TARGETS, **_numbers([1, 0, 1]))),
        ("B-29", "with targets as f32", batch.replaced(TARGETS, format=Format.F32)),
        ("B-29", "with targets of rank 2", batch.replaced(TARGETS, shape=(2, 1))),
        ("B-30", "with the class -1", batch.replaced(TARGETS, **_numbers([0, -1]))),
        ("B-30", "with the class 2 of 2", batch.replaced(TARGETS, **_numbers([2, 0]))),
        ("B-30", "with the class -100", batch.replaced(TARGETS, **_numbers([0, -100]))),
        ("B-30", "with the class 2^31 - 1", batch.replaced(TARGETS, **_numbers([2**31 - 1, 0]))),
        ("B-28 D-49", "with samples 1 in COMMIT", dataclasses.replace(batch, samples=1)),
        ("B-28 D-49", "with samples 3 in COMMIT", dataclasses.replace(batch, samples=3)),
        ("B-28 D-49", "with samples 2^31 - 1 in COMMIT", dataclasses.replace(batch, samples=2**31 - 1)),
    ]
    return [Draft(f"{ids} B-31", f"a batch {title}", _mismatch(item)) for ids, title, item in wrong]


def _formats() -> Cases:
    """The tap in every other format than the spec's, and with another block."""
    cases: Cases = []
    for fmt in Format:
        if fmt is not Format.ASYM4:
            batch = tiny_batch(1).replaced(0, **_tap(3, fmt=fmt))
            cases.append(Draft("B-11 B-31", f"a tap as {fmt.name.lower()}, not asym4", _mismatch(batch)))
    for block in (64, 128):
        batch = tiny_batch(1).replaced(0, **_tap(3, block=block))
        cases.append(Draft("B-11 B-31", f"a tap with blocks of {block}, not {BLOCK}", _mismatch(batch)))
    for fmt in Format:
        if fmt is not Format.I32:
            batch = tiny_batch(1).replaced(0, **_tap(3, fmt=fmt))
            codec = {"format": fmt.name.lower(), "block": BLOCK}
            cases.append(
                Draft("B-11 B-22", f"a whole batch in {fmt.name.lower()}", _trains(batch, codec=codec))
            )
    not_finite = bytes(16) + struct.pack("<2H", 0x7C00, 0x7E00)  # scale infinite, minimum NaN
    batch = tiny_batch(1).replaced(0, payload=not_finite * 3)
    cases.append(
        Draft(
            "P16 X-10",
            "a tap that is not finite does not end the session",
            functools.partial(_survives, batch),
        )
    )
    return cases


def _trains(batch: Batch, **changes: Any) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        stream = await lab.attach(**changes)
        await stream.submit(batch)
        await stream.acked(applied=1)

    return run


async def _survives(batch: Batch, lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(batch)
    await stream.acked(durable=1)
    await stream.peer.alive()


def _tasks() -> Cases:
    regression: dict[str, Any] = {"task": "regression", "outputs": 1}
    values = struct.pack("<2f", 0.5, -1.5)
    fine = tiny_batch(1).replaced(TARGETS, format=Format.F32, payload=values)
    cases: Cases = [
        Draft("B-29", "a batch of a regression", _trains(fine, **regression)),
        Draft("B-29 B-31", "a regression with targets as i32", _mismatch(tiny_batch(1), **regression)),
    ]
    for title, pair in {"NaN": (float("nan"), 0.0), "an infinite": (0.0, float("inf"))}.items():
        batch = fine.replaced(TARGETS, payload=struct.pack("<2f", *pair))
        cases.append(Draft("B-31 B-29", f"a regression with {title} target", _not_finite(batch, regression)))
    for outputs in (2, 3, 7):
        batch = tiny_batch(1).replaced(TARGETS, **_numbers([outputs - 1, 0]))
        cases.append(Draft("B-30", f"the last of {outputs} classes", _trains(batch, outputs=outputs)))
        batch = tiny_batch(1).replaced(TARGETS, **_numbers([outputs, 0]))
        cases.append(Draft("B-30 B-31", f"one class more than {outputs}", _mismatch(batch, outputs=outputs)))
    cases.append(
        Draft("M-28 B-31", "all tokens where one of each is due", _mismatch(tiny_batch(1), tokens="last"))
    )
    one_each = tiny_batch(1).replaced(LENGTHS, **_numbers([1, 1])).replaced(0, **_tap(2))
    cases.append(Draft("M-28 B-28", "one token of each sample", _trains(one_each, tokens="last")))
    two_taps = {"model": {"name": "x", "hidden_size": HIDDEN, "layers": 2, "taps": [1, 2]}}
    cases.append(Draft("B-11 B-31", "one tap of two", _mismatch(tiny_batch(1), **two_taps)))
    batch = tiny_batch(1)
    second = dataclasses.replace(batch.tensors[2], number=1)
    both = dataclasses.replace(batch, tensors=(*batch.tensors, second))
    cases.append(Draft("B-11 B-3", "two taps", _trains(both, **two_taps)))
    shorter = dataclasses.replace(second, shape=(2, HIDDEN), payload=second.payload[:40])
    uneven = dataclasses.replace(batch, tensors=(*batch.tensors, shorter))
    cases.append(Draft("B-11 B-31", "two taps of different lengths", _mismatch(uneven, **two_taps)))
    return cases


def _not_finite(batch: Batch, changes: dict[str, Any]) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        stream = await lab.attach(**changes)
        await stream.submit(batch)
        await stream.failed(E.SCHEMA_MISMATCH, E.NON_FINITE, seq=1)
        await stream.peer.alive()

    return run


def _aborts() -> Cases:
    async def whole(stream: Stream) -> None:
        await stream.submit(tiny_batch(1, variant=1))
        await stream.acked(applied=1)

    def begun(count: int) -> list[bytes]:
        return tiny_batch(1).data(size=16)[:count]

    cases: Cases = []
    for count in (1, 2, 3, 6):
        cases.append(
            Draft(
                "B-10", f"ABORT after {count} parts, then its number again", _aborted(begun(count), 1, whole)
            )
        )
    cases += [
        Draft("B-27", "ABORT without a batch", _aborted([], 1, whole)),
        Draft("B-27", "ABORT of a batch far ahead", _aborted([], 2**63 - 1, whole)),
        Draft("B-27", "ABORT of another batch changes nothing", _other_abort),
        Draft("B-27", "ABORT of a batch that was committed changes nothing", _late_abort),
        Draft("D-51 M-23", "ABORT with 512 characters", _aborted(begun(1), 1, whole, text="ä" * 512)),
        Draft("B-10", "ABORT ten times in a row", _abort_often),
        Draft(
            "B-26 B-10",
            "COMMIT after ABORT",
            refused_on_stream([*begun(2), _abort(1), tiny_batch(1).end()], E.PROTOCOL),
        ),
        Draft("B-12", "a batch kept for evaluation takes a number", _kept),
    ]
    return cases


def _abort(seq: int, **values: Any) -> bytes:
    return frame(T.ABORT, values, stream=1, seq=seq)


def _aborted(
    frames: list[bytes], seq: int, then: Callable[[Stream], Awaitable[None]], **values: Any
) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        stream = await lab.attach()
        await stream.send(*frames)
        await stream.peer.send(_abort(seq, **values))
        await then(stream)

    return run


async def _other_abort(lab: Lab) -> None:
    stream = await lab.attach()
    batch = tiny_batch(1)
    await stream.send(*batch.data())
    await stream.peer.send(_abort(2), _abort(7))
    await stream.send(batch.end())
    await stream.acked(applied=1)


async def _late_abort(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(1))
    await stream.peer.send(_abort(1))
    await stream.acked(applied=1)
    await stream.submit(tiny_batch(2))
    await stream.acked(applied=2)


async def _abort_often(lab: Lab) -> None:
    stream = await lab.attach()
    for variant in range(10):
        await stream.send(tiny_batch(1, variant=variant).data()[2])
        await stream.peer.send(_abort(1))
    await stream.submit(tiny_batch(1))
    await stream.acked(applied=1)


async def _kept(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(1, heldout=True), tiny_batch(2), tiny_batch(3, heldout=True))
    await stream.acked(applied=3)
    await stream.control(T.FINISH, seq=3)
    await lab.finished(stream.opened.session, steps=1)
