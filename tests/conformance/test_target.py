"""Tests of mobillm.conformance.target."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from mobillm.conformance import Deviation, Lab, Target
from mobillm.conformance.samples import tiny_batch
from mobillm.protocol import FrameType
from mobillm.transport import Address


def _try(target: Target, tenant: int = 0) -> tuple[int, int]:
    async def main() -> tuple[int, int]:
        lab = Lab(target)
        try:
            stream = await lab.attach(tenant=tenant)
            await stream.submit(tiny_batch(1), tiny_batch(2))
            await stream.acked(applied=2)
            await stream.control(FrameType.FINISH, seq=2)
            back = await lab.finished(stream.opened.session, steps=2) if tenant == 0 else stream
            return stream.used, back.opened.received
        finally:
            await lab.close()

    return asyncio.run(main())


def test_a_session_of_each_tenant(target: Target) -> None:
    """Connect, attach, submit and come back; what was charged is counted."""
    charged = sum(map(len, tiny_batch(1).frames() + tiny_batch(2).frames()))
    assert _try(target) == (charged, 2)
    assert _try(target, 1) == (charged, 0)


def test_what_goes_wrong_is_a_deviation(target: Target) -> None:
    """A wrong secret, and no server at all."""
    wrong = dataclasses.replace(target, tenants=(("alice", "not her token"),))
    with pytest.raises(Deviation, match="expected WELCOME; got REJECT code AUTH_FAILED"):
        _try(wrong)
    nowhere = dataclasses.replace(target, address=Address("127.0.0.1", 1))
    with pytest.raises(Deviation, match=r"cannot connect to mobillm://127\.0\.0\.1:1"):
        _try(nowhere)
