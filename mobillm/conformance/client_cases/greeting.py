"""The handshake as a client sees it: what it sends, and CHALLENGE, WELCOME and REJECT of all kinds."""

from __future__ import annotations

import functools
from typing import Any

from ...errors import ErrorCode
from ...protocol import FrameType
from ..case import Deviation, Draft, Run
from ..host import Host
from ..visit import Visit
from ..wire import frame, raw_frame
from .moments import Cases, Moment, auth, carries_on, gives_up, hello, refuses

__all__ = ["drafts"]

E = ErrorCode
T = FrameType

_CHALLENGES: list[tuple[str, str, dict[str, Any], ErrorCode]] = [
    ("H-15", "version 2", {"version": 2}, E.UNSUPPORTED_VERSION),
    ("H-15", "version 255", {"version": 255}, E.UNSUPPORTED_VERSION),
    ("H-16", "a capability that was not offered", {"caps": ["conformance-x"]}, E.UNSUPPORTED_VERSION),
    ("D-7 M-4", "no version", {"version": ...}, E.DECODE),
    ("D-7", "version 0", {"version": 0}, E.SCHEMA_MISMATCH),
    ("D-7", "version 256", {"version": 256}, E.SCHEMA_MISMATCH),
    ("D-7 M-20", "version 1.0", {"version": 1.0}, E.SCHEMA_MISMATCH),
    ("D-7 M-20", "version true", {"version": True}, E.SCHEMA_MISMATCH),
    ("D-7 M-25", "version nil", {"version": None}, E.SCHEMA_MISMATCH),
    ("D-8 M-4", "no nonce", {"nonce": ...}, E.DECODE),
    ("D-8", "a nonce of 15 bytes", {"nonce": bytes(15)}, E.SCHEMA_MISMATCH),
    ("D-8", "a nonce of 17 bytes", {"nonce": bytes(17)}, E.SCHEMA_MISMATCH),
    ("D-8 M-24", "a nonce that is a text", {"nonce": "x" * 16}, E.SCHEMA_MISMATCH),
    ("D-9", "capabilities nil", {"caps": None}, E.SCHEMA_MISMATCH),
    ("D-9", "a capability of 33 characters", {"caps": ["x" * 33]}, E.SCHEMA_MISMATCH),
    ("D-9", "65 capabilities", {"caps": ["x"] * 65}, E.SCHEMA_MISMATCH),
    ("V-8", "a critical key", {"!new": 1}, E.UNSUPPORTED),
]

_WELCOMES: list[tuple[str, str, dict[str, Any], ErrorCode]] = [
    ("A-6", "a proof of zeros", {"mac": bytes(32)}, E.AUTH_FAILED),
    ("D-11 M-4", "no proof", {"mac": ...}, E.DECODE),
    ("D-11", "a proof of 31 bytes", {"mac": bytes(31)}, E.SCHEMA_MISMATCH),
    ("D-12 M-4", "no frame", {"frame": ...}, E.DECODE),
    ("D-12", "frame 16383", {"frame": 16383}, E.SCHEMA_MISMATCH),
    ("D-12", "frame 4194305", {"frame": 4194305}, E.SCHEMA_MISMATCH),
    ("D-13 M-4", "no batch", {"batch": ...}, E.DECODE),
    ("D-13", "batch 16383", {"batch": 16383}, E.SCHEMA_MISMATCH),
    ("D-13", "batch 2^48 + 1", {"batch": 2**48 + 1}, E.SCHEMA_MISMATCH),
    ("D-14 M-4", "no blob", {"blob": ...}, E.DECODE),
    ("D-14", "blob 16383", {"blob": 16383}, E.SCHEMA_MISMATCH),
    ("D-15 M-4", "no streams", {"streams": ...}, E.DECODE),
    ("D-15", "streams 0", {"streams": 0}, E.SCHEMA_MISMATCH),
    ("D-15", "streams 65536", {"streams": 65536}, E.SCHEMA_MISMATCH),
    ("V-8", "a critical key", {"!new": 1}, E.UNSUPPORTED),
]


def drafts() -> Cases:
    """Return the cases."""
    return [*_plain(), *_fields(), *_proofs(), *_refused(), *_limits()]


def _plain() -> Cases:
    return [
        Draft("H-1 A-2 A-3 A-10", "a whole session", _session),
        Draft("H-3 H-12 Y-4", "HELLO has a fresh nonce and no token", _hello),
        Draft("V-2", "CHALLENGE with unknown keys", _challenged(grease=[1], x=None)),
        Draft("M-6 D-9", "CHALLENGE without capabilities", _challenged(caps=...)),
        Draft("V-2", "WELCOME with unknown keys", _welcomed(grease={"a": 1}, x=None)),
        Draft("V-3", "an optional frame before CHALLENGE", carries_on(hello, _optional)),
        Draft("V-3", "an optional frame before WELCOME", carries_on(auth, _optional)),
    ]


async def _session(visit: Visit) -> None:
    host = await Host.meet(visit)
    await host.shake()
    await host.serve()
    await visit.succeeds()
    if len(host.batches) < 2:
        raise Deviation(f"expected at least two batches; the client sent {len(host.batches)}")


async def _hello(visit: Visit) -> None:
    host = await Host.meet(visit)
    assert host.hello is not None
    if len(set(host.hello.nonce)) < 4:
        raise Deviation(f"expected a random nonce; got {host.hello.nonce.hex()}")
    if not host.hello.min_version <= 1 <= host.hello.max_version:
        raise Deviation("expected version 1 among those that HELLO offers; it is not")
    await host.shake()
    await host.serve()
    await visit.succeeds()


def _challenged(**changes: Any) -> Run[Visit]:
    async def run(visit: Visit) -> None:
        host = await Host.meet(visit)
        await host.challenge(**changes)
        await host.authenticated()
        await host.welcome()
        await host.serve()
        await visit.succeeds()

    return run


def _welcomed(**changes: Any) -> Run[Visit]:
    async def run(visit: Visit) -> None:
        host = await Host.meet(visit)
        await host.challenge()
        await host.authenticated()
        await host.welcome(**changes)
        await host.serve()
        await visit.succeeds()

    return run


async def _optional(host: Host) -> None:
    await host.peer.send(raw_frame(0x8A, b"\xc1"), raw_frame(0xBF, b"", stream=9))


def _fields() -> Cases:
    cases: Cases = []
    for ids, title, changes, code in _CHALLENGES:
        act = functools.partial(Host.challenge, **changes)
        cases.append(Draft(ids, f"CHALLENGE with {title}", refuses(hello, act, code)))
    for ids, title, changes, code in _WELCOMES:
        act = functools.partial(_wrong_welcome, changes)
        cases.append(Draft(ids, f"WELCOME with {title}", refuses(auth, act, code)))
    return cases


async def _wrong_welcome(changes: dict[str, Any], host: Host) -> None:
    values = {
        "mac": host.proof(),
        "frame": 1 << 20,
        "batch": 1 << 20,
        "blob": 1 << 20,
        "streams": 8,
    } | changes
    values = {name: value for name, value in values.items() if value is not ...}
    await host.peer.send(frame(T.WELCOME, values))


def _proofs() -> Cases:
    async def own(host: Host) -> None:
        await _wrong_welcome({"mac": host.proof(device=True)}, host)

    async def other(host: Host) -> None:
        await _wrong_welcome({"mac": host.proof(key=b"k" * 32)}, host)

    async def changed(host: Host) -> None:
        mac = host.proof()
        await _wrong_welcome({"mac": mac[:-1] + bytes([mac[-1] ^ 1])}, host)

    return [
        Draft("A-6 A-10", "WELCOME with the client's own proof", refuses(auth, own, E.AUTH_FAILED)),
        Draft("A-6 A-10", "WELCOME with the proof of another token", refuses(auth, other, E.AUTH_FAILED)),
        Draft("A-6 A-10", "WELCOME with one bit of its proof changed", refuses(auth, changed, E.AUTH_FAILED)),
        Draft("A-7 A-6", "WELCOME for a CHALLENGE that was changed on the way", _tampered),
    ]


async def _tampered(visit: Visit) -> None:
    """The client signs the CHALLENGE it got; a server that sent another one cannot make its proof."""
    host = await Host.meet(visit)
    await host.challenge(grease=1)
    await host.authenticated()
    host._challenge = host._challenge[:-1] + b"\x02"
    await _wrong_welcome({}, host)
    await host.peer.refused(E.AUTH_FAILED)
    await visit.fails()


def _refused() -> Cases:
    cases: Cases = []
    at: dict[str, Moment] = {"HELLO": hello, "AUTH": auth}
    for name, moment in at.items():
        for code, retry in (
            (E.AUTH_FAILED, None),
            (E.SERVER_BUSY, 5.0),
            (E.UNSUPPORTED_VERSION, None),
            (4000, 0.5),
        ):
            for kind in (T.REJECT, T.ERROR):
                values = {"code": int(code), "text": "no", "retry_after": retry}
                act = functools.partial(_send, frame(kind, values))
                title = f"{kind.name} with code {int(code)} after {name}"
                cases.append(Draft("H-10 E-7", title, gives_up(moment, act)))
    bare = functools.partial(_send, frame(T.REJECT, {"code": 25}))
    return [*cases, Draft("H-10 M-6", "REJECT with its code only", gives_up(hello, bare))]


async def _send(data: bytes, host: Host) -> None:
    await host.peer.send(data)


def _limits() -> Cases:
    cases: Cases = []
    tight = {"frame": 16384, "batch": 16384, "blob": 16384, "streams": 1}
    for title, limits in {
        "the smallest limits": tight,
        "the largest limits": {"frame": 4194304, "batch": 1 << 40, "blob": 1 << 40, "streams": 65535},
    }.items():
        cases.append(Draft("H-17 H-6", title, functools.partial(_limited, limits)))
    big = raw_frame(T.CHALLENGE, b"", body_size=4097, meta_size=4096)
    act = functools.partial(_send, big)
    cases.append(Draft("H-11 F-22", "CHALLENGE of 4097 bytes", refuses(hello, act, E.FRAME_SIZE)))
    big = raw_frame(T.WELCOME, b"", body_size=4097, meta_size=4096)
    cases.append(
        Draft(
            "H-11 F-22", "WELCOME of 4097 bytes", refuses(auth, functools.partial(_send, big), E.FRAME_SIZE)
        )
    )
    return cases


async def _limited(limits: dict[str, int], visit: Visit) -> None:
    host = await Host.meet(visit)
    await host.shake(**limits)
    await host.serve()
    await visit.succeeds()
