"""Frames and maps that a client must refuse, and those that it must read or skip."""

from __future__ import annotations

import functools
import struct

import msgpack

from ...errors import ErrorCode
from ...protocol import FrameType
from ..case import Deviation, Draft
from ..host import Host
from ..wire import frame, raw_frame, resigned
from .moments import Cases, Moment, attached, carries_on, committed, hello, opening, refuses, sending

__all__ = ["drafts"]

E = ErrorCode
T = FrameType
PING: bytes = msgpack.packb({"data": b"conforms"})
FIELD = PING[1:]


def drafts() -> Cases:
    """Return the cases."""
    return [*_headers(), *_maps(), *_skipped(), *_pings()]


async def _send(data: bytes, host: Host) -> None:
    await host.peer.send(data)


def _damaged(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def _weights(bin_header: bytes) -> bytes:
    meta: bytes = msgpack.packb({"digest": bytes(32), "total": 8, "offset": 0, "steps": 1})
    return raw_frame(T.WEIGHTS, meta, bytes(8), stream=1, bin_header=bin_header)


def _headers() -> Cases:
    whole = raw_frame(T.PING, PING)
    wrong: list[tuple[str, str, bytes, ErrorCode]] = [
        ("F-16", "another magic", resigned(_damaged(whole, 0)), E.PROTOCOL),
        ("F-16", "an answer in HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(64), E.PROTOCOL),
        ("F-16", "zeros", bytes(64), E.PROTOCOL),
        ("F-17", "a wrong header checksum", _damaged(whole, 24), E.CRC_HEADER),
        ("F-17", "a damaged length", _damaged(whole, 11), E.CRC_HEADER),
        ("F-18", "version byte 2", raw_frame(T.PING, PING, version=2), E.UNSUPPORTED_VERSION),
        ("F-21", "seq 2^63", raw_frame(T.PING, PING, seq=1 << 63), E.PROTOCOL),
        ("F-22", "a body of 2^32 - 1 bytes", raw_frame(T.WEIGHTS, b"", body_size=2**32 - 1), E.FRAME_SIZE),
        ("F-23", "a map of 4097 bytes", raw_frame(T.WEIGHTS, b"", body_size=4096, meta_size=4097), E.LIMIT),
        ("F-24 V-4", "the type 0x7f", raw_frame(0x7F, b"\x80"), E.UNSUPPORTED),
        ("F-24 V-4", "the type 0xc0", raw_frame(0xC0, b"\x80"), E.UNSUPPORTED),
        ("F-24 V-4", "the type 0x00", raw_frame(0x00, b"\x80"), E.UNSUPPORTED),
        ("F-14", "PING with a payload", raw_frame(T.PING, PING, b"x"), E.PROTOCOL),
        ("F-3", "WEIGHTS shorter than its parts", raw_frame(T.WEIGHTS, b"\x80", body_size=3), E.PROTOCOL),
        ("F-4 F-13", "WEIGHTS with a bin 8", _weights(b"\xc4\x08\0\0\0"), E.DECODE),
        ("F-4", "WEIGHTS with a wrong bin length", _weights(b"\xc6" + struct.pack(">I", 9)), E.DECODE),
        ("F-25", "a wrong body checksum", _damaged(whole, 31), E.CRC_BODY),
        ("F-25", "a damaged body", _damaged(whole, len(whole) - 1), E.CRC_BODY),
        ("F-7 F-26", "a good frame after a bad one", _damaged(whole, 24) + whole, E.CRC_HEADER),
    ]
    wrong += [
        ("F-19", f"reserved bit {bit}", raw_frame(T.PING, PING, reserved=1 << bit), E.PROTOCOL)
        for bit in range(16)
    ]
    wrong += [
        ("F-20", f"critical flag {bit}", raw_frame(T.PING, PING, flags=1 << bit), E.PROTOCOL)
        for bit in range(8)
    ]
    cases: Cases = []
    for ids, title, data, code in wrong:
        moments: dict[str, Moment] = {"before CHALLENGE": hello, "on an open session": attached}
        if "WEIGHTS" in title and "F-4" in ids:
            moments.pop("before CHALLENGE")
        for when, moment in moments.items():
            run = refuses(moment, functools.partial(_send, data), code)
            cases.append(Draft(ids, f"{title}, {when}", run))
    return cases


def _maps() -> Cases:
    wrong = {
        "0xC1": ("M-1", b"\x82" + FIELD + b"\xa1x\xc1"),
        "no map": ("M-1", b"\x91\x01"),
        "a truncated map": ("M-1", b"\x82" + FIELD),
        "bytes after the map": ("M-10", PING + b"\xc0"),
        "a key twice": ("M-11", b"\x82" + FIELD + FIELD),
        "an integer key": ("M-12", b"\x82" + FIELD + b"\x01\x01"),
        "malformed UTF-8": ("M-13", b"\x82" + FIELD + b"\xa1x\xa1\xff"),
        "a timestamp": ("M-14", b"\x82" + FIELD + b"\xa1x\xd6\xff" + bytes(4)),
        "an inner map that says 2^32 - 1 items": ("M-2", b"\x82" + FIELD + b"\xa1x\xdf\xff\xff\xff\xff"),
        "a list of 1025 items": ("M-15", b"\x82" + FIELD + b"\xa1x\xdc\x04\x01" + b"\x01" * 1025),
        "lists nested 5 deep": ("M-16", b"\x82" + FIELD + b"\xa1x" + b"\x91" * 4 + b"\x01"),
        "lists nested 4000 deep": ("M-16", b"\x82" + FIELD + b"\xa1x" + b"\x91" * 4000 + b"\x01"),
    }
    cases: Cases = []
    for title, (ids, meta) in wrong.items():
        run = refuses(opening, functools.partial(_send, raw_frame(T.PING, meta)), E.DECODE)
        cases.append(Draft(ids, f"PING with {title}", run))
    absent = functools.partial(_send, frame(T.PING))
    cases.append(Draft("D-65 M-4", "PING without data", refuses(opening, absent, E.DECODE)))
    short = functools.partial(_send, frame(T.PING, {"data": bytes(7)}))
    cases.append(Draft("D-65 M-5", "PING with 7 bytes", refuses(opening, short, E.SCHEMA_MISMATCH)))
    critical = functools.partial(_send, frame(T.PING, {"data": bytes(8), "!x": 1}))
    cases.append(Draft("V-8", "PING with a critical key", refuses(opening, critical, E.UNSUPPORTED)))
    return cases


def _skipped() -> Cases:
    fine = {
        "an optional frame": ("V-3", raw_frame(0x80, b"\x80")),
        "an optional frame that is no msgpack": ("V-10", raw_frame(0xBF, b"\xc1")),
        "an optional frame of 4096 bytes": ("V-11", raw_frame(0xA0, bytes(4096))),
        "an optional frame on a stream that is not in use": ("V-3", raw_frame(0xA0, b"", stream=7)),
        "fifty optional frames": ("V-3", raw_frame(0x90, b"x") * 50),
        "PING with all optional flags": ("F-27", raw_frame(T.PING, PING, flags=0xFF00)),
        "PING with a batch number": ("F-28", raw_frame(T.PING, PING, seq=7)),
        "PING with unknown keys": ("V-2", frame(T.PING, {"data": bytes(8), "x": [{"y": None}], "": 1})),
        "a PONG that answers nothing": ("K-10", frame(T.PONG, {"data": bytes(8)})),
    }
    cases: Cases = []
    for title, (ids, data) in fine.items():
        for when, moment in (
            ("after OPEN", opening),
            ("inside a batch", sending),
            ("after COMMIT", committed),
        ):
            cases.append(Draft(ids, f"{title}, {when}", carries_on(moment, functools.partial(_send, data))))
    big = functools.partial(_send, raw_frame(0xA0, bytes(4096), b"", bin_header=b"x"))
    cases.append(Draft("V-11", "an optional frame of 4097 bytes", refuses(opening, big, E.FRAME_SIZE)))
    return cases


def _pings() -> Cases:
    cases: Cases = []
    for when, moment in (
        ("after OPEN", opening),
        ("on an attached stream", attached),
        ("after COMMIT", committed),
    ):
        cases.append(Draft("K-8", f"PING {when} is answered", carries_on(moment, _answered)))
    return cases


async def _answered(host: Host) -> None:
    await host.peer.send(raw_frame(T.PING, PING))
    pong = await host.pong()
    if pong.data != b"conforms":
        raise Deviation(f"expected PONG with the data of the PING; got {pong.data.hex()}")
