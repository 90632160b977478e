"""Opening, attaching and leaving sessions; streams and their numbers; two tenants."""

from __future__ import annotations

import functools
import os
from typing import Any

from ...errors import ErrorCode
from ...protocol import Bye, FrameType, Opened
from ..case import Deviation, Draft, NotApplicable, Run
from ..peer import Peer
from ..samples import spec, tiny_batch
from ..target import Lab
from ..wire import frame
from .stimuli import MUCH, Cases, failed_stream, refused

__all__ = ["drafts"]

E = ErrorCode
T = FrameType


def drafts() -> Cases:
    """Return the cases."""
    return [*_open(), *_numbers(), *_attach(), *_takeover(), *_tenants(), *_leaving(), *_goodbyes()]


def _opening(values: dict[str, Any], number: int = 1) -> bytes:
    return frame(T.OPEN, values, stream=number)


def _open() -> Cases:
    both = {"spec": spec(), "session": bytes(16)}
    return [
        Draft("O-12", "OPEN with neither spec nor session", refused(_opening({}), E.SCHEMA_MISMATCH)),
        Draft("O-12", "OPEN with both", refused(_opening(both), E.SCHEMA_MISMATCH)),
        Draft(
            "O-12 M-25",
            "OPEN with both nil",
            refused(_opening({"spec": None, "session": None}), E.SCHEMA_MISMATCH),
        ),
        Draft("M-25 O-12", "OPEN with a spec and session nil", _opens({"spec": spec(), "session": None})),
        Draft("O-3", "the names of eight sessions differ", _names),
        Draft("D-22 D-23 D-24 D-25", "OPENED of a new session begins at 0", _begins_at_zero),
        Draft("C-7 O-11", "no credit before CREDIT comes", _no_credit_at_first),
        Draft("O-10", "a spec with trace", _opens({"spec": spec(trace=True)})),
    ]


def _opens(values: dict[str, Any]) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.open()
        await peer.send(_opening(values))
        await lab.opened(peer, 1)
        await peer.alive()

    return run


async def _names(lab: Lab) -> None:
    peer = await lab.open()
    names = {(await lab.attach(peer, number=number)).opened.session for number in range(1, 9)}
    if len(names) != 8:
        raise Deviation(f"expected 8 different names of 8 sessions; got {len(names)}")


async def _begins_at_zero(lab: Lab) -> None:
    opened = (await lab.attach()).opened
    if (opened.received, opened.durable, opened.applied, opened.finished) != (0, 0, 0, False):
        raise Deviation("expected a new session to begin at 0 and not finished; OPENED says otherwise")
    if opened.missing:
        raise Deviation("expected no missing blob for a spec that names none; OPENED lists one")


async def _no_credit_at_first(lab: Lab) -> None:
    peer = await lab.open()
    # In one piece with OPEN: whatever the server grants cannot have been read.
    await peer.send(_opening({"spec": spec()}), tiny_batch(1).data()[0])
    await peer.refused(E.PROTOCOL, E.FLOW_CONTROL)


def _numbers() -> Cases:
    cases: Cases = [
        Draft("O-13 L-7", "the highest stream number", functools.partial(_highest, 0, True)),
        Draft("O-13 L-7", "one above the highest stream number", functools.partial(_highest, 1, False)),
        Draft("O-13 L-7", "DATA above the highest stream number", _data_above),
        Draft("O-14", "OPEN on a number that is in use", _in_use),
        Draft("O-1", "sessions on streams 1 to 4 at once", functools.partial(_several, (1, 2, 3, 4))),
        Draft("O-1", "streams in any order", functools.partial(_several, (9, 2, 64, 1))),
        Draft("O-15", "a number is free again after a refused OPEN, ten times", _refused_ten_times),
        Draft("O-35 O-11", "a number used ten times in turn", _reused),
    ]
    if_large = refused(_opening({"spec": spec()}, 65535), E.LIMIT)
    return [*cases, Draft("O-13 L-7", "OPEN on stream 65535", if_large)]


async def _highest(above: int, fine: bool, lab: Lab) -> None:
    peer = await lab.connect()
    welcome = await lab.welcomed(peer)
    number = welcome.streams + above
    if number > 65535:
        raise NotApplicable("the server allows every stream number")
    if fine:
        await lab.attach(peer, number=number)
        return
    await peer.send(_opening({"spec": spec()}, number))
    await peer.refused(E.LIMIT)


async def _data_above(lab: Lab) -> None:
    peer = await lab.connect()
    welcome = await lab.welcomed(peer)
    if welcome.streams == 65535:
        raise NotApplicable("the server allows every stream number")
    await peer.send(tiny_batch(1).data(stream=welcome.streams + 1)[0])
    await peer.refused(E.LIMIT)


async def _in_use(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.peer.send(_opening({"session": stream.opened.session}))
    await stream.peer.refused(E.PROTOCOL)


async def _several(numbers: tuple[int, ...], lab: Lab) -> None:
    peer = await lab.open()
    streams = [await lab.attach(peer, number=number) for number in numbers]
    for stream in streams:
        await stream.submit(tiny_batch(1))
    for stream in streams:
        await stream.acked(applied=1)


async def _refused_ten_times(lab: Lab) -> None:
    peer = await lab.open()
    for _ in range(10):
        await peer.send(_opening({"session": os.urandom(16)}))
        await peer.refused_on(1, E.SESSION_UNKNOWN)
    await lab.attach(peer)


async def _reused(lab: Lab) -> None:
    peer = await lab.open()
    for _ in range(10):
        stream = await lab.attach(peer)
        await stream.submit(tiny_batch(1))
        await stream.acked(received=1)
        await stream.detach()


def _attach() -> Cases:
    cases: Cases = []
    for title, name in {"zeros": bytes(16), "ones": b"\xff" * 16, "random": os.urandom(16)}.items():
        cases.append(Draft("O-17", f"an unknown session of {title}", functools.partial(_unknown, name)))
    return [
        *cases,
        Draft("O-9 X-3", "attach again on the same connection", functools.partial(_again, True)),
        Draft("O-9 X-3 K-26", "attach again on another connection", functools.partial(_again, False)),
        Draft("O-4", "the epoch rises at each of five attachments", _epochs),
        Draft("K-26 X-12", "a batch that was open when the connection broke was not received", _broken_batch),
        Draft("O-34 X-12", "a batch that was open at DETACH was not received", _detached_batch),
        Draft("S-11 O-9", "attach again after the stream failed", _after_failure),
    ]


async def _unknown(name: bytes, lab: Lab) -> None:
    peer = await lab.open()
    await peer.send(_opening({"session": name}))
    await peer.refused_on(1, E.SESSION_UNKNOWN)
    await lab.attach(peer)


async def _again(same: bool, lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(1), tiny_batch(2))
    await stream.acked(received=2, durable=2)
    if same:
        await stream.detach()
    else:
        stream.peer.abort()
    back = await lab.resume(stream.opened.session, stream.peer if same else None)
    if (back.opened.received, back.opened.durable) != (2, 2):
        raise Deviation(
            f"expected received 2, durable 2; OPENED says {back.opened.received}, {back.opened.durable}"
        )
    await back.submit(tiny_batch(3))
    await back.acked(applied=3)


async def _epochs(lab: Lab) -> None:
    stream = await lab.attach()
    epochs = [stream.opened.epoch]
    for _ in range(4):
        await stream.detach()
        stream = await lab.resume(stream.opened.session, stream.peer)
        epochs.append(stream.opened.epoch)
    if sorted(set(epochs)) != epochs:
        raise Deviation(f"expected an epoch that rises; got {epochs}")


async def _broken_batch(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(*tiny_batch(1).data())
    await stream.peer.alive()
    stream.peer.abort()
    await _sends_first(lab, stream.opened.session, None)


async def _detached_batch(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.send(*tiny_batch(1).data())
    await stream.detach()
    await _sends_first(lab, stream.opened.session, stream.peer)


async def _sends_first(lab: Lab, session: bytes, peer: Peer | None) -> None:
    back = await lab.resume(session, peer)
    if back.opened.received != 0:
        raise Deviation(f"expected received 0; OPENED says {back.opened.received}")
    await back.submit(tiny_batch(1, variant=1))
    await back.acked(applied=1)


async def _after_failure(lab: Lab) -> None:
    stream = await failed_stream(lab)
    await stream.detach()
    back = await lab.resume(stream.opened.session, stream.peer)
    await back.submit(tiny_batch(1))
    await back.acked(applied=1)


def _takeover() -> Cases:
    return [
        Draft("O-19", "a second connection takes the session over", functools.partial(_taken, False)),
        Draft("O-19", "another stream takes the session over", functools.partial(_taken, True)),
        Draft("O-20 X-16", "a batch of the older attachment has no effect", _stale_batch),
        Draft("O-20 X-16 S-5", "requests of the older attachment are ignored", _stale_requests),
        Draft("O-20 S-11", "DETACH of the older attachment does not end the newer one", _stale_detach),
        Draft("O-20 O-34", "what the older attachment had begun is dropped", _stale_beginning),
    ]


async def _taken(same: bool, lab: Lab) -> None:
    old = await lab.attach()
    if same:
        await old.peer.send(_opening({"session": old.opened.session}, 2))
        await old.failed(E.SESSION_TAKEN_OVER)
        new = await lab.opened(old.peer, 2)
    else:
        new = await lab.resume(old.opened.session, number=2)
        await old.failed(E.SESSION_TAKEN_OVER)
    if new.opened.epoch <= old.opened.epoch:
        raise Deviation(f"expected an epoch above {old.opened.epoch}; got {new.opened.epoch}")
    await old.peer.alive()
    await new.submit(tiny_batch(1))
    await new.acked(applied=1)


async def _stale_batch(lab: Lab) -> None:
    old = await lab.attach()
    await old.room(MUCH, 1)
    new = await lab.resume(old.opened.session)
    await old.submit(tiny_batch(1))
    await old.failed(E.SESSION_TAKEN_OVER)
    await old.peer.alive()
    await new.submit(tiny_batch(1, variant=1))
    await new.acked(applied=1)
    await new.control(T.FINISH, seq=1)
    await new.peer.alive()


async def _stale_requests(lab: Lab) -> None:
    old = await lab.attach()
    new = await lab.resume(old.opened.session)
    await old.control(T.FINISH)
    await old.control(T.EVAL)
    await old.control(T.PULL)
    await old.failed(E.SESSION_TAKEN_OVER)
    await old.peer.silent(0.3, Opened)
    await new.submit(tiny_batch(1))
    await new.acked(applied=1)


async def _stale_detach(lab: Lab) -> None:
    old = await lab.attach()
    new = await lab.resume(old.opened.session)
    await old.failed(E.SESSION_TAKEN_OVER)
    await old.detach()
    await new.submit(tiny_batch(1))
    await new.acked(applied=1)


async def _stale_beginning(lab: Lab) -> None:
    old = await lab.attach()
    await old.send(tiny_batch(1).data()[0])
    await old.peer.alive()
    new = await lab.resume(old.opened.session)
    await old.failed(E.SESSION_TAKEN_OVER)
    await new.submit(tiny_batch(1))
    await new.acked(applied=1)


def _tenants() -> Cases:
    return [
        Draft("O-18 Y-6", "another tenant's session is answered as an unknown one", _foreign),
        Draft("O-18 Y-6 O-20", "another tenant's try does not disturb the session", _undisturbed),
        Draft("A-13 Y-6", "two tenants have sessions of their own", _own_sessions),
    ]


def _needs_two(lab: Lab) -> None:
    if len(lab.target.tenants) < 2:
        raise NotApplicable("the token file has one tenant; this case needs two")


async def _foreign(lab: Lab) -> None:
    _needs_two(lab)
    session = (await lab.attach()).opened.session
    peer = await lab.open(1)
    answers = []
    for name in (session, os.urandom(16)):
        await peer.send(_opening({"session": name}))
        answers.append(await peer.refused_on(1, E.SESSION_UNKNOWN))
    if answers[0] != answers[1]:
        raise Deviation(f"expected the same answer twice; got {answers[0].text!r} and {answers[1].text!r}")


async def _undisturbed(lab: Lab) -> None:
    _needs_two(lab)
    stream = await lab.attach()
    peer = await lab.open(1)
    await peer.send(_opening({"session": stream.opened.session}))
    await peer.refused_on(1, E.SESSION_UNKNOWN)
    await stream.submit(tiny_batch(1))
    await stream.acked(applied=1)


async def _own_sessions(lab: Lab) -> None:
    _needs_two(lab)
    for tenant in (0, 1):
        stream = await lab.attach(tenant=tenant)
        await stream.submit(tiny_batch(1))
        await stream.acked(received=1)
        await lab.resume(stream.opened.session, await lab.open(tenant), number=3)


def _leaving() -> Cases:
    return [
        Draft("O-35", "DETACH is answered by DETACH", _detached),
        Draft("S-11 O-35", "DETACH after a failure", _detached_after_failure),
        Draft("O-29", "training goes on without the device", _goes_on),
    ]


async def _detached(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.detach()
    await stream.peer.alive()


async def _detached_after_failure(lab: Lab) -> None:
    stream = await failed_stream(lab)
    await stream.detach()
    await lab.attach(stream.peer)


async def _goes_on(lab: Lab) -> None:
    stream = await lab.attach(epochs=3)
    await stream.submit(tiny_batch(1), tiny_batch(2))
    await stream.acked(durable=2)
    await stream.control(T.FINISH, seq=2)
    stream.peer.abort()
    await lab.finished(stream.opened.session, steps=6)


def _goodbyes() -> Cases:
    return [
        Draft("K-18", "BYE is answered by BYE", functools.partial(_bye, False)),
        Draft("K-18 K-26", "BYE with a session attached", functools.partial(_bye, True)),
        Draft("K-22 K-26", "the end of the stream after the handshake", _half_closed),
        Draft("K-26 T-4", "the end of the stream inside DATA", _cut_data),
    ]


async def _bye(attached: bool, lab: Lab) -> None:
    peer = (await lab.attach()).peer if attached else await lab.open()
    await peer.send(frame(T.BYE))
    await peer.expect(Bye)
    await peer.closed()


async def _half_closed(lab: Lab) -> None:
    stream = await lab.attach()
    if lab.target.tls is not None:
        raise NotApplicable("TLS has no half-closed connections here")
    stream.peer.half_close()
    await stream.peer.ended()
    await lab.resume(stream.opened.session)


async def _cut_data(lab: Lab) -> None:
    stream = await lab.attach()
    data = tiny_batch(1).data()
    await stream.send(*data[:-1])
    await stream.peer.send(data[-1][:-3])
    stream.peer.abort()
    await _sends_first(lab, stream.opened.session, None)
