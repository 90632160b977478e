"""The budget that sessions share."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillm.errors import ConfigError, ErrorCode, RemoteError
from mobillm.nn import compute, upper
from mobillm.nn.backbone import Backbone
from mobillm.nn.upper import KEPT, WIDE
from mobillm.options import Limits
from mobillm.server.memory import Memory, check_step, check_weights
from tests.conftest import Run
from tests.nn.tiny import tail_session, tiny_model
from tests.sessions import device, serving, spec, submit

A, B, C = b"a", b"b", b"c"


def test_grants() -> None:
    """A part of what is free up to the window; never less than a frame at first, nor than was given."""
    memory = Memory(limit=100, least=10)
    assert memory.grant(A, held=0, owed=0, window=60) == 12
    assert memory.grant(B, held=0, owed=0, window=11) == 11
    assert memory.grant(C, held=0, owed=0, window=60) == 10  # less would be its part
    assert memory.total == 33
    assert memory.grant(A, held=6, owed=6, window=60) == 9
    assert memory.grant(A, held=6, owed=40, window=60) == 40  # what was given stays
    assert memory.total == 46 + 21
    assert memory.grant(A, held=15, owed=0, window=20) == 5
    assert memory.grant(A, held=30, owed=0, window=20) == 0
    memory.leave(B, held=50)
    assert (memory.total, memory.has_room) == (90, True)
    assert memory.grant(B, held=51, owed=0, window=60) == 1
    assert (memory.total, memory.has_room) == (92, False)
    for session in (A, B, C):
        memory.leave(session, 0)
    assert memory.total == 0


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 120), st.booleans()), max_size=40))
def test_the_sum_is_bounded(events: list[tuple[bytes, int, bool]]) -> None:
    """Whatever sessions do, the claims stay below the limit; nothing is lost."""
    memory = Memory(limit=100, least=10)
    owed: dict[bytes, int] = {}
    held: dict[bytes, int] = {}
    for session, size, leaves in events:
        if leaves:
            owed.pop(session, None)
            held[session] = 0
            memory.leave(session, 0)
            continue
        if session not in owed and not memory.has_room:
            continue
        used = min(size, owed.get(session, 0))  # some of the credit arrives, all that was held is trained
        owed[session] = owed.get(session, 0) - used
        held[session] = used
        room = memory.grant(session, used, owed[session], window=60)
        assert room >= owed[session]
        owed[session] = room
        assert memory.total >= sum(owed.values()) + sum(held[one] for one in owed)
        assert memory.total <= 100


def test_sessions_get_on_with_little_memory(run: Run, tmp_path: pathlib.Path) -> None:
    """[L-21] Four sessions with room for four frames all end; a fifth one is told when to come again."""
    limits = Limits(frame=16 * 1024, chunk=8 * 1024, memory=4 * (16 * 1024 + 32))

    async def main() -> None:
        async with serving(tmp_path, limits=limits) as server, device(server) as client:
            sessions = [await client.open(spec()) for _ in range(4)]
            with pytest.raises(RemoteError) as info:
                await client.open(spec())
            assert (info.value.code, info.value.retry_after) == (ErrorCode.SERVER_BUSY, 1.0)
            await asyncio.gather(*(submit(session, 1, 20) for session in sessions))
            for session in sessions:
                await session.wait_applied(20)
            await sessions[0].detach()
            await client.open(spec())

    run(main())


@pytest.mark.parametrize(("native", "wide", "each"), [(True, WIDE, 2), (False, WIDE, 4), (False, 17000, 2)])
def test_steps_of_a_tail(native: bool, wide: int, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """[B-45] A batch that needs one byte too much is refused, small and large ones by their own measure."""
    monkeypatch.setattr(compute, "has_native_bf16", lambda: native)
    monkeypatch.setattr(upper, "WIDE", wide)
    what, _ = tail_session(Backbone.from_model(tiny_model("llama"), name="tiny", taps=[1]))
    weights, inside = 2 * each * (4 * 16 * 16 + 3 * 16 * 24) + 4 * 16 * 24, 4 * (16 * 16 + 8 * 24)
    most = KEPT // (2 * inside)
    for tokens, kept in ((most, 2 * inside), (most + 1, 2 * 4 * 16 + inside)):
        need = weights + tokens * kept
        check_step(what, tokens, need)
        with pytest.raises(
            ConfigError, match=rf"tokens is {tokens}; expected a smaller batch .* {need} bytes"
        ):
            check_step(what, tokens, need - 1)
    check_step(spec(), 1 << 30, 1)
    check_weights(what, weights)
    with pytest.raises(ConfigError, match=rf"tail\.layers is 2; expected fewer, .* {weights} bytes of"):
        check_weights(what, weights - 1)
    language = dataclasses.replace(what, task="causal-lm", outputs=100, head="0" * 64)
    check_weights(language, weights + 4 * 100 * 16)
    with pytest.raises(ConfigError, match=r"tail\.layers is 2"):
        check_weights(language, weights + 4 * 100 * 16 - 1)
    check_weights(spec(), 1)


def test_weights_that_do_not_fit(run: Run, tmp_path: pathlib.Path) -> None:
    """[W-24] They are refused before any of them is sent."""
    what, blobs = tail_session(Backbone.from_model(tiny_model("llama"), name="tiny", taps=[1]))
    assert what.tail is not None
    large = dataclasses.replace(what, tail=dataclasses.replace(what.tail, intermediate_size=4096))
    limits = Limits(frame=16 * 1024, chunk=8 * 1024, memory=4 * (16 * 1024 + 32))

    async def main() -> None:
        async with serving(tmp_path, limits=limits) as server, device(server) as client:
            with pytest.raises(RemoteError, match=r"tail\.layers is 2; expected fewer") as caught:
                await client.open(large)
            assert caught.value.code == ErrorCode.SCHEMA_MISMATCH
            await client.open(what, blobs=blobs.values())

    run(main())
