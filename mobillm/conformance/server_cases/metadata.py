"""The metadata map: what is no map, what a map must not hold, and every form of a value that is fine."""

from __future__ import annotations

import struct

import msgpack

from ...errors import ErrorCode
from ...protocol import FrameType
from ..case import Deviation, Draft, Run
from ..target import Lab
from ..wire import raw_frame
from .stimuli import Cases, ignored, refused, refused_at_start

__all__ = ["drafts"]

E = ErrorCode
DATA = b"\xa4data\xc4\x0812345678"  # the one field of PING and its value
CANARY = "Zx9canaryQ"


# What a map must not hold beside the field of PING, packed, and the statement that says so.
_INSIDE: dict[str, tuple[str, bytes]] = {
    "0xC1 as a value": ("M-1", b"\xa1x\xc1"),
    "0xC1 as a key": ("M-1", b"\xc1\x01"),
    "0xC1 in a list": ("M-1", b"\xa1x\x91\xc1"),
    "its own key twice": ("M-11", DATA),
    "an unknown key twice": ("M-11", b"\xa1x\x01\xa1x\x01"),
    "the same key in two encodings": ("M-11", b"\xa1x\x01\xd9\x01x\x01"),
    "a key twice one level down": ("M-11", b"\xa1x\x82\xa1y\x01\xa1y\x02"),
    "a key twice in a map in a list": ("M-11", b"\xa1x\x91\x82\xa1y\x01\xa1y\x02"),
    "an integer key": ("M-12", b"\x01\x01"),
    "a negative key": ("M-12", b"\xff\x01"),
    "a nil key": ("M-12", b"\xc0\x01"),
    "a boolean key": ("M-12", b"\xc3\x01"),
    "a float key": ("M-12", b"\xcb" + bytes(8) + b"\x01"),
    "a bin key": ("M-12", b"\xc4\x01x\x01"),
    "a list as key": ("M-12", b"\x90\x01"),
    "a map as key": ("M-12", b"\x80\x01"),
    "an integer key one level down": ("M-12", b"\xa1x\x81\x01\x02"),
    "an integer key in a list": ("M-12", b"\xa1x\x91\x81\x01\x02"),
    "a string with the byte 0xFF": ("M-13", b"\xa1x\xa1\xff"),
    "a string cut inside a character": ("M-13", b"\xa1x\xa1\xc3"),
    "a string with an overlong form": ("M-13", b"\xa1x\xa2\xc0\x80"),
    "a string with a surrogate": ("M-13", b"\xa1x\xa3\xed\xa0\x80"),
    "a key that is no UTF-8": ("M-13", b"\xa1\xff\x01"),
    "fixext 1": ("M-14", b"\xa1x\xd4\x05x"),
    "fixext 2": ("M-14", b"\xa1x\xd5\x05xx"),
    "fixext 4": ("M-14", b"\xa1x\xd6\x05xxxx"),
    "fixext 8": ("M-14", b"\xa1x\xd7\x05" + bytes(8)),
    "fixext 16": ("M-14", b"\xa1x\xd8\x05" + bytes(16)),
    "ext 8": ("M-14", b"\xa1x\xc7\x03\x05abc"),
    "ext 8 without content": ("M-14", b"\xa1x\xc7\x00\x05"),
    "ext 16": ("M-14", b"\xa1x\xc8\x00\x03\x05abc"),
    "ext 32": ("M-14", b"\xa1x\xc9\x00\x00\x00\x03\x05abc"),
    "a timestamp of 4 bytes": ("M-14", b"\xa1x\xd6\xff" + bytes(4)),
    "a timestamp of 8 bytes": ("M-14", b"\xa1x\xd7\xff" + bytes(8)),
    "a timestamp of 12 bytes": ("M-14", b"\xa1x\xc7\x0c\xff" + bytes(12)),
    "an extension in a list": ("M-14", b"\xa1x\x91\xd4\x05x"),
    "a list that says 2^32 - 1 items": ("M-15 M-1", b"\xa1x\xdd\xff\xff\xff\xff"),
    "a map that says 2^32 - 1 items": ("M-2 M-1", b"\xa1x\xdf\xff\xff\xff\xff"),
    "a string that says 2^32 - 1 bytes": ("M-1", b"\xa1x\xdb\xff\xff\xff\xff"),
    "a bin that says 2^32 - 1 bytes": ("M-1", b"\xa1x\xc6\xff\xff\xff\xff"),
    "an extension that says 2^32 - 1 bytes": ("M-14 M-1", b"\xa1x\xc9\xff\xff\xff\xff\x05"),
    "a list that says 65535 items": ("M-15 M-1", b"\xa1x\xdc\xff\xff"),
    "a string one byte longer than the map": ("M-1", b"\xa1x\xa2y"),
}


def drafts() -> Cases:
    """Return the cases."""
    return [*_malformed(), *_limits(), *_forms(), *_unknown_keys(), *_reflection()]


def _ping(extra: bytes, items: int = 1) -> bytes:
    """Return a PING whose map holds its field and ``items`` more, already packed."""
    return raw_frame(FrameType.PING, bytes([0x81 + items]) + DATA + extra)


def _malformed() -> Cases:
    whole = {
        "nil": b"\xc0",
        "an integer": b"\x05",
        "a string": b"\xa4data",
        "a list": b"\x91\xa1x",
        "an empty list": b"\x90",
        "a bin": b"\xc4\x03abc",
        "a boolean": b"\xc3",
        "a float": b"\xcb" + bytes(8),
        "an extension": b"\xd4\x05x",
        "the reserved byte 0xC1": b"\xc1",
        "a list of pairs": b"\x91\x92" + DATA,
    }
    cases: Cases = []
    for title, meta in whole.items():
        data = raw_frame(FrameType.PING, meta)
        cases.append(Draft("M-1", f"{title} instead of the map", refused(data, E.DECODE)))
    for title, meta in {
        "nil": b"\xc0", "a list": b"\x91\xa1x", "0xC1": b"\xc1", "an integer": b"\x05", "nothing": b"",
    }.items():  # fmt: skip
        data = raw_frame(FrameType.HELLO, meta)
        cases.append(
            Draft("M-1 H-1", f"HELLO with {title} instead of the map", refused_at_start(data, E.DECODE))
        )
    full = b"\x81" + DATA
    for cut in (1, 2, 5, 6, 7, len(full) - 1):
        data = raw_frame(FrameType.PING, full[:cut])
        cases.append(Draft("M-1", f"the map cut after {cut} of {len(full)} bytes", refused(data, E.DECODE)))
    for title, extra in (("nil", b"\xc0"), ("a second map", b"\x80"), ("0xC1", b"\xc1"), ("a zero", b"\0")):
        data = raw_frame(FrameType.PING, full + extra)
        cases.append(Draft("M-10", f"{title} after the map", refused(data, E.DECODE)))
    for title, (ids, extra) in _INSIDE.items():
        items = 2 if title in ("an unknown key twice", "the same key in two encodings") else 1
        cases.append(Draft(ids, title, refused(_ping(extra, items), E.DECODE)))
    return cases


def _nested(depth: int, opener: bytes) -> bytes:
    return b"\xa1x" + opener * (depth - 1) + b"\x01"


def _limits() -> Cases:
    lists, maps = b"\x91", b"\x81\xa1k"
    many = b"".join(b"\xa3%03d\x01" % number for number in range(64))

    def wide(items: int) -> bytes:
        return raw_frame(FrameType.PING, b"\xde" + struct.pack(">H", items + 1) + DATA + many[: 5 * items])

    def inner(items: int) -> bytes:
        return _ping(b"\xa1x\xde" + struct.pack(">H", items) + (many + b"\xa364z\x01")[: 5 * items])

    def long(items: int) -> bytes:
        return _ping(b"\xa1x\xdc" + struct.pack(">H", items) + b"\x01" * items)

    filler = b"\xa1x\xc5" + struct.pack(">H", 4096 - len(b"\x82" + DATA) - 5)
    full = _ping(filler + bytes(4096 - len(b"\x82" + DATA) - 5))
    return [
        Draft("M-2 L-1", "a map of 64 items", ignored(_as_pong(wide(63)))),
        Draft("M-2 L-1", "a map of 65 items", refused(wide(64), E.DECODE)),
        Draft("M-2 L-1", "an inner map of 64 items", ignored(_as_pong(inner(64)))),
        Draft("M-2 L-1", "an inner map of 65 items", refused(inner(65), E.DECODE)),
        Draft("M-15 L-1", "a list of 1024 items", ignored(_as_pong(long(1024)))),
        Draft("M-15 L-1", "a list of 1025 items", refused(long(1025), E.DECODE)),
        Draft("M-16 L-1", "lists nested 4 deep", ignored(_as_pong(_ping(_nested(4, lists))))),
        Draft("M-16 L-1", "lists nested 5 deep", refused(_ping(_nested(5, lists)), E.DECODE)),
        Draft("M-16 L-1", "maps nested 4 deep", ignored(_as_pong(_ping(_nested(4, maps))))),
        Draft("M-16 L-1", "maps nested 5 deep", refused(_ping(_nested(5, maps)), E.DECODE)),
        Draft("M-16", "lists nested 1000 deep", refused(_ping(_nested(1000, lists)), E.DECODE)),
        Draft("M-16", "lists nested 4000 deep", refused(_ping(_nested(4000, lists)), E.DECODE)),
        Draft("M-16", "empty lists nested 5 deep", refused(_ping(b"\xa1x\x91\x91\x91\x90"), E.DECODE)),
        Draft("M-1 L-1", "a map of 4096 bytes", ignored(_as_pong(full))),
    ]


def _as_pong(ping: bytes) -> bytes:
    """Return the same map in a PONG, which nobody asked for and which is ignored."""
    return raw_frame(FrameType.PONG, ping[32:])


def _forms() -> Cases:
    """The same value in each of its msgpack forms."""
    nonce = bytes(range(16))
    lengths = {"bin 8": b"\xc4\x10", "bin 16": b"\xc5\x00\x10", "bin 32": b"\xc6\x00\x00\x00\x10"}
    ones = {
        "fixint": b"\x01",
        "uint 8": b"\xcc\x01",
        "uint 16": b"\xcd\x00\x01",
        "uint 32": b"\xce\x00\x00\x00\x01",
        "uint 64": b"\xcf" + bytes(7) + b"\x01",
        "int 8": b"\xd0\x01",
        "int 16": b"\xd1\x00\x01",
        "int 32": b"\xd2\x00\x00\x00\x01",
        "int 64": b"\xd3" + bytes(7) + b"\x01",
    }
    texts = {"str 8": b"\xd9\x01", "str 16": b"\xda\x00\x01", "str 32": b"\xdb\x00\x00\x00\x01"}
    lists = {"fixarray": b"\x90", "array 16": b"\xdc\x00\x00", "array 32": b"\xdd\x00\x00\x00\x00"}
    maps = {"fixmap": b"\x86", "map 16": b"\xde\x00\x06", "map 32": b"\xdf\x00\x00\x00\x06"}
    cases: Cases = []
    for title, form in lengths.items():
        cases.append(Draft("M-19", f"a nonce as {title}", _hello(nonce=form + nonce)))
    for title, form in ones.items():
        cases.append(Draft("M-19 M-20", f"version 1 as {title}", _hello(one=form)))
    for title, form in texts.items():
        cases.append(Draft("M-19", f"the agent as {title}", _hello(agent=form + b"x")))
        cases.append(Draft("M-19", f"a key as {title}", ignored(_as_pong(_ping(form + b"x\x01")))))
    for title, form in lists.items():
        cases.append(Draft("M-19", f"the capabilities as {title}", _hello(caps=form)))
    for title, form in maps.items():
        cases.append(Draft("M-19", f"the map as {title}", _hello(head=form)))
    cases.append(Draft("M-18", "the keys in reverse order", _hello(reverse=True)))
    return cases


def _hello(
    *,
    nonce: bytes = b"\xc4\x10" + bytes(16),
    one: bytes = b"\x01",
    agent: bytes = b"\xa0",
    caps: bytes = b"\x90",
    head: bytes = b"\x86",
    reverse: bool = False,
) -> Run[Lab]:
    """Make a handshake whose HELLO is packed by hand, and see it succeed."""

    async def run(lab: Lab) -> None:
        tenant: bytes = msgpack.packb(lab.target.tenants[0][0])
        items = [
            b"\xabmin_version" + one,
            b"\xabmax_version" + one,
            b"\xa6tenant" + tenant,
            b"\xa5nonce" + nonce,
            b"\xa4caps" + caps,
            b"\xa5agent" + agent,
        ]
        hello = head + b"".join(reversed(items) if reverse else items)
        peer = await lab.connect()
        await lab.challenged(peer, hello)
        await lab.prove(peer, hello, peer.body)
        await peer.alive()

    return run


def _unknown_keys() -> Cases:
    values = {
        "an integer": b"\x01",
        "nil": b"\xc0",
        "a float": b"\xca" + bytes(4),
        "NaN": b"\xcb\x7f\xf8" + bytes(6),
        "a list": b"\x93\x01\xc0\xa1x",
        "a map": b"\x81\xa1x\x90",
        "bytes": b"\xc4\x02ab",
        "the largest integer": b"\xcf" + b"\xff" * 8,
        "an empty string": b"\xa0",
    }
    cases: Cases = []
    for title, value in values.items():
        cases.append(
            Draft(
                "V-2", f"an unknown key that holds {title}", ignored(_as_pong(_ping(b"\xa7unknown" + value)))
            )
        )
    keys = {
        "unknown": "V-2",
        "": "V-2",
        "x!": "V-2",
        "Data": "V-2",
        " data": "V-2",
        "ключ": "V-2",
        "x" * 300: "V-2",
    }
    keys |= {"stream": "M-17", "seq": "M-17", "payload": "M-17"}
    for key, ids in keys.items():
        packed: bytes = msgpack.packb(key) + b"\x01"
        cases.append(Draft(ids, f"the key {key[:12]!r}", ignored(_as_pong(_ping(packed)))))
    for key in ("!", "!x", "!data", "!unknown", "!" + "x" * 300):
        packed = msgpack.packb(key) + b"\xc0"
        cases.append(Draft("V-8", f"the key {key[:12]!r}", refused(_ping(packed), E.UNSUPPORTED)))
    inner = b"\xa1x\x81\xa2!y\x01"
    cases.append(Draft("V-8 V-2", "a critical key inside an unknown one", ignored(_as_pong(_ping(inner)))))
    return cases


def _reflection() -> Cases:
    """What a device sends does not come back in the text of a refusal."""

    def run(data: bytes, *codes: ErrorCode, start: bool = False) -> Run[Lab]:
        async def work(lab: Lab) -> None:
            peer = await (lab.connect() if start else lab.open())
            await peer.send(data)
            refusal = await peer.refused(*codes)
            if CANARY in refusal.text:
                raise Deviation("expected a text without anything of ours; the refusal repeats it")

        return work

    canary = CANARY.encode()
    text = bytes([0xA0 + len(canary)]) + canary
    critical = bytes([0xA1 + len(canary)]) + b"!" + canary + b"\x01"
    wrong: bytes = msgpack.packb({"data": CANARY})
    hello: bytes = msgpack.packb(
        {"min_version": CANARY, "max_version": 1, "tenant": CANARY, "nonce": bytes(16)}
    )
    unknown: bytes = msgpack.packb({"spec": {CANARY: 1}, "session": CANARY})
    return [
        Draft("M-7", "a critical key is not repeated", run(_ping(critical), E.UNSUPPORTED)),
        Draft("M-7", "a duplicate key is not repeated", run(_ping(2 * (text + b"\x01"), 2), E.DECODE)),
        Draft("M-7", "a wrong value is not repeated", run(raw_frame(0x30, wrong), E.SCHEMA_MISMATCH)),
        Draft("M-7", "malformed text is not repeated", run(_ping(text + b"\xc1"), E.DECODE)),
        Draft(
            "M-7", "a wrong HELLO is not repeated", run(raw_frame(0x01, hello), E.SCHEMA_MISMATCH, start=True)
        ),
        Draft(
            "M-7", "a wrong OPEN is not repeated", run(raw_frame(0x06, unknown, stream=1), E.SCHEMA_MISMATCH)
        ),
    ]
