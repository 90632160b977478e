"""The header, its checks and their order, and the checksums."""

from __future__ import annotations

import struct

import msgpack

from ...errors import ErrorCode
from ...protocol import HEADER_SIZE, FrameType, Pong
from ..case import Deviation, Draft, Run
from ..samples import tiny_batch
from ..target import Lab
from ..wire import frame, raw_frame, resigned
from .stimuli import Cases, ignored, refused, refused_at_start, refused_on_stream

__all__ = ["drafts"]

E = ErrorCode
PING = {"data": b"conforms"}
MAP: bytes = msgpack.packb(PING)
MIB = 1024 * 1024


def drafts() -> Cases:
    """Return the cases."""
    return [*_fields(), *_checksums(), *_sizes(), *_order(), *_bodies()]


def _flipped(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def _fields() -> Cases:
    ping = frame(FrameType.PING, PING)
    cases: Cases = []
    for bit in range(16):
        data = _flipped(ping, bit // 8, bit % 8)
        cases.append(Draft("F-16 F-1", f"magic with bit {bit} flipped", refused(resigned(data), E.PROTOCOL)))
    for version in (0, 2, 3, 5, 9, 17, 33, 65, 129, 255):
        data = raw_frame(FrameType.PING, MAP, version=version)
        cases.append(Draft("F-18 V-1", f"version byte {version}", refused(data, E.UNSUPPORTED_VERSION)))
    for bit in range(16):
        data = raw_frame(FrameType.PING, MAP, reserved=1 << bit)
        cases.append(Draft("F-19", f"reserved bit {bit} set", refused(data, E.PROTOCOL)))
    for bit in range(8):
        data = raw_frame(FrameType.PING, MAP, flags=1 << bit)
        cases.append(Draft("F-20", f"critical flag {bit} set", refused(data, E.PROTOCOL)))
        data = raw_frame(FrameType.PING, MAP, flags=256 << bit)
        cases.append(Draft("F-27", f"optional flag {bit} set", _answered(data)))
    for seq in (1 << 63, (1 << 63) + 1, (1 << 64) - 1):
        data = raw_frame(FrameType.PING, MAP, seq=seq)
        cases.append(Draft("F-21", f"seq 0x{seq:x}", refused(data, E.PROTOCOL)))
    for seq in (1, 255, 1 << 32, (1 << 63) - 1):
        data = raw_frame(FrameType.PING, MAP, seq=seq)
        cases.append(Draft("F-28", f"seq {seq} in PING, which has none", _answered(data)))
    return cases


def _answered(ping: bytes) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.open()
        await peer.send(ping)
        pong = await peer.expect(Pong)
        if pong.data != PING["data"]:
            raise Deviation(f"expected PONG with {PING['data'].hex()}; got {pong.data.hex()}")
        await peer.alive()

    return run


def _checksums() -> Cases:
    ping = frame(FrameType.PING, PING)
    cases: Cases = []
    # Bytes 0 and 1 are the magic, which is looked at before the checksum.
    for position in (*range(2, 28),):
        data = _flipped(ping, position, position % 8)
        title = f"header byte {position} damaged"
        cases.append(Draft("F-17 F-11", title, refused(data, E.CRC_HEADER)))
    for position in (*range(28, 32), *range(32, len(ping))):
        data = _flipped(ping, position, position % 8)
        title = "body checksum" if position < 32 else "body"
        title += f" damaged in byte {position}"
        cases.append(Draft("F-25 F-6", title, refused(data, E.CRC_BODY)))
    data = tiny_batch(1).data()[2]
    for position, title in ((HEADER_SIZE + 3, "map"), (len(data) - 1, "last byte of the payload")):
        broken = _flipped(data, position, 0)
        title = f"DATA with a damaged {title}"
        cases.append(Draft("F-25 F-6", title, refused_on_stream([broken], E.CRC_BODY)))
    little = ping[:24] + ping[24:28][::-1] + ping[28:]
    cases.append(Draft("F-10 F-17", "header checksum little-endian", refused(little, E.CRC_HEADER)))
    little = ping[:28] + ping[28:32][::-1] + ping[32:]
    cases.append(Draft("F-10 F-25", "body checksum little-endian", refused(little, E.CRC_BODY)))
    zero = ping[:24] + bytes(4) + ping[28:]
    cases.append(Draft("F-17", "header checksum 0", refused(zero, E.CRC_HEADER)))
    return cases


def _sizes() -> Cases:
    def header(kind: int, body: int, meta: int) -> bytes:
        return raw_frame(kind, b"", body_size=body, meta_size=meta)

    cases = [
        Draft("F-3", "DATA whose body is empty", refused(header(0x10, 0, 0), E.PROTOCOL)),
        Draft("F-3", "DATA with 4 bytes after the map", refused(header(0x10, 24, 20), E.PROTOCOL)),
        Draft("F-3", "BLOB shorter than its map", refused(header(0x08, 10, 20), E.PROTOCOL)),
        Draft("F-3", "WEIGHTS shorter than its map", refused(header(0x0F, 10, 20), E.PROTOCOL)),
        Draft("F-14", "PING one byte longer than its map", refused(header(0x30, 17, 16), E.PROTOCOL)),
        Draft("F-14", "COMMIT with a payload", refused(header(0x11, 100, 40), E.PROTOCOL)),
        Draft("F-14", "PING one byte shorter than its map", refused(header(0x30, 15, 16), E.PROTOCOL)),
        Draft("F-23", "a map of 4097 bytes", refused(header(0x30, 4097, 4097), E.LIMIT)),
        Draft("F-23", "a map of 65535 bytes", refused(header(0x30, 65535, 65535), E.LIMIT)),
        Draft("F-23", "DATA with a map of 4097 bytes", refused(header(0x10, 5000, 4097), E.LIMIT)),
        Draft("F-22 F-15", "a body of 2^32 - 1 bytes", refused(header(0x10, 2**32 - 1, 40), E.FRAME_SIZE)),
        Draft("F-22 F-15", "a body of 2^31 bytes", refused(header(0x10, 2**31, 40), E.FRAME_SIZE)),
        Draft("F-22 H-6", "a body one byte above WELCOME's frame", _above_the_limit),
        Draft("F-22 H-6", "a body of exactly WELCOME's frame passes the header's checks", _at_the_limit),
        Draft("M-1", "a body of 0 bytes is no map", refused(raw_frame(0x30, b""), E.DECODE)),
        Draft("F-22 H-2", "HELLO of 4097 bytes", refused_at_start(header(0x01, 4097, 4096), E.FRAME_SIZE)),
        Draft("F-22 H-2", "AUTH of 4097 bytes", _large_auth),
        Draft("F-22 H-2", "HELLO of 1 MiB", refused_at_start(header(0x01, MIB, 4096), E.FRAME_SIZE)),
    ]
    for text in ("GET / HTTP/1.1\r\nHost: x\r\n\r\nAAAA", "SSH-2.0-OpenSSH_9.7 and some more bytes"):
        data = text.encode().ljust(64, b" ")
        cases.append(Draft("F-16", f"{text[:3]!r} instead of a frame", refused_at_start(data, E.PROTOCOL)))
    client_hello = bytes.fromhex("16030100f8010000f40303") + bytes(64)
    cases.append(Draft("F-16 T-2", "TLS inside", refused_at_start(client_hello, E.PROTOCOL)))
    zeros = bytes(64)
    cases.append(Draft("F-16", "64 zero bytes first", refused_at_start(zeros, E.PROTOCOL)))
    return cases


async def _above_the_limit(lab: Lab) -> None:
    peer = await lab.connect()
    welcome = await lab.welcomed(peer)
    await peer.send(
        raw_frame(FrameType.DATA, b"", body_size=welcome.frame + 1, meta_size=40, stream=1, seq=1)
    )
    await peer.refused(E.FRAME_SIZE)


async def _at_the_limit(lab: Lab) -> None:
    peer = await lab.connect()
    welcome = await lab.welcomed(peer)
    # The next check is that of the bin header, which is wrong: so the length was accepted.
    size = welcome.frame
    data = raw_frame(FrameType.DATA, b"\x80", body_size=size, meta_size=1, stream=1, seq=1)
    await peer.send(data + b"\xc5" + struct.pack(">I", size - 6))
    await peer.refused(E.DECODE)


async def _large_auth(lab: Lab) -> None:
    peer = await lab.connect()
    await lab.challenged(peer, lab.hello())
    await peer.send(raw_frame(FrameType.AUTH, b"", body_size=4097, meta_size=4096))
    await peer.refused(E.FRAME_SIZE)


def _order() -> Cases:
    """Two things wrong at once: the earlier check decides."""

    def large(version: int = 1, reserved: int = 0, flags: int = 0, seq: int = 0) -> bytes:
        return raw_frame(
            FrameType.PING,
            MAP,
            version=version,
            reserved=reserved,
            flags=flags,
            seq=seq,
            body_size=2**31,
            meta_size=5000,
        )

    wrong_crc = bytearray(raw_frame(FrameType.PING, MAP, version=9))
    wrong_crc[24] ^= 1
    both = [
        ("magic before its checksum", b"XX" + frame(FrameType.PING, PING)[2:], E.PROTOCOL),
        ("checksum before version", bytes(wrong_crc), E.CRC_HEADER),
        ("version before reserved", raw_frame(0x30, MAP, version=2, reserved=1), E.UNSUPPORTED_VERSION),
        ("version before flags", raw_frame(0x30, MAP, version=2, flags=1), E.UNSUPPORTED_VERSION),
        ("version before length", large(version=2), E.UNSUPPORTED_VERSION),
        ("reserved before length", large(reserved=1), E.PROTOCOL),
        ("flags before length", large(flags=1), E.PROTOCOL),
        ("seq before length", large(seq=1 << 63), E.PROTOCOL),
        ("length before map", large(), E.FRAME_SIZE),
        ("length before type", raw_frame(0x7F, MAP, body_size=2**31), E.FRAME_SIZE),
        ("map before type", raw_frame(0x7F, MAP, body_size=5000, meta_size=5000), E.LIMIT),
        ("type before sizes", raw_frame(0x7F, MAP, body_size=100, meta_size=16), E.UNSUPPORTED),
    ]
    return [Draft("F-5", f"{title}: both wrong", refused(data, code)) for title, data, code in both]


def _bodies() -> Cases:
    def data(bin_header: bytes) -> bytes:
        meta: bytes = msgpack.packb({"tensor": 0, "offset": 0, "format": 3, "block": 0, "shape": [2]})
        return raw_frame(FrameType.DATA, meta, bytes(8), stream=1, seq=1, bin_header=bin_header)

    eight = struct.pack(">I", 8)
    wrong = [
        ("bin 8, padded", b"\xc4\x08\0\0\0"),
        ("bin 16, padded", b"\xc5\x00\x08\0\0"),
        ("str 32", b"\xdb" + eight),
        ("array 32", b"\xdd" + eight),
        ("map 32", b"\xdf" + eight),
        ("ext 32", b"\xc9" + eight),
        ("nil", b"\xc0" + eight),
        ("the reserved byte 0xC1", b"\xc1" + eight),
        ("bin 32 of one byte less", b"\xc6" + struct.pack(">I", 7)),
        ("bin 32 of one byte more", b"\xc6" + struct.pack(">I", 9)),
        ("bin 32 of no bytes", b"\xc6" + struct.pack(">I", 0)),
        ("bin 32 of 2^32 - 1 bytes", b"\xc6\xff\xff\xff\xff"),
        ("bin 32, little-endian", b"\xc6\x08\0\0\0"),
    ]
    cases: Cases = []
    for title, head in wrong:
        cases.append(Draft("F-4 F-13", f"payload as {title}", refused(data(head), E.DECODE)))
    early = data(b"\xc4\x08\0\0\0")[:-8]
    cases.append(Draft("F-4", "wrong bin header, payload not yet sent", refused(early, E.DECODE)))
    two = frame(FrameType.PING, PING) * 2
    cases.append(Draft("F-12", "two frames in one segment", _pongs(two, 2)))
    cases.append(Draft("F-12 T-3", "thirty frames in one segment", _pongs(frame(0x30, PING) * 30, 30)))
    gap = frame(FrameType.PING, PING) + b"\0" + frame(FrameType.PING, PING)
    cases.append(Draft("F-12", "a zero byte between two frames", refused(gap, E.PROTOCOL)))
    broken = _flipped(frame(0x30, PING), 27, 0)
    cases.append(Draft("F-7 F-26", "a good frame after a bad one", refused(broken + two, E.CRC_HEADER)))
    garbage = b"ML" + bytes(30) + two
    cases.append(Draft("F-7 F-26", "a good frame after garbage", refused(garbage, E.CRC_HEADER)))
    cases.append(Draft("F-27", "all optional flags at once", ignored(raw_frame(0x31, MAP, flags=0xFF00))))
    return cases


def _pongs(data: bytes, count: int) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.open()
        await peer.send(data)
        for _ in range(count):
            await peer.expect(Pong)
        await peer.alive()

    return run
