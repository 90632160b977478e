"""Every frame type that version 1 does not assign: critical ones refused, optional ones skipped."""

from __future__ import annotations

import functools

from ...errors import ErrorCode
from ...protocol import FrameType
from ..case import Draft
from ..samples import tiny_batch
from ..target import Lab
from ..wire import frame, raw_frame
from .stimuli import Cases, ignored, refused, refused_at_start

__all__ = ["drafts"]

E = ErrorCode
KNOWN = {int(kind) for kind in FrameType}


def drafts() -> Cases:
    """Return the cases."""
    cases: Cases = []
    for kind in range(0x100):
        if kind in KNOWN:
            continue
        data = frame(kind, {"x": 1})
        if 0x80 <= kind < 0xC0:
            cases.append(Draft("V-3", f"optional type 0x{kind:02x}", ignored(data)))
        else:
            cases.append(Draft("V-4 F-24", f"unknown type 0x{kind:02x}", refused(data, E.UNSUPPORTED)))
    return [*cases, *_optional(), *_critical()]


def _optional() -> Cases:
    body = b"\xc1 is no msgpack"
    title = "optional type 0xa0"
    damaged = bytearray(raw_frame(0xA0, body))
    damaged[-1] ^= 1
    cases: Cases = [
        Draft("V-10", f"{title} that is no msgpack", ignored(raw_frame(0xA0, body))),
        Draft("V-10", f"{title} without a body", ignored(raw_frame(0xA0, b""))),
        Draft("V-10", f"{title} with more than a map", ignored(raw_frame(0xA0, body, bytes(100)))),
        Draft("V-10", f"{title} with a map length of 0", ignored(raw_frame(0xA0, body, meta_size=0))),
        Draft(
            "V-10", f"{title} with a map longer than its body", ignored(raw_frame(0xA0, b"x", meta_size=9))
        ),
        Draft("V-10 F-25", f"{title} with a damaged body", refused(bytes(damaged), E.CRC_BODY)),
        Draft(
            "V-10 F-18",
            f"{title} of version 2",
            refused(raw_frame(0xA0, b"", version=2), E.UNSUPPORTED_VERSION),
        ),
        Draft(
            "V-10 F-19", f"{title} with a reserved bit", refused(raw_frame(0xA0, b"", reserved=1), E.PROTOCOL)
        ),
        Draft(
            "V-10 F-20", f"{title} with a critical flag", refused(raw_frame(0xA0, b"", flags=1), E.PROTOCOL)
        ),
        Draft("V-10 F-21", f"{title} with seq 2^63", refused(raw_frame(0xA0, b"", seq=1 << 63), E.PROTOCOL)),
        Draft(
            "V-10 F-23",
            f"{title} with a map of 4097 bytes",
            refused(raw_frame(0xA0, b"", meta_size=4097), E.LIMIT),
        ),
        Draft("V-11 L-14", f"{title} of 4096 bytes", ignored(raw_frame(0xA0, bytes(4096)))),
        Draft(
            "V-11 L-14",
            f"{title} of 4097 bytes",
            refused(raw_frame(0xA0, bytes(4096), b"", bin_header=b"x"), E.FRAME_SIZE),
        ),
        Draft("V-3", f"{title} on a stream that is not in use", ignored(raw_frame(0xA0, b"", stream=9))),
        Draft("V-3", f"{title} on stream 65535", ignored(raw_frame(0xA0, b"", stream=65535))),
        Draft("V-3", f"{title} with a batch number", ignored(raw_frame(0xA0, b"", seq=77))),
        Draft("V-3", f"{title} before HELLO", functools.partial(_in_handshake, 0)),
        Draft("V-3", f"{title} before AUTH", functools.partial(_in_handshake, 1)),
        Draft("V-3 V-12", f"{title} inside a batch, not charged", _inside_a_batch),
        Draft("V-3", "two hundred optional frames", ignored(raw_frame(0xBF, b"") * 200)),
    ]
    return cases


def _critical() -> Cases:
    cases: Cases = []
    for kind in (0x00, 0x7F, 0xC0, 0xFF):
        data = raw_frame(kind, b"\x80")
        title = f"unknown type 0x{kind:02x} before HELLO"
        cases.append(Draft("V-4 F-24", title, refused_at_start(data, E.UNSUPPORTED)))
    data = raw_frame(0x7F, b"\xc1")
    cases.append(Draft("V-4", "unknown type that is no msgpack", refused(data, E.UNSUPPORTED)))
    data = raw_frame(0xC0, b"\x80", stream=3)
    cases.append(Draft("V-4", "critical type on a stream", refused(data, E.UNSUPPORTED)))
    return cases


async def _in_handshake(position: int, lab: Lab) -> None:
    peer = await lab.connect()
    extension = frame(0x80, {"!grease": 1})
    if position == 0:
        await peer.send(extension)
        await lab.welcomed(peer)
    else:
        hello = lab.hello()
        await peer.send(raw_frame(FrameType.HELLO, hello))
        await lab.challenged_by(peer)
        challenge = peer.body
        await peer.send(extension)
        await lab.prove(peer, hello, challenge)
    await peer.alive()


async def _inside_a_batch(lab: Lab) -> None:
    stream = await lab.attach()
    for data in tiny_batch(1).frames():
        await stream.peer.send(raw_frame(0x81, bytes(64), stream=1))
        await stream.send(data)
    await stream.acked(received=1)
    await stream.peer.alive()
