"""Blobs: the head of a language model, in parts, checked by its digest."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from typing import Any

from ...errors import ErrorCode
from ...protocol import FrameType, Stored
from ..case import Deviation, Draft, Run
from ..samples import BLOB, spec, tiny_batch
from ..target import Lab, Stream
from ..wire import frame
from .stimuli import Cases, refused_on_stream

__all__ = ["drafts"]

E = ErrorCode
T = FrameType
DIGEST = hashlib.sha256(BLOB).digest()
SIZE = len(BLOB)


def drafts() -> Cases:
    """Return the cases."""
    return [*_missing(), *_order(), *_digests()]


def part(
    offset: int, end: int, *, content: bytes = BLOB, digest: bytes | None = None, total: int | None = None
) -> bytes:
    """Return a BLOB frame with a part of ``content``, which its digest and its total describe."""
    values: dict[str, Any] = {
        "digest": hashlib.sha256(content).digest() if digest is None else digest,
        "total": len(content) if total is None else total,
        "offset": offset,
    }
    return frame(T.BLOB, values, content[offset:end], stream=1)


def language(digest: bytes) -> dict[str, Any]:
    """Return the changes that make the spec one of a language model whose head has this digest."""
    side = {"kind": "parallel", "width": 4, "heads": 1}
    return {"task": "causal-lm", "outputs": 4, "side": side, "head": digest.hex()}


async def _language(lab: Lab, content: bytes) -> Stream:
    stream = await lab.attach(**language(hashlib.sha256(content).digest()))
    await stream.room(len(content) + 512, 0)
    return stream


def _fresh() -> bytes:
    """Return content that no server has stored yet, and that is no head."""
    return os.urandom(700)


def _missing() -> Cases:
    return [
        Draft("O-5", "OPENED lists the blob that is missing", _listed),
        Draft("O-5", "OPENED lists nothing for a spec without a head", _nothing_listed),
        Draft("W-4 D-31", "a whole blob is answered by STORED", functools.partial(_stored, SIZE)),
        Draft("W-1 W-4", "a blob in parts of 100 bytes", functools.partial(_stored, 100)),
        Draft("W-1 W-4", "a blob in parts of 1 byte", functools.partial(_stored, 1)),
        Draft("O-5 W-4", "a stored blob is not missing for the next session", _known_later),
        Draft("W-16", "a head that is no safetensors file", functools.partial(_no_head, False)),
        Draft("W-16", "a head without settings", functools.partial(_no_head, True)),
        Draft("O-22", "a blob that the spec does not name", _unnamed),
        Draft("O-22", "a blob on a session that needs none", _not_needed),
        Draft("K-26 W-1", "a blob that broke off is sent from its start again", _broken_off),
    ]


async def _listed(lab: Lab) -> None:
    content = _fresh()
    stream = await lab.attach(**language(hashlib.sha256(content).digest()))
    if stream.opened.missing != (hashlib.sha256(content).digest(),):
        raise Deviation(f"expected one missing blob; OPENED lists {len(stream.opened.missing)}")


async def _nothing_listed(lab: Lab) -> None:
    if (await lab.attach()).opened.missing:
        raise Deviation("expected no missing blob; OPENED lists one")


async def _stored(size: int, lab: Lab) -> None:
    content = _fresh()
    stream = await _language(lab, content)
    for offset in range(0, len(content), size):
        await stream.send(part(offset, offset + size, content=content))
    stored = await stream.peer.expect(Stored, stream=1)
    if stored.digest != hashlib.sha256(content).digest():
        raise Deviation("expected STORED with the digest of the blob; it has another one")


async def _known_later(lab: Lab) -> None:
    content = _fresh()
    stream = await _language(lab, content)
    await stream.send(part(0, len(content), content=content))
    await stream.peer.expect(Stored, stream=1)
    peer = await lab.open()
    changes = language(hashlib.sha256(content).digest())
    await peer.send(frame(T.OPEN, {"spec": spec(**changes)}, stream=1))
    opened = await lab.answered(peer, 1)
    if opened.missing:
        raise Deviation("expected no missing blob after STORED; OPENED lists one")


async def _no_head(is_file: bool, lab: Lab) -> None:
    content = _fresh()
    if is_file:
        tensor = {"dtype": "F32", "shape": [4, 43], "data_offsets": [0, 688]}
        header = json.dumps({"head.weight": tensor}).encode()
        content = len(header).to_bytes(8, "little") + header + content[:688]
    stream = await _language(lab, content)
    await stream.send(part(0, len(content), content=content))
    await stream.failed(E.SCHEMA_MISMATCH)
    await stream.peer.alive()


async def _unnamed(lab: Lab) -> None:
    stream = await _language(lab, _fresh())
    await stream.send(part(0, SIZE))
    await stream.failed(E.SCHEMA_MISMATCH)
    await stream.peer.alive()


async def _not_needed(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(part(0, SIZE))
    await stream.failed(E.SCHEMA_MISMATCH)
    await stream.detach()


async def _broken_off(lab: Lab) -> None:
    content = _fresh()
    stream = await _language(lab, content)
    await stream.send(part(0, 100, content=content))
    await stream.peer.alive()
    await stream.detach()
    back = await lab.resume(stream.opened.session, stream.peer)
    await back.send(part(0, len(content), content=content))
    await back.peer.expect(Stored, stream=1)


def _order() -> Cases:
    wrong: list[tuple[str, str, list[bytes], ErrorCode]] = [
        ("W-1", "a blob from its middle", [part(100, 200)], E.PROTOCOL),
        ("W-1", "parts with a gap", [part(0, 100), part(101, 200)], E.PROTOCOL),
        ("W-1", "parts that overlap", [part(0, 100), part(99, 200)], E.PROTOCOL),
        ("W-1", "the same part twice", [part(0, 100), part(100, 150), part(100, 150)], E.PROTOCOL),
        (
            "W-1",
            "another digest in the second part",
            [part(0, 100), part(100, 200, digest=bytes(32))],
            E.PROTOCOL,
        ),
        (
            "W-1",
            "another total in the second part",
            [part(0, 100), part(100, 200, total=SIZE + 1)],
            E.PROTOCOL,
        ),
        ("W-1", "the first part again", [part(0, 100), part(0, 100)], E.PROTOCOL),
        ("W-3", "another blob before the end", [part(0, 100), part(0, 50, content=bytes(50))], E.PROTOCOL),
        ("W-7", "a part without payload", [part(0, 0)], E.SCHEMA_MISMATCH),
        ("W-7", "a later part without payload", [part(0, 100), part(100, 100)], E.SCHEMA_MISMATCH),
        ("W-7", "a part beyond its total", [part(0, 100, total=99)], E.SCHEMA_MISMATCH),
        (
            "W-7",
            "a last part beyond its total",
            [part(0, 100, total=150), part(100, 151, total=150)],
            E.SCHEMA_MISMATCH,
        ),
        (
            "W-7",
            "an offset beyond its total",
            [part(0, 100, total=100), part(100, 110, total=100)],
            E.SCHEMA_MISMATCH,
        ),
        ("D-29", "a total of 0", [part(0, 1, total=0)], E.SCHEMA_MISMATCH),
    ]

    def run(frames: list[bytes], code: ErrorCode) -> Run[Lab]:
        async def work(lab: Lab) -> None:
            stream = await lab.attach(**language(DIGEST))
            await stream.room(8192, 0)
            await stream.peer.send(*frames)
            await stream.peer.refused(code)

        return work

    cases: Cases = [Draft(ids, title, run(frames, code)) for ids, title, frames, code in wrong]
    return [
        *cases,
        Draft("W-2 L-6", "a total above WELCOME's blob", _too_large),
        Draft("W-2", "a total of 2^48", refused_on_stream([part(0, 10, total=2**48)], E.LIMIT)),
        Draft("W-6", "BLOB between the DATA frames of a batch", _between),
    ]


async def _too_large(lab: Lab) -> None:
    peer = await lab.connect()
    welcome = await lab.welcomed(peer)
    stream = await lab.attach(peer, **language(DIGEST))
    await stream.room(1024, 0)
    await peer.send(part(0, 10, total=welcome.blob + 1))
    await peer.refused(E.LIMIT)


async def _between(lab: Lab) -> None:
    content = _fresh()
    stream = await _language(lab, content)
    data = tiny_batch(1).data()
    await stream.send(data[0], part(0, 300, content=content), data[1])
    await stream.send(part(300, len(content), content=content))
    await stream.peer.expect(Stored, stream=1)


def _digests() -> Cases:
    return [
        Draft("W-9", "a blob that does not have its digest", functools.partial(_wrong, 1)),
        Draft("W-9", "a blob in parts, one byte of them wrong", functools.partial(_wrong, 7)),
        Draft("W-9 O-5", "a blob with a wrong digest is still missing", _still_missing),
    ]


async def _wrong(parts: int, lab: Lab) -> None:
    content = _fresh()
    digest = hashlib.sha256(content).digest()
    stream = await _language(lab, content)
    broken = content[:-1] + bytes([content[-1] ^ 1])
    size = -(-len(content) // parts)
    for offset in range(0, len(content), size):
        await stream.send(part(offset, offset + size, content=broken, digest=digest))
    await stream.failed(E.SCHEMA_MISMATCH)
    await stream.detach()


async def _still_missing(lab: Lab) -> None:
    content = _fresh()
    digest = hashlib.sha256(content).digest()
    stream = await _language(lab, content)
    await stream.send(part(0, len(content), content=bytes(len(content)), digest=digest))
    await stream.failed(E.SCHEMA_MISMATCH)
    await stream.detach()
    back = await lab.resume(stream.opened.session, stream.peer)
    if back.opened.missing != (digest,):
        raise Deviation("expected the blob to be still missing; OPENED does not list it")
    await back.send(part(0, len(content), content=content))
    await back.peer.expect(Stored, stream=1)
