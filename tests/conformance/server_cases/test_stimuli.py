"""Tests of mobillm.conformance.server_cases.stimuli: each shape also sees the opposite of what it wants."""

from __future__ import annotations

import asyncio

import pytest

from mobillm.conformance import Deviation, Lab, Target
from mobillm.conformance.case import Run
from mobillm.conformance.samples import tiny_batch
from mobillm.conformance.server_cases.stimuli import (
    failed_stream,
    fails_stream,
    ignored,
    refused,
    refused_at_start,
    refused_on_stream,
)
from mobillm.conformance.wire import frame
from mobillm.errors import ErrorCode
from mobillm.protocol import FrameType

PING = frame(FrameType.PING, {"data": bytes(8)})
PONG = frame(FrameType.PONG, {"data": bytes(8)})
FINISH = frame(FrameType.FINISH, stream=1, seq=9)
MISMATCH = ErrorCode.SCHEMA_MISMATCH


def _try(target: Target, run: Run[Lab]) -> str | None:
    async def main() -> str | None:
        lab = Lab(target)
        lab.target = Target(target.address, target.tenants, bound=1.0)
        try:
            await run(lab)
        except Deviation as exc:
            return str(exc)
        finally:
            await lab.close()
        return None

    return asyncio.run(main())


@pytest.mark.parametrize(
    "run",
    [
        refused_at_start(bytes(40), ErrorCode.PROTOCOL),
        refused(bytes(40), ErrorCode.PROTOCOL),
        ignored(PONG),
        refused_on_stream([tiny_batch(1).end()], ErrorCode.PROTOCOL),
        fails_stream([FINISH], MISMATCH),
    ],
)
def test_right_reactions_pass(target: Target, run: Run[Lab]) -> None:
    """What the specification asks for is no deviation."""
    assert _try(target, run) is None


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (refused_at_start(bytes(40), ErrorCode.DECODE), "expected REJECT DECODE; got REJECT code PROTOCOL"),
        (refused(bytes(40), ErrorCode.DECODE), "expected ERROR DECODE; got ERROR code PROTOCOL"),
        (refused(PONG, ErrorCode.PROTOCOL), "nothing came within 1 s"),
        (ignored(bytes(40)), "expected PONG; got ERROR code PROTOCOL"),
        (refused_on_stream([FINISH], MISMATCH), "nothing came within 1 s"),
        (fails_stream([tiny_batch(1).end()], MISMATCH), "expected ERROR SCHEMA_MISMATCH on stream 1; got"),
        (fails_stream([FINISH], MISMATCH, seq=1), "on stream 1 for batch 1; got ERROR stream 1 code"),
    ],
)
def test_other_reactions_are_deviations(target: Target, run: Run[Lab], text: str) -> None:
    """Another code, another scope, no reaction, or one too many."""
    assert text in (_try(target, run) or "passed")


def test_a_failed_stream(target: Target) -> None:
    """The stream has failed, and the connection lives."""

    async def run(lab: Lab) -> None:
        stream = await failed_stream(lab)
        await stream.detach()

    assert _try(target, run) is None
