"""A session under way: OPENED, credit, acknowledgements, GAP, errors of every scope, GOAWAY and BYE."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

from ...errors import ErrorCode
from ...protocol import Ack, Bye, Commit, Data, Error, Finish, FrameType, Gap, Goaway, Open
from ..case import Deviation, Draft, Run
from ..host import PLENTY, Host
from ..visit import Visit
from ..wire import frame
from .moments import (
    MOMENTS,
    Act,
    Cases,
    Moment,
    attached,
    carries_on,
    committed,
    finishing,
    gives_up,
    opening,
    refuses,
    resume,
    sending,
)

__all__ = ["drafts"]

E = ErrorCode
T = FrameType
LATE = 1.0  # seconds that an answer is late, within every sensible bound


def drafts() -> Cases:
    """Return the cases."""
    return [*_opened(), *_credit(), *_acks(), *_reports(), *_errors(), *_ends()]


def _on_stream(kind: FrameType, values: dict[str, Any], host: Host) -> Any:
    return host.peer.send(frame(kind, values, stream=host.stream))


def _opened() -> Cases:
    good: dict[str, Any] = {"session": bytes(16), "epoch": 1}
    wrong: list[tuple[str, str, dict[str, Any], ErrorCode]] = [
        ("D-21 M-4", "no session", {"epoch": 1}, E.DECODE),
        ("D-21", "a session of 15 bytes", {"session": bytes(15), "epoch": 1}, E.SCHEMA_MISMATCH),
        ("D-22 M-4", "no epoch", {"session": bytes(16)}, E.DECODE),
        ("D-22", "epoch 0", {**good, "epoch": 0}, E.SCHEMA_MISMATCH),
        ("D-22", "epoch 2^32", {**good, "epoch": 2**32}, E.SCHEMA_MISMATCH),
        ("D-26", "a missing digest of 31 bytes", {**good, "missing": [bytes(31)]}, E.SCHEMA_MISMATCH),
        ("D-26", "65 missing digests", {**good, "missing": [bytes(32)] * 65}, E.SCHEMA_MISMATCH),
        ("D-27", "finished as 1", {**good, "finished": 1}, E.SCHEMA_MISMATCH),
        ("X-7", "durable above received", {**good, "durable": 1}, E.SCHEMA_MISMATCH),
        ("X-7", "applied above durable", {**good, "received": 1, "applied": 1}, E.SCHEMA_MISMATCH),
        ("D-23", "received -1", {**good, "received": -1}, E.SCHEMA_MISMATCH),
        ("V-8", "a critical key", {**good, "!x": 1}, E.UNSUPPORTED),
    ]
    cases: Cases = []
    for ids, title, values, code in wrong:
        act = functools.partial(_on_stream, T.OPENED, values)
        cases.append(Draft(ids, f"OPENED with {title}", refuses(opening, act, code)))
    return [
        *cases,
        Draft("V-2", "OPENED with unknown keys", _opens(grease=[1], x=None)),
        Draft("M-6", "OPENED with all its defaults left out", _opens()),
        Draft("O-5 O-21", "OPENED that misses a blob the client does not have", _missing),
        Draft("K-27", "OPENED a second late", carries_on(opening, _late)),
    ]


def _opens(**extra: Any) -> Run[Visit]:
    async def run(visit: Visit) -> None:
        host = await Host.meet(visit)
        await opening(host)
        await host.attach(extra)
        await host.grant()
        await host.serve()
        await visit.succeeds()

    return run


async def _missing(visit: Visit) -> None:
    host = await Host.meet(visit)
    await opening(host)
    await host.attach(missing=(bytes(range(32)),))
    await host.grant()
    host.on[Data] = _no_batch
    await host.serve()
    await visit.fails()


async def _no_batch(_message: Data) -> None:
    raise Deviation("expected no batch while a blob is missing; the client sent DATA")


async def _late(_host: Host) -> None:
    await asyncio.sleep(LATE)


def _credit() -> Cases:
    cases: Cases = []
    for step in (64, 200, 1000, 5000):
        cases.append(Draft("C-3 C-2", f"credit in steps of {step} bytes", functools.partial(_steps, step)))
    figures: dict[str, list[tuple[int, int]]] = {
        "the largest credit": [(2**48, 2**63 - 1)],
        "the same credit twenty times": [(PLENTY, 1000)] * 20,
        "a lower credit after a higher one": [(PLENTY, 1000), (0, 0), (1, 1)],
        "a lower offset with a higher last": [(PLENTY, 1), (5, 1000)],
        "a lower last with a higher offset": [(0, 1000), (PLENTY, 1)],
    }
    for title, grants in figures.items():
        ids = "C-8 C-2" if "lower" in title else "C-2"
        cases.append(Draft(ids, title, carries_on(attached, functools.partial(_grants, grants))))
    for title, pair in {
        "no credit": None,
        "credit of 0": (0, 0),
        "no bytes": (0, 9),
        "no batch": (PLENTY, 0),
    }.items():
        cases.append(
            Draft(
                "C-3 C-7",
                f"nothing is sent at {title}",
                carries_on(attached, functools.partial(_waits, pair)),
            )
        )
    return [
        *cases,
        Draft("C-3", "one batch number at a time", _one_by_one),
        Draft("C-3", "the batch number granted late each time", functools.partial(_one_by_one, pause=0.2)),
        Draft(
            "D-55", "CREDIT with an offset of 2^48 + 1", _wrong(T.CREDIT, {"offset": 2**48 + 1, "last": 1})
        ),
        Draft("D-56 M-4", "CREDIT without last", _wrong(T.CREDIT, {"offset": 1}, E.DECODE)),
        Draft("D-56", "CREDIT with a last of -1", _wrong(T.CREDIT, {"offset": 1, "last": -1})),
    ]


def _wrong(kind: FrameType, values: dict[str, Any], code: ErrorCode = E.SCHEMA_MISMATCH) -> Run[Visit]:
    return refuses(attached, functools.partial(_on_stream, kind, values), code)


@contextlib.asynccontextmanager
async def _dripping(host: Host, step: int) -> AsyncIterator[None]:
    async def drip() -> None:
        offset = 0
        while True:
            offset += step
            await host.grant(offset)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _steps(step: int, visit: Visit) -> None:
    host = await Host.meet(visit)
    await attached(host)
    async with _dripping(host, step):
        finish = await host.until(Finish)
    await host.answer(finish)
    await host.serve()
    await visit.succeeds()


async def _grants(grants: list[tuple[int, int]], host: Host) -> None:
    for offset, last in grants:
        await host.grant(offset, last)


async def _waits(pair: tuple[int, int] | None, host: Host) -> None:
    if pair is not None:
        await host.grant(*pair)
    await host.peer.silent(LATE, Data, Commit)


async def _one_by_one(visit: Visit, pause: float = 0.0) -> None:
    host = await Host.meet(visit)
    await attached(host)
    await host.grant(PLENTY, 1)

    async def commit(message: Commit) -> None:
        await host.commit(message)
        await asyncio.sleep(pause)
        await host.grant(PLENTY, message.seq + 1)

    host.on[Commit] = commit
    await host.serve()
    await visit.succeeds()


def _acks() -> Cases:
    wrong: list[tuple[str, str, dict[str, int], ErrorCode]] = [
        ("X-1", "durable above received", {"received": 0, "durable": 1, "applied": 0}, E.SCHEMA_MISMATCH),
        ("X-1", "applied above durable", {"received": 1, "durable": 0, "applied": 1}, E.SCHEMA_MISMATCH),
        ("D-52 M-4", "no received", {"durable": 0, "applied": 0}, E.DECODE),
        ("D-53 M-4", "no durable", {"received": 0, "applied": 0}, E.DECODE),
        ("D-54 M-4", "no applied", {"received": 0, "durable": 0}, E.DECODE),
        ("D-52", "received 2^63", {"received": 2**63, "durable": 0, "applied": 0}, E.SCHEMA_MISMATCH),
        ("D-54", "applied -1", {"received": 0, "durable": 0, "applied": -1}, E.SCHEMA_MISMATCH),
    ]
    cases: Cases = [
        Draft(ids, f"ACK with {title}", _wrong(T.ACK, values, code)) for ids, title, values, code in wrong
    ]
    ways: dict[str, list[tuple[int, int, int]]] = {
        "in three steps": [(0, -1, -1), (0, 0, -1), (0, 0, 0)],
        "three times": [(0, 0, 0)] * 3,
        "after an older one": [(-1, -1, -1), (0, 0, 0)],
    }
    for title, behind in ways.items():
        cases.append(
            Draft("X-6 X-1", f"each batch acknowledged {title}", functools.partial(_acknowledges, behind))
        )
    return [
        *cases,
        Draft("X-6 X-20", "all batches acknowledged at once, after FINISH", _merged),
        Draft("X-6 X-2", "acknowledgements a second late", carries_on(committed, _late)),
        Draft("B-32", "GAP for a batch that was sent", _ends_somehow(committed, _gap)),
        Draft("D-57 M-4", "GAP without expected", _wrong(T.GAP, {}, E.DECODE)),
    ]


async def _acknowledges(behind: list[tuple[int, int, int]], visit: Visit) -> None:
    host = await Host.meet(visit)

    async def commit(message: Commit) -> None:
        host.batches.append(message.seq)
        for item in behind:
            received, durable, applied = (max(0, message.seq + less) for less in item)
            await host.send(Ack(stream=host.stream, received=received, durable=durable, applied=applied))

    host.on[Commit] = commit
    await host.shake()
    await host.serve()
    await visit.succeeds()


async def _merged(visit: Visit) -> None:
    host = await Host.meet(visit)

    async def commit(message: Commit) -> None:
        host.batches.append(message.seq)

    async def finish(message: Finish) -> None:
        last = len(host.batches)
        await host.send(Ack(stream=host.stream, received=last, durable=last, applied=last))
        await host.finish(message)

    host.on[Commit], host.on[Finish] = commit, finish
    await host.shake()
    await host.serve()
    await visit.succeeds()


async def _gap(host: Host) -> None:
    await host.send(Gap(stream=host.stream, seq=1, expected=1))


def _ends_somehow(moment: Moment, act: Act) -> Run[Visit]:
    """Do something that a client may react to in several ways: it keeps the rules, and comes to an end."""

    async def run(visit: Visit) -> None:
        host = await Host.meet(visit)
        await moment(host)
        await act(host)
        await host.serve()
        await visit.status()

    return run


def _reports() -> Cases:
    spans = [[0, 1, 2, 3]] * 64
    full = {"step": 1, "epoch": 1, "loss": 0.5, "lr": 0.1, "queue": 3, "busy": 1.5, "spans": spans}
    fine: dict[str, dict[str, Any]] = {
        "all fields": full,
        "its required fields only": {"step": 0, "epoch": 0},
        "a loss of nil": {**full, "loss": None},
        "integers for numbers": {**full, "loss": 1, "lr": 0, "busy": 2},
        "unknown keys": {**full, "x": 1, "y": {"z": []}},
    }
    wrong: dict[str, tuple[str, dict[str, Any]]] = {
        "a loss that is NaN": ("D-60 M-22", {**full, "loss": float("nan")}),
        "an infinite loss": ("D-60 M-22", {**full, "loss": float("inf")}),
        "lr -1": ("D-61", {**full, "lr": -1}),
        "queue -1": ("D-62", {**full, "queue": -1}),
        "busy -0.5": ("D-63", {**full, "busy": -0.5}),
        "65 spans": ("D-64", {**full, "spans": [[0, 1, 2, 3]] * 65}),
        "a span of three": ("D-64 M-9", {**full, "spans": [[0, 1, 2]]}),
        "step -1": ("D-58", {**full, "step": -1}),
    }
    cases: Cases = []
    for title, values in fine.items():
        act = functools.partial(_on_stream, T.METRICS, values)
        cases.append(Draft("O-10 M-21", f"METRICS with {title}", carries_on(attached, act)))
    for title, (ids, values) in wrong.items():
        cases.append(Draft(ids, f"METRICS with {title}", _wrong(T.METRICS, values)))
    return cases


def _errors() -> Cases:
    cases: Cases = []
    for code in (int(E.SCHEMA_MISMATCH), int(E.NOT_AUTHORIZED), 4000):
        run = gives_up(opening, functools.partial(_stream_error, code))
        cases.append(Draft("O-2 V-6", f"OPEN refused with code {code}", run))
    places: dict[str, Moment] = {
        "inside a batch": sending,
        "after COMMIT": committed,
        "after FINISH": finishing,
    }
    for where, moment in places.items():
        for code in (int(E.STORAGE_FULL), int(E.NON_FINITE), int(E.SESSION_TAKEN_OVER), 4000):
            ids = "X-17 E-1" if code == E.SESSION_TAKEN_OVER else "E-1 S-5 V-6"
            run = gives_up(moment, functools.partial(_stream_error, code))
            cases.append(Draft(ids, f"ERROR with code {code} on the stream {where}", run))
    cases.append(Draft("E-6 S-4", "ERROR of one batch", _ends_somehow(committed, _batch_error)))
    for where, moment in MOMENTS.items():
        if where in ("after HELLO", "after AUTH"):
            continue
        run = _closes(moment, frame(T.ERROR, {"code": int(E.INTERNAL), "text": "x"}))
        cases.append(Draft("E-7 E-2", f"ERROR on stream 0 {where}", run))
    return cases


async def _stream_error(code: int, host: Host) -> None:
    host.on[Open] = _no_open
    await host.send(Error(stream=host.stream, code=code, text="no"))


async def _no_open(_message: Open) -> None:
    raise Deviation("expected that the client does not attach again on its own; it sent OPEN")


async def _batch_error(host: Host) -> None:
    await host.send(Error(stream=host.stream, seq=1, code=E.SCHEMA_MISMATCH, text="no"))


def _closes(moment: Moment, data: bytes) -> Run[Visit]:
    """End the connection by a frame: the client closes without an answer, and reports a failure."""

    async def run(visit: Visit) -> None:
        host = await Host.meet(visit)
        await moment(host)
        await host.peer.send(data)
        # What was on its way is read; an answer to ERROR or BYE would be another one of these.
        while (message := await host.peer.read()) is not None:
            if isinstance(message, Error | Bye):
                raise Deviation(f"expected no answer; the client sent {message.type.name}")
        await visit.fails()

    return run


def _ends() -> Cases:
    cases: Cases = []
    for where, moment in MOMENTS.items():
        if where in ("after HELLO", "after AUTH"):
            continue
        cases.append(Draft("K-19", f"BYE {where}", _closes(moment, frame(T.BYE))))
        cases.append(
            Draft("K-3 K-14", f"GOAWAY {where}", _ends_somehow(moment, functools.partial(_goaway, moment)))
        )
    return [
        *cases,
        Draft(
            "K-13", "GOAWAY three times", _ends_somehow(opening, functools.partial(_goaway, opening, times=3))
        ),
        Draft("K-21 K-16", "GOAWAY, and the end of the connection", _gone),
        Draft(
            "D-73", "GOAWAY with a grace of -1", _wrong_goaway({"code": 0, "grace": -1}, E.SCHEMA_MISMATCH)
        ),
        Draft("D-71 M-4", "GOAWAY without a code", _wrong_goaway({}, E.DECODE)),
    ]


async def _goaway(moment: Moment, host: Host, times: int = 1) -> None:
    """Say GOAWAY and go on as usual, within the grace."""
    for _ in range(times):
        await host.send(Goaway(code=0, text="maintenance", grace=30.0))
    await resume(host, moment)


async def _gone(visit: Visit) -> None:
    host = await Host.meet(visit)
    await opening(host)
    await host.send(Goaway(code=E.STORAGE_FULL, text="full", grace=0.0))
    await host.peer.close()
    await visit.fails()


def _wrong_goaway(values: dict[str, Any], code: ErrorCode) -> Run[Visit]:
    async def act(host: Host) -> None:
        await host.peer.send(frame(T.GOAWAY, values))

    return refuses(opening, act, code)
