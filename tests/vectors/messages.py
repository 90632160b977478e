"""Vectors of single frames: each message at both ends of its fields' ranges, and every refusal."""

from __future__ import annotations

import struct

import msgpack

from tests.vectors.wire import Case, as_json, frame, message, payload_types, types

__all__ = ["frames", "header_refusals", "map_refusals"]

INT32, SEQ, SIZE = 2**32 - 1, 2**63 - 1, 2**48
ONES, ZEROS = b"\xff", b"\0"
WIDE = "\U0001f600"  # one code point, four bytes of UTF-8
DIGEST = bytes(range(32))

# Name, direction, fields at their least and at their most. Defaults are written out, nil is not.
MESSAGES: list[tuple[str, str, Case, Case]] = [
    (
        "HELLO", "device",
        {"min_version": 1, "max_version": 1, "tenant": "", "nonce": ZEROS * 16, "caps": [], "agent": ""},
        {"min_version": 255, "max_version": 255, "tenant": WIDE * 64, "nonce": ONES * 16,
         "caps": ["c" * 32] * 64, "agent": WIDE * 64},
    ),
    (
        "CHALLENGE", "server",
        {"version": 1, "nonce": ZEROS * 16, "caps": []},
        {"version": 255, "nonce": ONES * 16, "caps": ["c" * 32] * 64},
    ),
    ("AUTH", "device", {"mac": ZEROS * 32}, {"mac": ONES * 32}),
    (
        "WELCOME", "server",
        {"mac": ZEROS * 32, "frame": 16384, "batch": 16384, "blob": 16384, "streams": 1},
        {"mac": ONES * 32, "frame": 2**22, "batch": SIZE, "blob": SIZE, "streams": 65535},
    ),
    (
        "REJECT", "server", {"code": 0, "text": ""},
        {"code": INT32, "text": WIDE * 512, "retry_after": 86400.0},
    ),
    (
        "OPEN", "device", {"session": ZEROS * 16},
        {"spec": {"k" * 64: [{"deep": True}], "f": 0.5, "n": None}},
    ),
    (
        "OPENED", "server",
        {"session": ZEROS * 16, "epoch": 1, "received": 0, "durable": 0, "applied": 0, "missing": [],
         "finished": False},
        {"session": ONES * 16, "epoch": INT32, "received": SEQ, "durable": SEQ, "applied": SEQ,
         "missing": [DIGEST] * 64, "finished": True},
    ),
    (
        "BLOB", "device", {"digest": ZEROS * 32, "total": 1, "offset": 0},
        {"digest": ONES * 32, "total": SIZE, "offset": SIZE - 300},
    ),
    ("STORED", "server", {"digest": ZEROS * 32}, {"digest": ONES * 32}),
    ("FINISH", "device", {}, {}),
    ("FINISHED", "server", {"steps": 0}, {"steps": SEQ, "loss": -1.7976931348623157e308}),
    ("EVAL", "device", {}, {}),
    (
        "EVALUATED", "server", {"steps": 0, "samples": 0, "values": {}},
        {"steps": SEQ, "samples": INT32, "values": {"k" * 64: 5e-324, "accuracy": -0.0}},
    ),
    ("PULL", "device", {}, {}),
    (
        "WEIGHTS", "server", {"digest": ZEROS * 32, "total": 1, "offset": 0, "steps": 0},
        {"digest": ONES * 32, "total": SIZE, "offset": SIZE - 300, "steps": SEQ},
    ),
    (
        "DATA", "device", {"tensor": 0, "offset": 0, "format": 0, "block": 0, "shape": [1]},
        {"tensor": 1001, "offset": 0, "format": 36, "block": 128, "shape": [2**31 - 1] * 8},
    ),
    (
        "COMMIT", "device", {"tensors": 1, "size": 1, "checksum": 0, "samples": 1, "heldout": False},
        {"tensors": 1002, "size": SIZE, "checksum": INT32, "samples": 2**31 - 1, "heldout": True},
    ),
    ("ABORT", "device", {"text": ""}, {"text": WIDE * 512}),
    ("DETACH", "both", {}, {}),
    (
        "ACK", "server", {"received": 0, "durable": 0, "applied": 0},
        {"received": SEQ, "durable": SEQ, "applied": SEQ},
    ),
    ("CREDIT", "server", {"offset": 0, "last": 0}, {"offset": SIZE, "last": SEQ}),
    ("GAP", "server", {"expected": 0}, {"expected": SEQ}),
    (
        "METRICS", "server", {"step": 0, "epoch": 0, "lr": 0.0, "queue": 0, "busy": 0.0, "spans": []},
        {"step": SEQ, "epoch": INT32, "loss": 1.7976931348623157e308, "lr": 1e6, "queue": INT32,
         "busy": 1.7976931348623157e308, "spans": [[2, SEQ, SEQ, SEQ]] * 64},
    ),
    ("PING", "both", {"data": ZEROS * 8}, {"data": ONES * 8}),
    ("PONG", "both", {"data": ZEROS * 8}, {"data": ONES * 8, "time": SEQ}),
    (
        "ERROR", "both", {"code": 0, "text": ""}, {"code": INT32, "text": WIDE * 512, "retry_after": 86400.0},
    ),
    (
        "GOAWAY", "server", {"code": 0, "text": "", "grace": 0.0},
        {"code": INT32, "text": WIDE * 512, "grace": 86400.0},
    ),
    ("BYE", "both", {}, {}),
]  # fmt: skip
ON_STREAM_0 = ("HELLO", "CHALLENGE", "AUTH", "WELCOME", "REJECT", "PING", "PONG", "GOAWAY", "BYE")
WITH_SEQ = {"DATA": 1, "COMMIT": 1, "ABORT": 1, "FINISH": 0, "GAP": 0, "ERROR": 0}


def _case(
    name: str,
    words: str,
    direction: str,
    kind: str,
    fields: Case,
    payload: bytes | None,
    stream: int,
    seq: int,
) -> Case:
    return {
        "name": name,
        "rules": ["F-1", "F-10", "M-3", *(["F-2", "F-13"] if payload is not None else [])],
        "words": words,
        "direction": direction,
        "encode": True,
        "type": kind,
        "stream": stream,
        "seq": seq,
        "fields": as_json(fields),
        "payload": None if payload is None else payload.hex(),
        "bytes": message(kind, fields, payload, stream=stream, seq=seq).hex(),
    }


def frames() -> list[Case]:
    """Return each message at both ends of the ranges of its fields, and forms that only a reader meets."""
    cases = []
    for kind, direction, least, most in MESSAGES:
        for size, fields in (("least", least), ("most", most)):
            high = size == "most"
            stream = 0 if kind in ON_STREAM_0 or (kind == "ERROR" and not high) else (65535 if high else 1)
            seq = 0 if kind not in WITH_SEQ else (SEQ if high else WITH_SEQ[kind])
            payload = (bytes(range(256)) + b"x" * 44 if high else b"\0") if kind in payload_types else None
            words = f"{kind} with every field at its {size}"
            cases.append(
                _case(f"{kind.lower()}-{size}", words, direction, kind, fields, payload, stream, seq)
            )
    later = {"tensor": 3, "offset": SIZE - 1}
    cases.append(_case("data-later-part", "DATA without a header", "device", "DATA", later, b"\x07", 2, 9))
    equalized = {"tensor": 999, "offset": 0, "format": 19, "block": 32, "shape": [1, 1], "equalizer": INT32}
    words = "DATA of an equalized tap"
    cases.append(_case("data-equalized", words, "device", "DATA", equalized, bytes(5), 1, 1))
    frame_of = {**equalized, "shape": [64, 1], "zstd": SIZE}
    words = "DATA of a compressed tap"
    cases.append(_case("data-compressed", words, "device", "DATA", frame_of, bytes(5), 1, 1))
    factors = {"tensor": 2999, "offset": 0, "format": 1, "block": 0, "shape": [2]}
    words = "DATA of the last equalizer"
    cases.append(_case("data-equalizer", words, "device", "DATA", factors, bytes.fromhex("003c0040"), 1, 1))
    many = {"tensors": 2002, "size": 1, "checksum": 0, "samples": 1, "heldout": False}
    cases.append(_case("commit-equalizers", "COMMIT of all tensors", "device", "COMMIT", many, None, 1, 1))
    return cases + _reader_frames()


def _reader_frames() -> list[Case]:
    """Return forms of one PING and of one ERROR that a reader has to accept."""
    data = bytes(range(8))
    ping: Case = {"type": "PING", "fields": as_json({"data": data})}
    error: Case = {"type": "ERROR", "fields": {"code": 1, "text": "", "retry_after": None}}
    key = b"\xa4data"
    forms: list[tuple[str, str, str, Case, bytes]] = [
        ("bin-16", "M-19", "a bin of 8 bytes in a longer form", ping,
         frame(0x30, b"\x81" + key + b"\xc5\x00\x08" + data)),
        ("map-32", "M-19", "a map of one item in the longest form", ping,
         frame(0x30, b"\xdf\x00\x00\x00\x01" + key + b"\xc4\x08" + data)),
        ("str-32-key", "M-19", "a key in the longest form", ping,
         frame(0x30, b"\x81\xdb\x00\x00\x00\x04data\xc4\x08" + data)),
        ("int-64", "M-19", "the integer 1 in 64 bits", error,
         frame(0x40, b"\x81\xa4code\xcf" + (1).to_bytes(8, "big"))),
        ("signed-64", "M-19", "the integer 1 in 64 signed bits", error,
         frame(0x40, b"\x81\xa4code\xd3" + (1).to_bytes(8, "big"))),
        ("float-32", "M-21", "a number as float 32",
         {"type": "ERROR", "fields": {"code": 1, "text": "", "retry_after": 1.5}},
         frame(0x40, b"\x82\xa4code\x01\xabretry_after\xca" + struct.pack(">f", 1.5))),
        ("number-as-integer", "M-21", "a number as an integer",
         {"type": "ERROR", "fields": {"code": 1, "text": "", "retry_after": 2.0}},
         frame(0x40, b"\x82\xa4code\x01\xabretry_after\x02")),
        ("nil", "M-25", "an optional field that is nil", error,
         frame(0x40, b"\x82\xa4code\x01\xabretry_after\xc0")),
        ("default-left-out", "M-6", "fields at their defaults that are left out", error,
         frame(0x40, b"\x81\xa4code\x01")),
        ("key-order", "M-18", "keys in another order",
         {"type": "ACK", "stream": 1, "fields": {"received": 3, "durable": 2, "applied": 1}},
         frame(0x20, msgpack.packb({"applied": 1, "received": 3, "durable": 2}), stream=1)),
        ("unknown-key", "V-2", "a key that nobody knows", ping,
         frame(0x30, msgpack.packb({"grease": {"a": [None, 1.5]}, "data": data}))),
        ("outside-keys", "M-17", "keys with the names of what is outside the map", ping,
         frame(0x30, msgpack.packb({"stream": 9, "seq": 9, "payload": b"x", "data": data}))),
        ("optional-flags", "F-27", "all optional flags set", ping,
         frame(0x30, msgpack.packb({"data": data}), flags=0xFF00)),
        ("seq-without-batch", "F-28", "a seq where no batch is concerned", ping,
         frame(0x30, msgpack.packb({"data": data}), seq=77)),
        ("after-unknown-optional", "V-3", "an unknown optional frame before it", ping,
         frame(0x80, b"\xc1 not msgpack", stream=500, seq=5) + frame(0x30, msgpack.packb({"data": data}))),
        ("after-last-optional", "V-3", "the last optional type before it", ping,
         frame(0xBF, b"") + frame(0x30, msgpack.packb({"data": data}))),
    ]  # fmt: skip
    return [
        {"name": f"reader-{name}", "rules": [rule], "words": words, "direction": "both", "encode": False,
         "stream": 0, "seq": 0, "payload": None, **expected, "bytes": data_.hex()}
        for name, rule, words, expected, data_ in forms
    ]  # fmt: skip


def header_refusals() -> list[Case]:
    """Return frames that are refused before their map is read; the limit of a body is 1 MiB."""
    ping = msgpack.packb({"data": bytes(8)})
    limit = 2**20
    at_header: list[tuple[str, str, str, int, bytes]] = [
        ("magic", "F-16", "an HTTP request", 1, b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"),
        ("magic-tls", "F-16", "a TLS record", 1, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)),
        ("magic-before-checksum", "F-5", "wrong magic and wrong checksum", 1,
         frame(0x30, ping, magic=b"LM", damage_header=1)),
        ("header-checksum", "F-17", "one bit of the header's checksum is wrong", 4,
         frame(0x30, ping, damage_header=1)),
        ("checksum-before-version", "F-5", "wrong checksum and wrong version", 4,
         frame(0x30, ping, version=2, damage_header=1 << 31)),
        ("version-0", "F-18", "version 0", 6, frame(0x30, ping, version=0)),
        ("version-2", "F-18", "version 2", 6, frame(0x30, ping, version=2)),
        ("version-before-reserved", "F-5", "version 2 and a reserved field", 6,
         frame(0x30, ping, version=2, reserved=1)),
        ("reserved", "F-19", "a reserved field of 0x8000", 1, frame(0x30, ping, reserved=0x8000)),
        *((f"flag-{bit}", "F-20", f"critical flag {bit}", 1, frame(0x30, ping, flags=1 << bit))
          for bit in range(8)),
        ("seq", "F-21", "a seq of 2^63", 1, frame(0x30, ping, seq=2**63)),
        ("body-limit", "F-22", "a body of one byte more than the limit", 2,
         frame(0x10, ping, stream=1, seq=1, body_size=limit + 1)),
        ("body-4-gib", "F-22", "a body of 4 GiB", 2, frame(0x10, ping, stream=1, seq=1, body_size=INT32)),
        ("body-before-map", "F-5", "body and map too long", 2,
         frame(0x30, ping, body_size=limit + 1, meta_size=65535)),
        ("map-limit", "F-23", "a map of 4097 bytes", 13, frame(0x30, ping, body_size=4097, meta_size=4097)),
        ("map-before-type", "F-5", "map too long and unknown type", 13,
         frame(0x7F, ping, body_size=4097, meta_size=4097)),
        ("type-0", "V-4", "type 0", 7, frame(0x00, ping)),
        ("type-7f", "F-24", "an unknown type below 0x80", 7, frame(0x7F, ping)),
        ("type-c0", "V-4", "an unknown critical type", 7, frame(0xC0, ping)),
        ("type-ff", "V-4", "the last critical type", 7, frame(0xFF, ping)),
        ("type-before-lengths", "F-5", "unknown type and lengths that do not fit", 7,
         frame(0x7F, ping, meta_size=4000)),
        ("map-beyond-body", "F-3", "a map that is longer than the body", 1, frame(0x30, ping, meta_size=17)),
        ("body-beyond-map", "F-14", "a body that goes on after the map of a PING", 1,
         frame(0x30, ping, body_size=17)),
        ("payload-missing", "F-3", "DATA without room for a bin header", 1,
         frame(0x10, ping[:1], stream=1, seq=1)),
        ("optional-too-long", "V-11", "an unknown optional frame of 4097 bytes", 2,
         frame(0x80, b"", body_size=4097)),
    ]  # fmt: skip
    head: list[tuple[str, str, str, int, bytes]] = [
        ("bin-8", "F-13", "a payload as bin 8", 12, frame(0x10, b"\x80", b"1234", marker=b"\xc4\0\0\0\x04")),
        ("bin-short-length", "F-4", "a bin header that says less than the frame's", 12,
         frame(0x10, b"\x80", b"1234", marker=b"\xc6\0\0\0\x03")),
        ("bin-4-gib", "F-4", "a bin header that says 4 GiB", 12,
         frame(0x10, b"\x80", b"1234", marker=b"\xc6\xff\xff\xff\xff")),
        ("bin-little-endian", "F-4", "a bin header with its length in the wrong order", 12,
         frame(0x10, b"\x80", b"1234", marker=b"\xc6\x04\0\0\0")),
    ]  # fmt: skip
    whole: list[tuple[str, str, str, int, bytes]] = [
        ("body-checksum", "F-25", "one bit of the body's checksum is wrong", 5,
         frame(0x30, ping, damage_body=1)),
        ("body-checksum-payload", "F-6", "the checksum of the map alone", 5,
         frame(0x10, b"\x80", b"1234", stream=1, seq=1, damage_body=0x5A5A5A5A)),
        ("optional-checksum", "V-10", "a skipped frame whose body checksum is wrong", 5,
         frame(0x80, b"abc", damage_body=1)),
        ("checksum-before-map", "F-25", "a malformed map and a wrong checksum", 5,
         frame(0x30, b"\xc1", damage_body=1)),
    ]  # fmt: skip
    return [
        {"name": name, "rules": [rule], "words": words, "limit": limit, "refused_after": after, "code": code,
         "bytes": data.hex()}
        for after, group in (("header", at_header), ("bin header", head), ("body", whole))
        for name, rule, words, code, data in group
    ]  # fmt: skip


def map_refusals() -> list[Case]:
    """Return frames that are right but for their map."""
    data = b"\xa4data\xc4\x08" + bytes(8)

    def ping(meta: bytes) -> bytes:
        return frame(types["PING"], meta)

    deep: object = 1
    for _ in range(4):
        deep = [deep]
    items = {f"k{index}": index for index in range(64)}
    cases: list[tuple[str, str, str, int, bytes]] = [
        ("no-map", "M-1", "no bytes at all", 12, ping(b"")),
        ("list", "M-1", "a list in the place of the map", 12, ping(b"\x90")),
        ("nil-map", "M-1", "nil in the place of the map", 12, ping(b"\xc0")),
        ("truncated", "M-1", "a map that ends in a value", 12, ping(b"\x81" + data[:-1])),
        ("reserved-byte", "M-1", "the byte 0xC1", 12, ping(b"\x82" + data + b"\xa1x\xc1")),
        ("huge-map", "M-1", "a map header that announces 2^32 - 1 items", 12, ping(b"\xdf\xff\xff\xff\xff")),
        ("huge-list", "M-1", "a list header that announces 2^32 - 1 items", 12,
         ping(b"\x82" + data + b"\xa1x\xdd\xff\xff\xff\xff")),
        ("trailing", "M-10", "a byte after the map", 12, ping(b"\x81" + data + b"\xc0")),
        ("duplicate", "M-11", "a key twice", 12, ping(b"\x82" + data + data)),
        ("duplicate-inside", "M-11", "a key twice in an unknown field", 12,
         ping(b"\x82" + data + b"\xa1x\x82\xa1a\x01\xa1a\x02")),
        ("integer-key", "M-12", "a key that is an integer", 12, ping(b"\x82" + data + b"\x01\x02")),
        ("bytes-key", "M-12", "a key that is a bin", 12, ping(b"\x82" + data + b"\xc4\x01a\x02")),
        ("integer-key-inside", "M-12", "an integer key in an unknown field", 12,
         ping(b"\x82" + data + b"\xa1x\x81\x01\x02")),
        ("utf-8-key", "M-13", "a key that is no UTF-8", 12, ping(b"\x82" + data + b"\xa2\xff\xfe\x01")),
        ("utf-8-value", "M-13", "a text that is no UTF-8", 12, ping(b"\x82" + data + b"\xa1x\xa2\xc3\x28")),
        ("extension", "M-14", "an extension type", 12, ping(b"\x82" + data + b"\xa1x\xd4\x05\x00")),
        ("empty-extension", "M-14", "an empty extension type", 12,
         ping(b"\x82" + data + b"\xa1x\xc7\x00\x05")),
        ("timestamp", "M-14", "a timestamp", 12, ping(b"\x82" + data + b"\xa1x\xd6\xff\x00\x00\x00\x00")),
        ("65-items", "M-2", "a map of 65 items", 12, ping(msgpack.packb({"data": bytes(8), **items}))),
        ("1025-items", "M-15", "a list of 1025 items", 12,
         ping(msgpack.packb({"data": bytes(8), "x": [0] * 1025}))),
        ("depth-5", "M-16", "a list inside lists at depth 5", 12,
         ping(msgpack.packb({"data": bytes(8), "x": deep}))),
        ("missing", "M-4", "a required field that is missing", 12, ping(b"\x80")),
        ("critical-key", "V-8", "an unknown critical key", 7,
         ping(msgpack.packb({"data": bytes(8), "!x": None}))),
        ("wrong-type", "M-5", "text for bytes", 15, ping(msgpack.packb({"data": "12345678"}))),
        ("short-bytes", "M-24", "7 bytes for 8", 15, ping(msgpack.packb({"data": bytes(7)}))),
        ("bool-for-int", "M-20", "true for an integer", 15, message("ERROR", {"code": True})),
        ("float-for-int", "M-20", "1.0 for an integer", 15, message("ERROR", {"code": 1.0})),
        ("int-for-bool", "M-5", "0 for a boolean", 15, message(
            "COMMIT", {"tensors": 1, "size": 1, "checksum": 0, "samples": 1, "heldout": 0}, stream=1, seq=1)),
        ("nan", "M-22", "NaN for a number", 15, message("ERROR", {"code": 1, "retry_after": float("nan")})),
        ("infinity", "M-22", "an infinity for a number", 15,
         message("FINISHED", {"steps": 1, "loss": float("-inf")}, stream=1)),
        ("nil", "M-25", "nil for a required field", 15, message("ERROR", {"code": None})),
        ("nil-default", "M-25", "nil for a field whose default is not nil", 15,
         message("ERROR", {"code": 1, "text": None})),
        ("long-text", "M-23", "a text of 513 code points", 15,
         message("ERROR", {"code": 1, "text": "x" * 513})),
        ("long-key", "M-8", "a key of 65 characters in the spec", 15,
         message("OPEN", {"spec": {"k" * 65: 1}}, stream=1)),
        ("versions", "H-4", "a lowest version above the highest", 15, message(
            "HELLO", {"min_version": 2, "max_version": 1, "tenant": "a", "nonce": bytes(16)})),
        ("open-neither", "O-12", "OPEN without spec and session", 15, message("OPEN", {}, stream=1)),
        ("open-both", "O-12", "OPEN with spec and session", 15,
         message("OPEN", {"spec": {}, "session": bytes(16)}, stream=1)),
        ("ack-order", "X-1", "applied above durable", 15,
         message("ACK", {"received": 2, "durable": 1, "applied": 2}, stream=1)),
        ("opened-order", "X-7", "durable above received", 15, message(
            "OPENED", {"session": bytes(16), "epoch": 1, "received": 1, "durable": 2}, stream=1)),
        ("data-empty", "B-8", "an empty payload", 15, _data(payload=b"")),
        ("data-seq-0", "B-1", "DATA of batch 0", 15, _data(seq=0)),
        ("data-tensor", "B-17", "tensor 1002", 15, _data(tensor=1002)),
        ("data-tensor-1999", "B-17", "tensor 1999", 15, _data(tensor=1999)),
        ("data-tensor-3000", "D-41", "tensor 3000", 15, _data(tensor=3000)),
        ("data-equalizer-plain", "B-39", "an equalizer for a format without blocks", 15, _data(equalizer=1)),
        ("data-equalizer-targets", "B-39", "targets that are equalized", 15,
         _data(tensor=1000, format=20, block=32, equalizer=1)),
        ("data-equalizer-late", "B-39", "an equalizer in a later part", 15,
         _data(offset=4, format=None, block=None, shape=None, equalizer=1)),
        ("data-equalizer-negative", "D-74", "a negative checksum", 15,
         _data(format=20, block=32, equalizer=-1)),
        ("data-zstd-targets", "Z-2", "compressed targets", 15, _data(tensor=1000, zstd=2)),
        ("data-zstd-equalizer", "Z-2", "a compressed equalizer", 15, _data(tensor=2000, zstd=2)),
        ("data-zstd-late", "Z-2", "zstd in a later part", 15,
         _data(offset=4, format=None, block=None, shape=None, zstd=2)),
        ("data-zstd-0", "D-75", "a frame of 0 bytes", 15, _data(zstd=0)),
        ("data-zstd-true", "D-75", "zstd as true", 15, _data(zstd=True)),
        ("data-no-header", "B-5", "a first part without header", 15,
         _data(shape=None, block=None, format=None)),
        ("data-half-header", "B-5", "a first part without shape", 15, _data(shape=None)),
        ("data-late-header", "B-21", "a later part with a header", 15, _data(offset=4)),
        ("data-format", "B-14", "an unknown format", 15, _data(format=99)),
        ("data-block", "B-14", "a block of 64 for a format without blocks", 15, _data(block=64)),
        ("data-block-96", "B-14", "a block of 96", 15, _data(format=20, block=96)),
        ("data-block-format", "B-14", "a block of 0 for a format with blocks", 15, _data(format=20)),
        ("data-rank", "D-45", "9 dimensions", 15, _data(shape=[1] * 9)),
        ("data-dimension", "D-45", "a dimension of 2^31", 15, _data(shape=[2**31])),
        ("blob-end", "W-7", "a part beyond the end of its blob", 15,
         message("BLOB", {"digest": DIGEST, "total": 4, "offset": 2}, b"123", stream=1)),
        ("weights-empty", "W-7", "an empty part of the weights", 15,
         message("WEIGHTS", {"digest": DIGEST, "total": 4, "offset": 0, "steps": 1}, b"", stream=1)),
    ]  # fmt: skip
    return [
        {"name": name, "rules": [rule], "words": words, "code": code, "bytes": content.hex()}
        for name, rule, words, code, content in cases
    ]


def _data(seq: int = 1, payload: bytes = bytes(4), **changes: object) -> bytes:
    fields: Case = {"tensor": 0, "offset": 0, "format": 3, "block": 0, "shape": [1], **changes}
    fields = {key: value for key, value in fields.items() if value is not None}
    return message("DATA", fields, payload, stream=1, seq=seq)
