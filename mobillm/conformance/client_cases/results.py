"""FINISHED and WEIGHTS: parts, digests, limits, and what a client must not take for its weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ...errors import ErrorCode
from ...protocol import Error, FrameType, Pull
from ..case import Draft, Run
from ..host import WEIGHTS, Host
from ..visit import Visit
from ..wire import frame
from .moments import Cases, carries_on, finishing, gives_up, pulling, refuses

__all__ = ["drafts"]

E = ErrorCode
T = FrameType
SIZE = len(WEIGHTS)
Part = dict[str, Any]


def drafts() -> Cases:
    """Return the cases."""
    return [*_finished(), *_files(), *_weights()]


def _finished() -> Cases:
    wrong: list[tuple[str, str, dict[str, Any], ErrorCode]] = [
        ("D-32 M-4", "no steps", {"loss": 0.5}, E.DECODE),
        ("D-32", "steps -1", {"steps": -1}, E.SCHEMA_MISMATCH),
        ("D-33 M-22", "a loss that is NaN", {"steps": 1, "loss": float("nan")}, E.SCHEMA_MISMATCH),
        ("D-33", "a loss that is a text", {"steps": 1, "loss": "0.5"}, E.SCHEMA_MISMATCH),
    ]
    cases: Cases = []
    for ids, title, values, code in wrong:
        run = refuses(finishing, functools.partial(_send_finished, values), code)
        cases.append(Draft(ids, f"FINISHED with {title}", run))
    for title, values in {"no loss": {"steps": 0}, "an unknown key": {"steps": 1, "x": 1}}.items():
        cases.append(Draft("D-33 V-2", f"FINISHED with {title}", _completes(values)))
    return cases


async def _send_finished(values: dict[str, Any], host: Host) -> None:
    await host.peer.send(frame(T.FINISHED, values, stream=host.stream))


def _completes(values: dict[str, Any]) -> Run[Visit]:
    async def run(visit: Visit) -> None:
        host = await Host.meet(visit)
        await finishing(host)
        await _send_finished(values, host)
        await host.serve()
        await visit.succeeds()

    return run


def _part(start: int, end: int, **changes: Any) -> Part:
    return {"start": start, "end": end, **changes}


async def _send_parts(parts: Sequence[Part], host: Host) -> None:
    for part in parts:
        await host.peer.send(host.raw_weights(**part))


def _files() -> Cases:
    wrong: list[tuple[str, str, list[Part], ErrorCode]] = [
        ("W-1", "from the middle", [_part(10, 20)], E.PROTOCOL),
        ("W-1", "with a gap", [_part(0, 10), _part(11, 20)], E.PROTOCOL),
        ("W-1", "that overlap", [_part(0, 10), _part(9, 20)], E.PROTOCOL),
        (
            "W-1",
            "with another digest in the second part",
            [_part(0, 10), _part(10, 20, digest=bytes(32))],
            E.PROTOCOL,
        ),
        (
            "W-1",
            "with another total in the second part",
            [_part(0, 10), _part(10, 20, total=SIZE + 1)],
            E.PROTOCOL,
        ),
        ("W-11", "with other steps in the second part", [_part(0, 10), _part(10, 20, steps=2)], E.PROTOCOL),
        (
            "W-3",
            "with another file before the end",
            [_part(0, 10), _part(0, 10, digest=bytes(32))],
            E.PROTOCOL,
        ),
        ("W-7", "with an empty part", [_part(0, 0)], E.SCHEMA_MISMATCH),
        ("W-7", "beyond their total", [_part(0, 20, total=19)], E.SCHEMA_MISMATCH),
        ("W-2 L-6", "with a total above WELCOME's blob", [_part(0, 10, total=1 << 30)], E.LIMIT),
        ("D-38", "with a total of 2^48 + 1", [_part(0, 10, total=2**48 + 1)], E.SCHEMA_MISMATCH),
        ("D-37", "with a digest of 31 bytes", [_part(0, 10, digest=bytes(31))], E.SCHEMA_MISMATCH),
        ("D-40 M-4", "without steps", [_part(0, 10, steps=...)], E.DECODE),
        ("D-39 M-4", "without an offset", [_part(0, 10, offset=...)], E.DECODE),
    ]
    cases: Cases = []
    for ids, title, parts, code in wrong:
        act = functools.partial(_send_parts, parts)
        cases.append(Draft(ids, f"WEIGHTS {title}", refuses(pulling, act, code)))
    for size in (1, 7, 100, SIZE):
        cases.append(
            Draft("W-1 O-30", f"WEIGHTS in parts of {size} bytes", functools.partial(_in_parts, size))
        )
    return cases


async def _in_parts(size: int, visit: Visit) -> None:
    host = await Host.meet(visit)

    async def pull(_message: Pull) -> None:
        for start in range(0, SIZE, size):
            await host.send(host.weights(start, start + size))

    host.on[Pull] = pull
    await host.shake()
    await host.serve()
    await visit.succeeds()


def _weights() -> Cases:
    cases: Cases = []
    for title, changes in {
        "of zeros": {"digest": bytes(32)},
        "of other content": {"payload": bytes(SIZE)},
        "that differs in one bit": {"payload": bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]},
    }.items():
        run = functools.partial(_wrong_digest, changes)
        cases.append(Draft("W-10", f"WEIGHTS with a digest {title}", run))

    async def refuse(host: Host) -> None:
        await host.send(Error(stream=host.stream, code=E.INTERNAL, text="no"))

    async def after_the_first(host: Host) -> None:
        await host.send(host.weights(0, 10), Error(stream=host.stream, code=E.INTERNAL, text="no"))

    return [
        *cases,
        Draft("O-30", "PULL answered by ERROR", gives_up(pulling, refuse)),
        Draft("O-30 W-1", "ERROR in the middle of the weights", gives_up(pulling, after_the_first)),
        Draft("K-8 O-30", "PING between PULL and WEIGHTS", carries_on(pulling, _ping)),
    ]


async def _ping(host: Host) -> None:
    await host.peer.send(frame(T.PING, {"data": bytes(8)}))


async def _wrong_digest(changes: Part, visit: Visit) -> None:
    """The client must not use them; whether it ends the session or the connection is its own affair."""
    host = await Host.meet(visit)
    await pulling(host)
    await host.peer.send(host.raw_weights(0, SIZE, **changes))
    host.on[Error] = _is_told
    host.on[Pull] = _is_told
    await host.serve()
    await visit.fails()


async def _is_told(_message: Error | Pull) -> None:
    pass
