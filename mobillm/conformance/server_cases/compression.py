"""Compressed taps: frames of every kind that must be read, and those that must be refused."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ...errors import ErrorCode
from ...formats import Format, packed_size
from ...protocol import CAPABILITY, EQUALIZERS, LENGTHS, TARGETS, FrameType
from ..case import Deviation, Draft, NotApplicable
from ..peer import Peer
from ..samples import BLOCK, HIDDEN, Batch, integers, spec, tiny_batch
from ..target import Lab, Stream
from ..wire import frame
from ..zstd import LONGEST, Block, raw, repeated, zstd_frame
from .stimuli import MUCH, Cases

__all__ = ["drafts"]

E = ErrorCode
CODEC = {"format": "asym4", "block": BLOCK, "compression": CAPABILITY}
BYTE = 0x3C  # of which every fp16 number and every code is a sensible one
SIZE = packed_size(Format.ASYM4, BLOCK, (3, HIDDEN))
RUNS = [repeated(BYTE, SIZE // 3) for _ in range(3)]
GOOD = zstd_frame(RUNS, SIZE)
BOMB = 1 << 30


def drafts() -> Cases:
    """Return the cases."""
    return [*_read(), *_frames(), *_sizes(), *_places(), *_sessions()]


def _batch(content: bytes = GOOD, seq: int = 1, **changes: Any) -> Batch:
    """Return a batch whose tap is a frame."""
    return tiny_batch(seq).replaced(0, **{"payload": content, "zstd": len(content), **changes})


async def _capable(lab: Lab) -> Peer:
    """Return an open connection with the capability."""
    peer = await lab.connect()
    hello = lab.hello(caps=[CAPABILITY])
    challenge = await lab.challenged(peer, hello)
    if CAPABILITY not in challenge.caps:
        raise NotApplicable(f"a server with the capability {CAPABILITY}")
    await lab.prove(peer, hello, peer.body)
    return peer


async def _attach(lab: Lab) -> Stream:
    return await lab.attach(await _capable(lab), codec=CODEC)


def _read() -> Cases:
    plain = [raw(bytes([BYTE]) * 20), repeated(BYTE, SIZE - 20)]
    frames = {
        "blocks of one byte": GOOD,
        "two kinds of blocks": zstd_frame(plain, SIZE),
        "a window of 1 KiB": zstd_frame(RUNS, SIZE, window=10),
        "a window of 8 MiB": zstd_frame(RUNS, SIZE, window=23),
        "an empty last block": zstd_frame([*RUNS, raw(b"")], SIZE),
    }
    cases = [
        Draft("Z-1 Z-7 Z-9 Z-11", f"a tap as a frame of {title}", functools.partial(_passes, _batch(data)))
        for title, data in frames.items()
    ]
    cases += [
        Draft("Z-3 B-4", f"a frame in parts of {size} bytes", functools.partial(_passes, _batch(), size=size))
        for size in (1, 7)
    ]
    return [*cases, Draft("Z-5", "a tap as it is between compressed ones", _mixed)]


async def _passes(batch: Batch, lab: Lab, *, size: int = 1 << 16) -> None:
    stream = await _attach(lab)
    await stream.send(*batch.frames(size=size))
    await stream.acked(applied=1)


async def _mixed(lab: Lab) -> None:
    stream = await _attach(lab)
    await stream.submit(_batch(), tiny_batch(2), _batch(seq=3))
    await stream.acked(applied=3)


def _frames() -> Cases:
    skippable = b"\x50\x2a\x4d\x18" + (SIZE - 10).to_bytes(4, "little")
    wrong = {
        "Z-6": {
            "no content size": zstd_frame(RUNS, None, window=12),
            "a content size one too low": zstd_frame(RUNS, SIZE - 1),
            "a content size one too high": zstd_frame(RUNS, SIZE + 1),
            "a content size of 0": zstd_frame(RUNS, 0),
            "a content size of 1 GiB": zstd_frame(RUNS, BOMB),
            "a content size of 2^63": zstd_frame(RUNS, 1 << 63),
            "a byte more content than it states": zstd_frame([*RUNS, repeated(BYTE, 1)], SIZE),
            "much more content than it states": zstd_frame([*RUNS, repeated(BYTE, LONGEST)], SIZE),
            "less content than it states": zstd_frame([*RUNS[1:], repeated(BYTE, 1)], SIZE),
        },
        "Z-7": {
            "a window of 16 MiB": zstd_frame(RUNS, SIZE, window=24),
            "a window of 2 GiB": zstd_frame(RUNS, SIZE, window=31),
            "a window of 2^41 bytes": zstd_frame(RUNS, SIZE, window=41),
        },
        "Z-8": {"a dictionary": zstd_frame(RUNS, SIZE, dictionary=1)},
        "Z-9": {
            "a byte behind it": GOOD + b"\0",
            "a second frame": GOOD * 2,
            "an empty frame behind it": GOOD + zstd_frame([raw(b"")], 0),
            "a skippable frame behind it": GOOD + b"\x50\x2a\x4d\x18" + bytes(4),
            "a skippable frame ahead of it": b"\x50\x2a\x4d\x18" + bytes(4) + GOOD,
            "a skippable frame alone": (skippable + bytes(SIZE))[: SIZE - 2],
            "a wrong content checksum": zstd_frame(RUNS, SIZE, checksum=b"none"),
        },
        "Z-10": {
            "no magic": bytes(30),
            "the packed bytes": bytes([BYTE]) * (SIZE - 1),
            "its last byte missing": GOOD[:-1],
            "a block that does not exist": zstd_frame([*RUNS[1:], Block(3, 20, bytes(9))], SIZE),
        },
    }
    cases = [
        Draft(f"{rule} Z-10" if rule != "Z-10" else rule, f"a frame with {title}", _refused(data))
        for rule, frames in wrong.items()
        for title, data in frames.items()
    ]
    return [
        *cases,
        Draft("Z-6 Z-10", "33 KB that stand for 1 GiB", functools.partial(_bomb, BOMB)),
        Draft("Z-6 Z-10", "33 KB that stand for 1 GiB and deny it", functools.partial(_bomb, None)),
        Draft("Z-10 X-3", "a session after a bad frame", _goes_on),
    ]


def _refused(data: bytes) -> Any:
    async def run(lab: Lab) -> None:
        stream = await _attach(lab)
        await stream.send(*_batch(data).frames())
        await stream.peer.refused(E.DECOMPRESS)

    return run


async def _bomb(stated: int | None, lab: Lab) -> None:
    """Send a frame whose length is in order for the tap, and whose content is not."""
    shape = (3600, HIDDEN)
    size = packed_size(Format.ASYM4, BLOCK, shape)
    data = zstd_frame(
        [repeated(0, LONGEST)] * (BOMB // LONGEST), size if stated is None else stated, window=17
    )
    lengths = integers(LENGTHS, [shape[0] - 1, 1])
    stream = await _attach(lab)
    await stream.send(*_batch(data, shape=shape).replaced(LENGTHS, payload=lengths.payload).frames())
    await stream.peer.refused(E.DECOMPRESS)


async def _goes_on(lab: Lab) -> None:
    stream = await _attach(lab)
    await stream.submit(_batch())
    await stream.acked(applied=1)
    await stream.send(*_batch(GOOD[:-1], seq=2).frames())
    await stream.peer.refused(E.DECOMPRESS)
    again = await lab.resume(stream.opened.session, await _capable(lab))
    if again.opened.received != 1:
        raise Deviation(f"expected received 1 after a bad frame in batch 2; it is {again.opened.received}")
    await again.submit(_batch(seq=2))
    await again.acked(applied=2)


def _sizes() -> Cases:
    cases: Cases = []
    for size in (1, SIZE // 4 - 1, SIZE, SIZE + 1, 2**48):
        data = _batch(zstd=size).data()
        cases.append(Draft("Z-4", f"a frame of {size} bytes for {SIZE}", _begins(data, E.DECOMPRESS)))
    for value in (0, 2**48 + 1, -1, 1.0, "20"):
        data = _batch(zstd=value).data()
        cases.append(Draft("D-75", f"zstd as {value!r}", _begins(data, E.SCHEMA_MISMATCH)))
    short = _batch(zstd=len(GOOD) + 1)
    return [
        *cases,
        Draft(
            "Z-3 B-20",
            "a frame that is longer than zstd says",
            _begins(_batch(zstd=len(GOOD) - 1).data(), E.SCHEMA_MISMATCH),
        ),
        Draft(
            "Z-3 B-25", "a frame that is shorter than zstd says", _begins(short.frames(), E.SCHEMA_MISMATCH)
        ),
        Draft(
            "Z-11 B-9",
            "COMMIT with the bytes that were sent",
            _begins(
                dataclasses.replace(_batch(), commit=(("size", len(GOOD) + 16),)).frames(), E.SCHEMA_MISMATCH
            ),
        ),
        Draft("Z-11 B-7", "a tensor above WELCOME's batch in a small frame", _too_large),
    ]


def _begins(frames: list[bytes], code: ErrorCode) -> Any:
    async def run(lab: Lab) -> None:
        stream = await _attach(lab)
        await stream.room(MUCH, 1)
        await stream.peer.send(*frames)
        await stream.peer.refused(code)

    return run


async def _too_large(lab: Lab) -> None:
    peer = await lab.connect()
    hello = lab.hello(caps=[CAPABILITY])
    if CAPABILITY not in (await lab.challenged(peer, hello)).caps:
        raise NotApplicable(f"a server with the capability {CAPABILITY}")
    limit = (await lab.prove(peer, hello, peer.body)).batch
    stream = await lab.attach(peer, codec=CODEC)
    await stream.room(MUCH, 1)
    rows = limit // packed_size(Format.ASYM4, BLOCK, (1, HIDDEN)) + 1
    size = packed_size(Format.ASYM4, BLOCK, (rows, HIDDEN))
    await peer.send(*_batch(shape=(rows, HIDDEN), zstd=size // 2).tensors[2].parts(1))
    await peer.refused(E.LIMIT)


def _places() -> Cases:
    block: dict[str, Any] = {"format": 20, "block": BLOCK, "shape": [3, HIDDEN], "zstd": len(GOOD)}

    def data(tensor: int, offset: int = 0, **header: Any) -> list[bytes]:
        values = {"tensor": tensor, "offset": offset, **header}
        return [frame(FrameType.DATA, values, GOOD, stream=1, seq=1)]

    later = [_batch().tensors[2].parts(1, size=8)[0], *data(0, 8, zstd=len(GOOD))]
    places = {
        "compressed targets": data(TARGETS, **block),
        "compressed lengths": data(LENGTHS, **block),
        "a compressed equalizer": data(EQUALIZERS, **block),
        "zstd in a later part": later,
    }
    cases = [Draft("Z-2", title, _begins(frames, E.SCHEMA_MISMATCH)) for title, frames in places.items()]
    return [*cases, Draft("Z-2 V-13", "a compressed tap without the capability", _unagreed)]


async def _unagreed(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.room(MUCH, 1)
    await stream.peer.send(*_batch().frames())
    await stream.peer.refused(E.SCHEMA_MISMATCH)


def _sessions() -> Cases:
    return [
        Draft("Z-12 B-31", "a compressed tap in a session without compression", _unasked),
        Draft("Z-13", "a spec with compression on a connection without the capability", _unsupported),
        Draft("Z-13", "attaching without the capability", _attached),
        Draft("D-75 M-25", "zstd nil", functools.partial(_passes, tiny_batch(1).replaced(0, nil=("zstd",)))),
        Draft("X-15 Z-11", "a compressed batch again", _again),
        Draft("X-15 Z-11", "a compressed batch again with other bytes", _reused),
    ]


async def _unasked(lab: Lab) -> None:
    stream = await lab.attach(await _capable(lab))
    await stream.submit(_batch())
    await stream.failed(E.SCHEMA_MISMATCH, seq=1)
    await stream.submit(tiny_batch(1))
    await stream.acked(applied=1)


async def _unsupported(lab: Lab) -> None:
    await _capable(lab)
    peer = await lab.open()
    await peer.send(frame(FrameType.OPEN, {"spec": spec(codec=CODEC)}, stream=1))
    await peer.refused_on(1, E.SCHEMA_MISMATCH)
    await peer.alive()


async def _attached(lab: Lab) -> None:
    stream = await _attach(lab)
    await stream.submit(_batch())
    await stream.acked(applied=1)
    again = await lab.resume(stream.opened.session)
    await again.submit(tiny_batch(2))
    await again.acked(applied=2)


async def _again(lab: Lab) -> None:
    stream = await _attach(lab)
    await stream.submit(_batch())
    await stream.acked(durable=1)
    await stream.submit(_batch(), _batch(seq=2))
    await stream.acked(applied=2)


async def _reused(lab: Lab) -> None:
    stream = await _attach(lab)
    await stream.submit(_batch())
    await stream.acked(durable=1)
    await stream.submit(_batch(zstd_frame(RUNS, SIZE, window=10)))
    await stream.failed(E.SEQ_REUSE)
