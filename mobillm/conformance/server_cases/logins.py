"""Logins that must fail: wrong proofs, unknown tenants, and a handshake that was changed on the way.

A server may hold an address off for a while after failed logins, so each of these cases runs alone, and after
all the others.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from ...errors import ErrorCode
from ...protocol import Error, FrameType, Reject
from ..case import Deviation, Draft, NotApplicable, Run
from ..peer import Peer
from ..target import Lab
from ..wire import device_proof, frame, raw_frame, server_proof
from .stimuli import Cases

__all__ = ["drafts"]

E = ErrorCode
UNKNOWN = "conformance-nobody"


def drafts() -> Cases:
    """Return the cases."""
    cases = [*_proofs(), *_tenants(), *_transcripts()]
    return [dataclasses.replace(case, alone=True, seconds=40.0) for case in cases]


def _tenants() -> Cases:
    return [
        Draft("A-5 A-11", "an unknown tenant", _stranger(UNKNOWN)),
        Draft("D-3 M-23", "a tenant of 64 characters is unknown, not malformed", _stranger("ä" * 64)),
        Draft("D-3", "an empty tenant is unknown, not malformed", _stranger("")),
        Draft("A-5", "one tenant's token does not open another tenant", _crossed),
    ]


async def _crossed(lab: Lab) -> None:
    if len(lab.target.tenants) < 2:
        raise NotApplicable("the token file has one tenant; this case needs two")
    peer = await lab.connect()
    hello = lab.hello(0)
    await lab.challenged(peer, hello)
    await lab.sign(peer, hello, peer.body, 1)
    await peer.refused(E.AUTH_FAILED)


def _proofs() -> Cases:
    wrong: dict[str, Any] = {
        "zeros": lambda good: bytes(32),
        "one bit wrong": lambda good: bytes([good[0] ^ 1]) + good[1:],
        "the last bit wrong": lambda good: good[:-1] + bytes([good[-1] ^ 128]),
        "reversed": lambda good: good[::-1],
        "random": lambda good: os.urandom(32),
    }
    cases: Cases = [
        Draft("A-3 A-5 H-8", f"a proof that is {title}", _wrong_proof(change))
        for title, change in wrong.items()
    ]
    return [
        *cases,
        Draft("A-3", "the proof made with another token", _keyed(b"x" * 32)),
        Draft("A-11", "the proof made with a key of zeros", _keyed(bytes(32))),
        Draft("A-10 A-3", "the server's proof instead of the device's", _own_label),
        Draft("A-5", "an unknown tenant and a wrong token are refused alike", _refused_alike),
        Draft("A-12 H-12", "AUTH recorded on another connection", _replayed),
        Draft("A-5 H-8", "nothing more after a refused proof", _refused_is_over),
    ]


def _wrong_proof(change: Any) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.connect()
        hello = lab.hello()
        await lab.challenged(peer, hello)
        await _auth(peer, change(device_proof(lab.key(), hello, peer.body)))
        await peer.refused(E.AUTH_FAILED)

    return run


async def _auth(peer: Peer, mac: bytes) -> None:
    await peer.send(frame(FrameType.AUTH, {"mac": mac}))


def _keyed(key: bytes, **changes: Any) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.connect()
        hello = lab.hello(**changes)
        await lab.challenged(peer, hello)
        await _auth(peer, device_proof(key, hello, peer.body))
        await peer.refused(E.AUTH_FAILED)

    return run


def _stranger(tenant: str) -> Run[Lab]:
    return _keyed(bytes(32), tenant=tenant)


async def _own_label(lab: Lab) -> None:
    peer = await lab.connect()
    hello = lab.hello()
    await lab.challenged(peer, hello)
    await _auth(peer, server_proof(lab.key(), hello, peer.body))
    await peer.refused(E.AUTH_FAILED)


async def _refused_alike(lab: Lab) -> None:
    refusals: list[Error | Reject] = []
    for tenant in (lab.target.tenants[0][0], UNKNOWN):
        peer = await lab.connect()
        await lab.challenged(peer, lab.hello(tenant=tenant))
        await _auth(peer, bytes(32))
        refusals.append(await peer.refused(E.AUTH_FAILED))
        if refusals[-1].retry_after is not None:
            raise Deviation(f"expected no retry_after; got {refusals[-1].retry_after:g}")
    if refusals[0] != refusals[1]:
        raise Deviation(f"expected the same refusal twice; got {refusals[0].text!r} and {refusals[1].text!r}")


async def _replayed(lab: Lab) -> None:
    hello = lab.hello()
    recorded = await lab.connect()
    await lab.challenged(recorded, hello)
    mac = device_proof(lab.key(), hello, recorded.body)
    await lab.prove(recorded, hello, recorded.body)
    peer = await lab.connect()
    await lab.challenged(peer, hello)
    await _auth(peer, mac)
    await peer.refused(E.AUTH_FAILED)


async def _refused_is_over(lab: Lab) -> None:
    peer = await lab.connect()
    await lab.challenged(peer, lab.hello())
    ping = frame(FrameType.PING, {"data": bytes(8)})
    await peer.send(frame(FrameType.AUTH, {"mac": bytes(32)}), ping, ping)
    await peer.refused(E.AUTH_FAILED)


def _transcripts() -> Cases:
    """The proof of a HELLO or CHALLENGE that a middle box has changed."""
    changes: dict[str, dict[str, Any]] = {
        "max_version": {"max_version": 2},
        "agent": {"agent": "another"},
        "caps": {"caps": ["conformance-x"]},
        "nonce": {"nonce": b"n" * 16},
        "tenant": {"tenant": "another"},
        "an unknown key": {"grease": 1},
    }
    cases: Cases = [
        Draft("A-7 A-2", f"another {title} in HELLO than was signed", _tampered(values))
        for title, values in changes.items()
    ]
    bodies: dict[str, Any] = {
        "without HELLO": lambda hello, challenge: (b"", challenge),
        "without CHALLENGE": lambda hello, challenge: (hello, b""),
        "in the other order": lambda hello, challenge: (challenge, hello),
        "of another CHALLENGE": lambda hello, challenge: (hello, challenge[:-1] + b"\0"),
        "with the frame's header": lambda hello, challenge: (raw_frame(1, hello), challenge),
    }
    cases += [Draft("A-2 A-7", f"a transcript {title}", _mixed(pick)) for title, pick in bodies.items()]
    return cases


def _tampered(changes: dict[str, Any]) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.connect()
        sent, signed = lab.hello(nonce=b"m" * 16), lab.hello(**{"nonce": b"m" * 16, **changes})
        await lab.challenged(peer, sent)
        await _auth(peer, device_proof(lab.key(), signed, peer.body))
        await peer.refused(E.AUTH_FAILED)

    return run


def _mixed(pick: Any) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.connect()
        hello = lab.hello()
        await lab.challenged(peer, hello)
        await _auth(peer, device_proof(lab.key(), *pick(hello, peer.body)))
        await peer.refused(E.AUTH_FAILED)

    return run
