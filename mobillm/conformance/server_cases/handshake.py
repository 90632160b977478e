"""The handshake: versions, capabilities, proofs, tenants, and a peer that takes its time."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any

from ...errors import ErrorCode
from ...protocol import FrameType
from ..case import Deviation, Draft, Run
from ..peer import Peer
from ..samples import spec
from ..target import Lab
from ..wire import device_proof, frame, raw_frame
from .stimuli import Cases

__all__ = ["drafts"]

E = ErrorCode


def drafts() -> Cases:
    """Return the cases."""
    return [*_good(), *_versions(), *_early(), *_time()]


def _good() -> Cases:
    cases: Cases = [
        Draft("H-1 A-2 A-10", "the whole handshake", _works()),
        Draft("H-9 H-1", "two connections at once", _two_at_once),
        Draft("H-3 H-12", "the server's nonce is new each time", _nonces),
        Draft("T-5", "nothing comes before HELLO", _server_waits),
        Draft("T-3", "the handshake byte by byte", _byte_by_byte),
        Draft("D-6", "no agent", _works(agent=...)),
        Draft("D-6 M-23", "an agent of 64 characters of 4 bytes each", _works(agent="\U0001f600" * 64)),
        Draft("M-17", "HELLO with keys stream, seq and payload", _works(stream=5, seq=6, payload=b"x")),
        Draft("V-2", "HELLO with unknown keys", _works(grease=[1, {"a": None}], x=1.5)),
        Draft("F-28", "HELLO with a batch number in its header", _with_seq),
        Draft("D-12 D-13 D-14 D-15 L-3 L-7", "the limits of WELCOME", _limits),
    ]
    offers: dict[str, list[str]] = {
        "none": [], "one": ["conformance-a"], "32 characters": ["ä" * 32], "an empty text": [""],
        "64": [f"conformance-{number}" for number in range(64)], "the same twice": ["conformance-a"] * 2,
    }  # fmt: skip
    for title, caps in offers.items():
        cases.append(Draft("H-5 V-5", f"unknown capabilities offered: {title}", _capabilities(caps)))
    return cases


def _works(**changes: Any) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.open(**changes)
        await peer.alive()

    return run


async def _two_at_once(lab: Lab) -> None:
    first, second = await lab.connect(), await lab.connect()
    await lab.welcomed(second)
    await lab.welcomed(first)
    await first.alive()
    await second.alive()


async def _nonces(lab: Lab) -> None:
    seen = set()
    for _ in range(4):
        seen.add((await lab.challenged(await lab.connect(), lab.hello())).nonce)
    if len(seen) != 4:
        raise Deviation(f"expected 4 different nonces in 4 CHALLENGEs; got {len(seen)}")


async def _server_waits(lab: Lab) -> None:
    peer = await lab.connect()
    await peer.silent(0.3)
    await lab.welcomed(peer)


async def _byte_by_byte(lab: Lab) -> None:
    peer = await lab.connect()

    async def trickle(data: bytes) -> None:
        for position in range(len(data)):
            peer.writer.write(data[position : position + 1])
            await asyncio.sleep(0)
        peer.log.add(f"> {len(data)} bytes, one by one")

    hello = lab.hello()
    await trickle(raw_frame(FrameType.HELLO, hello))
    await lab.challenged_by(peer)
    await trickle(frame(FrameType.AUTH, {"mac": device_proof(lab.key(), hello, peer.body)}))
    await lab.welcomed_by(peer)
    await trickle(frame(FrameType.OPEN, {"spec": spec()}, stream=1))
    await lab.opened(peer, 1)


async def _with_seq(lab: Lab) -> None:
    peer = await lab.connect()
    hello = lab.hello()
    await peer.send(raw_frame(FrameType.HELLO, hello, seq=7))
    await lab.challenged_by(peer)
    await lab.prove(peer, hello, peer.body)
    await peer.alive()


async def _limits(lab: Lab) -> None:
    welcome = await lab.welcomed(await lab.connect())
    again = await lab.welcomed(await lab.connect())
    for name in ("frame", "batch", "blob", "streams"):
        if getattr(welcome, name) != getattr(again, name):
            raise Deviation(f"expected the same {name} in two WELCOMEs; they differ")


def _capabilities(caps: list[str]) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.connect()
        hello = lab.hello(caps=caps)
        challenge = await lab.challenged(peer, hello)
        if not set(challenge.caps) <= set(caps):
            raise Deviation(f"expected capabilities among {caps[:3]}; CHALLENGE names {challenge.caps}")
        await lab.prove(peer, hello, peer.body)
        await peer.alive()

    return run


def _versions() -> Cases:
    cases: Cases = []
    for low, high in ((2, 2), (2, 3), (2, 255), (255, 255)):
        run = _refused_hello({"min_version": low, "max_version": high}, E.UNSUPPORTED_VERSION)
        cases.append(Draft("H-13", f"versions {low} to {high}", run))
    for low, high in ((2, 1), (255, 1), (3, 2)):
        run = _refused_hello({"min_version": low, "max_version": high}, E.SCHEMA_MISMATCH)
        cases.append(Draft("H-4", f"versions {low} to {high}", run))
    for high in (1, 2, 255):
        cases.append(Draft("H-14 H-4", f"versions 1 to {high}", _chooses_one(high)))
    return cases


def _refused_hello(changes: dict[str, Any], code: ErrorCode) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.connect()
        await peer.send(raw_frame(FrameType.HELLO, lab.hello(**changes)))
        await peer.refused(code)

    return run


def _chooses_one(high: int) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        challenge = await lab.challenged(await lab.connect(), lab.hello(max_version=high))
        if challenge.version != 1:
            raise Deviation(f"expected version 1 in CHALLENGE; got {challenge.version}")

    return run


def _early() -> Cases:
    return [
        Draft("H-1", "HELLO twice in one segment", _twice),
        Draft("H-9 Y-5", "OPEN together with AUTH", _open_with_auth),
        Draft("H-9 Y-5", "OPEN together with HELLO", _open_with_hello),
        Draft("T-4", "the end of the stream inside HELLO", functools.partial(_cut, 40)),
        Draft("T-4", "the end of the stream inside HELLO's header", functools.partial(_cut, 20)),
        Draft("T-4 K-23", "the end of the stream before HELLO", functools.partial(_cut, 0)),
    ]


async def _twice(lab: Lab) -> None:
    peer = await lab.connect()
    hello = raw_frame(FrameType.HELLO, lab.hello())
    await peer.send(hello, hello)
    # CHALLENGE answers the first one, which was right.
    await lab.challenged_by(peer)
    await peer.refused(E.PROTOCOL)


async def _open_with_auth(lab: Lab) -> None:
    peer = await lab.connect()
    hello = lab.hello()
    await lab.challenged(peer, hello)
    opening = frame(FrameType.OPEN, {"spec": spec()}, stream=1)
    await peer.send(opening, frame(FrameType.AUTH, {"mac": device_proof(lab.key(), hello, peer.body)}))
    await peer.refused(E.PROTOCOL)


async def _open_with_hello(lab: Lab) -> None:
    peer = await lab.connect()
    opening = frame(FrameType.OPEN, {"spec": spec()}, stream=1)
    await peer.send(raw_frame(FrameType.HELLO, lab.hello()), opening)
    await lab.challenged_by(peer)
    await peer.refused(E.PROTOCOL)


async def _cut(count: int, lab: Lab) -> None:
    peer = await lab.connect()
    await peer.send(raw_frame(FrameType.HELLO, lab.hello())[:count])
    if lab.target.tls is None:
        peer.half_close()
        await peer.closed()
    else:  # TLS ends both directions at once
        peer.abort()
    await lab.welcomed(await lab.connect())


def _time() -> Cases:
    return [
        Draft("H-7 L-12", "a peer that says nothing", functools.partial(_slow, 0.0, False)),
        Draft("H-18 H-7", "HELLO at one byte in 0.2 seconds", functools.partial(_slow, 0.2, False)),
        Draft("H-18 H-7", "no AUTH", functools.partial(_slow, 0.0, True)),
    ]


async def _slow(pause: float, challenged: bool, lab: Lab) -> None:
    """See the handshake bounded by about 5 seconds, whatever comes meanwhile."""
    peer = await lab.connect()
    peer.bound = 12.0
    start = time.monotonic()
    if challenged:
        await lab.challenged(peer, lab.hello())
    trickle = asyncio.create_task(_trickle(peer, raw_frame(FrameType.HELLO, lab.hello()), pause))
    try:
        await peer.refused(E.HANDSHAKE_TIMEOUT)
    finally:
        trickle.cancel()
    seconds = time.monotonic() - start
    if not 3.0 <= seconds <= 9.0:
        raise Deviation(f"expected HANDSHAKE_TIMEOUT after 5 s; it came after {seconds:.1f} s")


async def _trickle(peer: Peer, data: bytes, pause: float) -> None:
    if not pause:
        return
    for position in range(len(data)):
        await peer.send(data[position : position + 1])
        await asyncio.sleep(pause)
